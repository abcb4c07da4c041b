"""Prompts to a real SGLang server: what its scheduler keeps open, where the tokens come from, and how long they take.

A **round** is a prompt that the server has not seen: it is computed and backed up (``backup``); the caches of device and
host are emptied, and the prompt is sent again, so that its pages are loaded from storage (``prefetch``).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from ...errors import HiCacheNixlError
from ...watch import read_watch
from ...watch.sample import COLUMNS as WATCHED
from ..connectors import available, expected
from ..progress import tqdm
from ..runs.record import AVAILABLE
from ..server import Answer, Server, install
from ..server.process import HOST, HTTP, free_port
from ..server.server import pages_of
from ..worker.releases import PREFIX
from ..worker.schedule import Schedule

PROMPT = 2048 + 40  # tokens: 32 whole pages, which are stored, and a rest, which is not
OUTPUT = 8  # tokens
FIRST = 40  # tokens of the first prompt of a server, which takes it seconds and is stored nowhere
OWN = "own"  # SGLang's own backend, among the connectors
WORDS = range(3, 1000)  # of the vocabulary of the models
SMALL_DEVICE = 5120  # tokens, so that two other prompts push one out, to the host pool
COUNTED = 0.2  # seconds until NIXL has counted what it did
TOO_MANY = "Too many open files"  # the message of EMFILE, in the log of a server
COLUMNS = [
    "server",
    "connector",
    "round",
    "step",
    "fds_before",
    "open_fds",
    "storage_fds",
    "from_storage",
    "first_token",
    "same_output",
    "emfile",
    "registered",
]


def servers(*roles: str) -> pd.DataFrame:
    """Make the environments of the servers of the releases of ``expected()``, for the table ``released`` of a notebook.

    Parameters
    ----------
    *roles : str
        Only releases of these roles; by default all.

    Returns
    -------
    pandas.DataFrame
        ``connector``, the release, and ``status``: ``"available"``, or the reason why it could not be installed.
    """
    rows = []
    known = expected().role
    for release in [name for name in known.index if name.startswith(PREFIX)]:
        if roles and known[release] not in roles:
            continue
        with tqdm(desc=f"installing {release}", unit="B", unit_scale=True, leave=False) as bar:

            def advance(doing: str, size: int, whole: int, bar: Any = bar) -> None:
                bar.total, bar.n = whole, min(size, whole)
                bar.set_postfix_str(doing, refresh=True)

            try:
                install(release.removeprefix(PREFIX), advance)
                rows.append((release, AVAILABLE))
            except HiCacheNixlError as error:
                rows.append((release, str(error)))
    return pd.DataFrame(rows, columns=["connector", "status"])


def versions_of(released: pd.DataFrame, roles: Sequence[str]) -> list[str]:
    """Return the releases of these roles that are available."""
    role = expected().role
    return [name.removeprefix(PREFIX) for name in available(released) if role[name] in roles]


def rounds_schedule(rounds: int) -> Schedule:
    """Return the calls of so many rounds: a set and a get of the pages of a prompt.

    Examples
    --------
    >>> rounds_schedule(1).calls
    (Call(operation='set', keys=32), Call(operation='get', keys=32))
    """
    return Schedule.steady(2 * rounds, pages_of(range(PROMPT)))


def served(
    released: pd.DataFrame, roles: Sequence[str], connectors: Sequence[str] = (OWN,), **how: Any
) -> pd.DataFrame:
    """Send rounds of prompts to each of several servers, one after the other; see ``rounds``.

    Parameters
    ----------
    released : pandas.DataFrame
        From ``servers``; releases that are not available are left out.
    roles : sequence of str
        Of the releases, as in ``expected()``.
    connectors : sequence of str
        Lifetimes of this package, and ``"own"``: SGLang's own backend.
    **how
        For ``rounds``.
    """
    tables = [rounds(version, name, **how) for version in versions_of(released, roles) for name in connectors]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def served_and_watched(released: pd.DataFrame, role: str, **how: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Send rounds to the server of a role, with ``hicache-nixl watch`` beside it; return both, see ``read_watch``."""
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder, "watch.csv")
        table = served(released, [role], watch=csv, **how)
        return table, read_watch(csv) if len(table) else pd.DataFrame(columns=WATCHED)


