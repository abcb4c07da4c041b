"""Which builds of NIXL are installed, and which of their plugins can be created here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import IO

from ..lab.worker.forkserver import ONE_THREAD
from ..transport.agent import VARIANTS
from . import plugin_probe

SECONDS = 10.0  # for all plugins of a build; two take one second on two cores
# A probe must log reasons, must not ask the network for credentials, and must leave no file.
ENVIRONMENT = {"NIXL_LOG_LEVEL": "INFO", "AWS_EC2_METADATA_DISABLED": "true", **ONE_THREAD}
TELEMETRY = "NIXL_TELEMETRY"

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_REASONS = (  # what NIXL 1.5 logs when a plugin cannot be created, the most specific first
    (
        "no",
        re.compile(r"Failed to load plugin from .*?: (\S+): cannot open shared object file"),
        "{} is not installed",
    ),
    ("no", re.compile(r"Failed to load plugin from .*?\.so: (.+)"), "{}"),
    ("note", re.compile(r"Failed to create engine: Missing config entry '([^']+)'"), "needs the setting {}"),
    ("no", re.compile(r"Failed to create engine: (.+)"), "{}"),
)


@dataclass(frozen=True)
class Plugin:
    """One plugin of one build.

    Attributes
    ----------
    state : str
        ``"ok"``: it was created; ``"note"``: it loads, and needs settings that only its user has; ``"no"``.
    reason : str
        Why not, empty when it was created.
    """

    name: str
    state: str
    reason: str


@dataclass(frozen=True)
class Build:
    """One build of NIXL, for one major version of CUDA.

    Attributes
    ----------
    chosen : bool
        Whether this is the one that ``import nixl`` loads here.
    problem : str
        Why its plugins could not be tried; empty when they were.
    """

    name: str
    version: str
    chosen: bool
    plugins: tuple[Plugin, ...]
    problem: str = ""

    def plugin(self, name: str) -> Plugin | None:
        """Return a plugin by name, None when NIXL does not list it."""
        return next((plugin for plugin in self.plugins if plugin.name == name), None)


def installed_builds() -> dict[str, str]:
    """Return the version of each installed build, by name."""
    found = {}
    for name in VARIANTS:
        if importlib.util.find_spec(name) is not None:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "unknown"  # a build from source may have no metadata
    return found


@contextmanager
def probing() -> Iterator[Callable[[], list[Build]]]:
    """Start to create every plugin of every installed build; yield a function that waits for the result.

    Each build has its own process, and each plugin a fork of it.  They all end with the context.
    """
    with ExitStack() as ends:
        chosen = ends.enter_context(_probe())
        probes = {name: ends.enter_context(_probe(name, str(SECONDS))) for name in installed_builds()}
        deadline = time.monotonic() + SECONDS + plugin_probe.LONGEST

        def answer() -> list[Build]:
            loaded = _answer_of(*chosen, deadline)[0].strip().rpartition("\n")[2]
            return [
                _build_of(name, name == loaded, *_answer_of(*probe, deadline))
                for name, probe in probes.items()
            ]

        yield answer


@contextmanager
def _probe(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], tuple[IO[str], IO[str]]]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(TELEMETRY)}
    with _memory("printed") as printed, _memory("errors") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", plugin_probe.__file__, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=errors,
            env={**environment, **ENVIRONMENT},
            start_new_session=True,  # its forks end with it, and Ctrl-C reaches this process only
        )
        try:
            yield process, (printed, errors)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _memory(name: str) -> IO[str]:
    """Open a file in memory: a read-only container may have no folder for temporary files."""
    return os.fdopen(os.memfd_create(name), "w+")


def _answer_of(
    process: subprocess.Popen[bytes], streams: tuple[IO[str], IO[str]], deadline: float
) -> tuple[str, str]:
    """Return what a probe printed, or why it printed nothing; the other one is empty."""
    try:
        code = process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "", f"did not answer within {SECONDS:.0f} s"
    for stream in streams:
        stream.seek(0)
    printed, errors = (stream.read() for stream in streams)
    if code == 0:
        return printed, ""
    return "", _crash(code) if code < 0 else (errors.strip().splitlines() or [f"exit code {code}"])[-1]


def _build_of(name: str, chosen: bool, answer: str, problem: str) -> Build:
    rows = json.loads(answer) if answer else []
    plugins = tuple(Plugin(row["plugin"], *outcome_of(row["ended"], row["log"])) for row in rows)
    return Build(name, installed_builds()[name], chosen, plugins, problem)


def outcome_of(ended: int | str, log: str) -> tuple[str, str]:
    """Return the state of a plugin and the reason, from how its fork ended and what NIXL logged.

    Examples
    --------
    >>> outcome_of(1, "Failed to load plugin from /x/libplugin_GDS.so: libcufile.so.0: cannot open shared object file: ...")
    ('no', 'libcufile.so.0 is not installed')
    >>> outcome_of(-11, "")
    ('no', 'crashes (SIGSEGV)')
    """
    if ended == 0:
        return "ok", ""
    if ended == plugin_probe.HANGS:
        return "no", "hangs"
    if int(ended) < 0:
        return "no", _crash(int(ended))
    plain = _ANSI.sub("", log)
    for state, pattern, reason in _REASONS:
        if found := pattern.search(plain):
            return state, reason.format(found[1].strip())
    return "no", (plain.strip().splitlines() or ["no reason was logged"])[-1].rpartition(": ")[2]


def _crash(code: int) -> str:
    return f"crashes ({signal.Signals(-code).name})"
