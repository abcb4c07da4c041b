"""A SeaweedFS of this machine, from its start to the end of all of its processes."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path

import psutil

from ...errors import ConfigError, HiCacheNixlError
from ..keeper import KILLED, kept
from ..progress import tqdm
from . import weed
from .endpoint import Endpoint

BUCKET = "hicache"
HEALTHY = 60.0  # seconds for a store to take an object; 1 on an idle machine
PATIENCE = 0.2  # seconds between SIGTERM and SIGKILL; a filer without volume servers never ends by itself
ATTEMPTS = 3  # to find ports that no other process takes meanwhile
LAST_LINES = 8
PROBE = "probe-of-the-lab"
PROBED = timedelta(seconds=5)  # for one request
TAKEN = "address already in use"


class ObjectStoreError(HiCacheNixlError, RuntimeError):
    """An object store did not start, or has ended."""


class _PortTakenError(ObjectStoreError):
    pass


class ObjectStore:
    """A running store: a master, volume servers, a filer and S3; all end with ``close`` or with this process.

    Parameters
    ----------
    volumes : int
        Servers that keep the objects.
    replication : {"000", "001", "002", ...}, optional
        How many more copies of an object there are on other volume servers (the last digit, as in SeaweedFS); by default
        one more where there are several servers.
    folder : path, optional
        For the data, which then stays; by default a new folder, which is removed at the end.

    Attributes
    ----------
    endpoint : Endpoint
        Where it is, with credentials of its own.

    Raises
    ------
    ConfigError
        When SeaweedFS is not installed, or an option cannot work.
    ObjectStoreError
        When it takes no object in time; nothing is left running then.
    """

    def __init__(
        self,
        volumes: int = 1,
        *,
        replication: str | None = None,
        folder: str | os.PathLike[str] | None = None,
    ):
        self._volumes, self._replication = volumes, _checked_replication(volumes, replication)
        self._folder = None if folder is None else Path(folder).absolute()
        self._closed = False
        weed.program()
        for attempt in range(ATTEMPTS):
            try:
                self._start_all()
            except _PortTakenError:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return

    def _start_all(self) -> None:
        self._keepers: dict[str, tuple[subprocess.Popen[str], ExitStack]] = {}
        self._earlier, self._probes = Counter[str](), Counter[str]()
        self._roles = ["master", *(f"volume{number + 1}" for number in range(self._volumes)), "filer", "s3"]
        with ExitStack() as ends:
            self._scratch = Path(tempfile.mkdtemp(prefix="hicache-nixl-objects-"))
            ends.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            ends.callback(self._end_processes)
            data = self._make_folders()
            self._ports = weed.free_ports([*self._roles, "metrics"])
            self.endpoint = Endpoint(
                f"http://{weed.HOST}:{self._ports['s3']}",
                BUCKET,
                access_key=f"lab{secrets.token_hex(8)}",
                secret_key=secrets.token_urlsafe(30),
            )
            self._client = self.endpoint.client(PROBED, retries=0)
            weed.write_identity(self._scratch / "s3.json", self.endpoint)
            self._commands = weed.commands(self._ports, data, self._scratch, self._volumes, self._replication)
            self._start_in_order()
            self._probes = weed.counted_requests(self._ports["metrics"])
            self._ends = ends.pop_all()

    def _make_folders(self) -> Path:
        data = self._folder or self._scratch
        try:
            for role in self._roles:
                (data / role).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"folder {data}: {error.strerror}") from error
        return data

    def _start_in_order(self) -> None:
        """Start what others wait for first: a filer without a master asks it again only after 7 s."""
        with tqdm(total=len(self._roles) + 1, desc="object store", leave=False) as bar:
            for role in self._roles:
                if role == "volume1":
                    self._wait_until(lambda: weed.listens(self._ports["master"]))
                elif role == "s3":
                    self._wait_until(self._is_complete)
                self._start(role)
                bar.update()
            self._wait_until(self._takes_objects)
            bar.update()

    def __enter__(self) -> ObjectStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process, and remove the data unless its folder was given; may be called twice."""
        if not self._closed:
            self._text, self._closed = self.log(), True
            self._ends.close()

    # -- failures --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Kill S3: nothing listens at the endpoint; the data stays."""
        self._earlier = Counter(self.requests())
        self._kill("s3")

    def start(self) -> None:
        """Start S3 again, at the same endpoint; returns when it takes objects."""
        self._start("s3")
        self._wait_until(self._takes_objects)
        self._probes = weed.counted_requests(self._ports["metrics"])

    def stop_volume(self, number: int) -> None:
        """Kill a volume server; the first one has the number 1."""
        self._kill(self._server(number))

    def start_volume(self, number: int) -> None:
        """Start a volume server again, with what it has stored; returns when the master knows it."""
        role = self._server(number)
        self._start(role)
        self._wait_until(lambda: self._ports[role] in weed.known_servers(self._ports["master"]))

    # -- what it does ----------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """Return the processes of SeaweedFS that are running."""
        return list(self._running().values())

    def cpu_seconds(self) -> dict[str, float]:
        """Return the processor time that each process has used since it was started, by role."""
        times = {}
        for role, process in self._running().items():
            with suppress(psutil.NoSuchProcess):
                times[role] = sum(process.cpu_times()[:2])  # of user and system
        return times

    def requests(self) -> dict[str, int]:
        """Return how many requests S3 has had so far, by kind; those of the start do not count.

        SeaweedFS counts a HEAD of an object as GET, and every page of a listing as LIST.
        """
        now = Counter[str]()
        if "s3" in self._keepers:
            now = weed.counted_requests(self._ports["metrics"]) - self._probes
        return dict(self._earlier + now)

    def log(self) -> str:
        """Return all that the processes have printed, one after the other."""
        if self._closed:
            return self._text
        return "".join(f"== {role}\n{self._printed(role)}" for role in self._roles)

    def _log_file(self, role: str) -> Path:
        return self._scratch / f"{role}.log"

    def _printed(self, role: str) -> str:
        return self._log_file(role).read_text(errors="replace")

    # -- processes -------------------------------------------------------------------------------------

    def _server(self, number: int) -> str:
        if number not in range(1, self._volumes + 1):
            raise ConfigError(f"volume server {number}: expected 1 to {self._volumes}")
        return f"volume{number}"

    def _start(self, role: str) -> None:
        if self._closed or role in self._keepers:
            raise ObjectStoreError("the store is closed" if self._closed else f"the {role} is running")
        ends, environ = ExitStack(), weed.environ_of(self._scratch, self._volumes)
        with open(self._log_file(role), "ab") as log:
            keeper = ends.enter_context(
                kept(self._commands[role], environ, self._scratch, log, patience=PATIENCE, shared=True)
            )
        self._keepers[role] = keeper, ends

    def _kill(self, role: str) -> None:
        if (process := self._running().get(role)) is None:
            raise ObjectStoreError(f"the {role} is not running")
        process.send_signal(signal.SIGKILL)
        keeper, ends = self._keepers.pop(role)
        keeper.wait()
        ends.close()

    def _running(self) -> dict[str, psutil.Process]:
        found = {}
        for role, (keeper, _) in self._keepers.items():
            with suppress(psutil.NoSuchProcess, IndexError):  # it has ended
                found[role] = psutil.Process(keeper.pid).children()[0]
        return found

    def _end_processes(self) -> None:
        """End those first that wait for others when they end."""
        for _, ends in reversed(self._keepers.values()):
            ends.close()
        self._keepers.clear()

    # -- health ----------------------------------------------------------------------------------------

    def _is_complete(self) -> bool:
        known = len(weed.known_servers(self._ports["master"])) == self._volumes
        return known and weed.listens(self._ports["filer"])

    def _takes_objects(self) -> bool:
        """Return whether an object can be stored and loaded; the first one also makes the bucket and its volumes."""
        from obstore.exceptions import BaseError

        try:
            self._client.put(PROBE, b"x")
            same = bytes(self._client.get(PROBE).bytes()) == b"x"
            self._client.delete(PROBE)
        except (BaseError, OSError):  # OSError: it is not there
            return False
        return same

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + HEALTHY
        while not condition():
            for role, (keeper, _) in self._keepers.items():
                if (code := keeper.poll()) is not None:
                    self._raise_ended(role, code)
            if time.monotonic() > deadline:
                role = next(reversed(self._keepers))
                raise ObjectStoreError(
                    f"the object store took no object after {HEALTHY:g} s:\n{self._last(role)}"
                )
            time.sleep(0.05)

    def _raise_ended(self, role: str, code: int) -> None:
        killed = code - KILLED in set(signal.Signals)
        how = f"was ended by signal {code - KILLED}" if killed else f"ended with {code}"
        error = _PortTakenError if TAKEN in self._printed(role) else ObjectStoreError
        raise error(f"the {role} of the object store {how}:\n{self._last(role)}")

    def _last(self, role: str) -> str:
        """Return the last lines that a process has printed, for a message; its errors alone where it has named some."""
        lines = self._printed(role).splitlines()
        errors = [line for line in lines if re.match(r"[EF]\d{4} ", line)]
        return "\n".join((errors or lines)[-LAST_LINES:])


def _checked_replication(volumes: int, replication: str | None) -> str:
    """Return the replication in SeaweedFS's form: all servers are in one rack of one data center.

    Examples
    --------
    >>> _checked_replication(1, None), _checked_replication(3, None)
    ('000', '001')
    """
    if volumes < 1:
        raise ConfigError(f"volumes: {volumes}; expected 1 or more")
    chosen = replication or ("001" if volumes > 1 else "000")
    if not re.fullmatch(r"00\d", chosen) or int(chosen) >= volumes:
        known = "'000'" if volumes == 1 else f"'000' to '00{min(volumes - 1, 9)}'"
        raise ConfigError(f"replication: {chosen!r}; expected {known} with volumes: {volumes}")
    return chosen