def rounds(
    version: str,
    connector: str = OWN,
    *,
    count: int,
    overwrite: bool = False,
    nofile_limit: int | None = None,
    storage_dir: str | os.PathLike[str] | None = None,
    telemetry: bool = False,
    model: str = "small",
    watch: Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Send rounds of prompts to a server.

    Parameters
    ----------
    version : str
        Of SGLang.
    connector : str
        A lifetime of this package; by default ``"own"``, SGLang's own backend.
    overwrite : bool
        In one more round the stored pages are overwritten with random bytes before the prompt is sent again.
    storage_dir : path, optional
        An existing folder; a new one is made in it.
    telemetry : bool
        Whether NIXL counts registrations, which takes some descriptors of its own.
    model : {"small", "larger"}
        The larger one takes long enough to compute a prompt that its loading shows in the time to the first token.
    watch : path, optional
        A new file for the samples of ``hicache-nixl watch``, which runs beside the rounds.

    Returns
    -------
    pandas.DataFrame
        A row for each step: ``server``, ``connector``, ``round`` from 1, ``step`` (``"backup"``, ``"prefetch"`` or
        ``"overwritten"``); ``fds_before``, descriptors of the scheduler before the first round, ``open_fds`` and
        ``storage_fds`` after the step; ``from_storage``, tokens of the prompt loaded from storage; ``first_token``,
        seconds; ``same_output``, whether the output is that of the cold run; ``emfile``, lines of the log with that
        error so far; ``registered``, bytes registered with NIXL and not released so far, with ``telemetry``.
    """
    name = f"{PREFIX}{version}" if connector == OWN else connector
    rows: list[tuple[Any, ...]] = []
    chance = random.Random(seed)
    with ExitStack() as ends:
        folder = _folder(ends, storage_dir)
        counting = _telemetry(ends) if telemetry else {}
        what = {"nofile_limit": nofile_limit, "variables": counting, "storage_dir": folder, "model": model}
        server = ends.enter_context(_server(version, connector, **what))
        server.ask(prompt_of(chance)[:FIRST], OUTPUT)
        before = len(server.fds())
        if watch is not None:
            ends.enter_context(_watching(server, watch))

        def note(step: str, answer: Answer) -> None:
            table = server.fds()
            storage = int((table.kind == "storage file").sum())
            counts = (before, len(table), storage, answer.storage, answer.first_token)
            same, emfile = answer.tokens == cold.tokens, server.log().count(TOO_MANY)
            rows.append((version, name, number, step, *counts, same, emfile, _registered(counting)))

        for number in tqdm(range(1, count + overwrite + 1), desc=f"{name} in {version}", leave=False):
            prompt, had = prompt_of(chance), server.stored()
            cold = server.ask(prompt, OUTPUT)
            server.settle(had + pages_of(prompt))
            server.flush()  # which waits for the backup to end
            note("backup", cold)
            if number > count:
                overwrite_pages(server.storage_dir)
            again = server.ask(prompt, OUTPUT)
            server.settle()
            note("overwritten" if number > count else "prefetch", again)
    return pd.DataFrame(rows, columns=COLUMNS)


def first_tokens(
    released: pd.DataFrame,
    role: str,
    connectors: Sequence[str],
    *,
    prompts: int,
    storage_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Time the first token of the same prompts with several connectors in turn, with the larger model.

    Parameters
    ----------
    released, role, connectors
        As in ``served``.  There is a server for each connector, and all run for the whole time.

    Returns
    -------
    pandas.DataFrame
        ``arm``, a connector; ``repeat``, ``origin`` (``"cold"``, ``"storage"`` or ``"host"``), ``tokens`` that came from
        there, and ``seconds`` to the first token.  The first repeat, in which a server still loads code, is left out.
    """
    arms = [(version, connector) for version in versions_of(released, [role]) for connector in connectors]
    rows: list[tuple[Any, ...]] = []
    chance = random.Random(seed)
    with ExitStack() as ends:
        running: dict[str, Server] = {}
        for version, connector in arms:
            folder = _folder(ends, storage_dir)
            what = {"model": "larger", "device_tokens": SMALL_DEVICE, "storage_dir": folder}
            name = f"{PREFIX}{version}" if connector == OWN else connector
            running[name] = ends.enter_context(_server(version, connector, **what))
        for repeat in tqdm(range(prompts + 1), desc="first tokens", leave=False):
            three = [prompt_of(chance) for _ in range(3)]
            for name, server in running.items():
                for origin, answer in _origins(server, three):
                    loaded = {"storage": answer.storage, "host": answer.host}
                    tokens = loaded.get(origin, PROMPT - sum(loaded.values()))
                    rows.append((name, repeat, origin, tokens, answer.first_token))
    table = pd.DataFrame(rows, columns=["arm", "repeat", "origin", "tokens", "seconds"])
    return table[table.repeat > 0].reset_index(drop=True)


def _server(version: str, connector: str, **what: Any) -> Server:
    if connector == OWN:
        return Server(version, **what)
    return Server(version, "hicache_nixl", lifetime=connector, **what)


def _origins(server: Server, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[str, Answer]]:
    """Ask the first prompt cold, from storage, and from the host pool, once the others have pushed it out of the device."""
    first, *others = prompts
    had = server.stored()
    yield "cold", server.ask(first, 1)
    server.settle(had + pages_of(first))
    server.flush()
    yield "storage", server.ask(first, 1)
    for other in others:
        server.ask(other, 1)
    server.settle()
    yield "host", server.ask(first, 1)


def overwrite_pages(folder: Path, seed: int = 0) -> None:
    """Overwrite the bytes of all stored pages with random ones, in the same files and segments of ``pooled``."""
    chance = random.Random(seed)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.parent.name != "pooled" or path.name.startswith("segment"):
            with open(path, "r+b") as file:
                used = len(file.read().rstrip(b"\0"))
                file.seek(0)
                file.write(chance.randbytes(used))


def prompt_of(chance: random.Random) -> list[int]:
    """Return tokens of a prompt that no server has seen."""
    return [chance.choice(WORDS) for _ in range(PROMPT)]


def _folder(ends: ExitStack, parent: str | os.PathLike[str] | None) -> str | None:
    if parent is None:
        return None
    return ends.enter_context(tempfile.TemporaryDirectory(dir=parent, prefix="hicache-nixl-"))


# -- NIXL's telemetry ----------------------------------------------------------------------------------


def _telemetry(ends: ExitStack) -> dict[str, str]:
    """Return the variables with which NIXL itself counts what it does, and serves the counts on a port.

    The exporter is the one for several processes: the server makes more than one agent in one process.
    """
    return {
        "NIXL_TELEMETRY_ENABLE": "y",
        "NIXL_TELEMETRY_EXPORTER": "prometheus_mp",
        "NIXL_TELEMETRY_MULTIPROC_DIR": ends.enter_context(tempfile.TemporaryDirectory()),
        "NIXL_TELEMETRY_RUN_INTERVAL": "20",  # ms
        "NIXL_TELEMETRY_PROMETHEUS_LOCAL": "y",
        "NIXL_TELEMETRY_PROMETHEUS_PORT": str(free_port()),
    }


def _registered(telemetry: Mapping[str, str]) -> int | None:
    """Return how many bytes are registered with NIXL, by its own count; None without telemetry."""
    if not telemetry:
        return None
    time.sleep(COUNTED)
    url = f"http://{HOST}:{telemetry['NIXL_TELEMETRY_PROMETHEUS_PORT']}/metrics"
    with HTTP.open(url, timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families for sample in family.samples]
    registered, deregistered = (
        sum(sample.value for sample in samples if sample.name == f"agent_memory_{what}_total")
        for what in ("registered", "deregistered")
    )
    return int(registered - deregistered)


# -- the watch -----------------------------------------------------------------------------------------


@contextmanager
def _watching(server: Server, csv: Path) -> Iterator[None]:
    """Run ``hicache-nixl watch`` on the scheduler, as an operator would, until the block ends."""
    command = [sys.executable, "-m", "hicache_nixl.cli", "watch", str(server.pid)]
    options = ["--storage-dir", os.fspath(server.storage_dir), "--interval", "0.1", "--csv", os.fspath(csv)]
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL) as watching:
        try:
            yield
        finally:
            watching.send_signal(signal.SIGINT)
