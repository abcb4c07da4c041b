"""One process or several, each with a limit of its own and so judged by itself, and one verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..errors import ConfigError
from ..lab.worker.descriptors import ProcessGoneError
from .process import WatchedProcess
from .rule import NEEDED
from .sample import Sample
from .verdict import HORIZON, LEAK, NONE, UNDECIDED, Watch

LOOK_AROUND = 1.0  # seconds between two looks for other processes


@dataclass
class Member:
    """A process that is watched, and what its samples say.

    Attributes
    ----------
    ended : bool
        Whether the process has ended.
    """

    process: WatchedProcess
    seen: Watch
    ended: bool = False


class Group:
    """The processes that are watched.

    Limits of open files and leaks are those of a process, so counts of several processes are not added up: the group
    leaks if one of its processes does, and does not if none does.

    Parameters
    ----------
    pids : sequence of int
    storage_dir : str, optional
        The folder of the page files, as the processes see it.
    horizon : float
        As for ``Watch``.
    find : callable, optional
        Returns the process ids to watch now, so that processes that start later are watched, too.

    Raises
    ------
    ConfigError
        When a process cannot be watched, or is the wrong one: without ``find``, when its child has the storage files.
    """

    def __init__(
        self,
        pids: Sequence[int],
        storage_dir: str | None = None,
        horizon: float = HORIZON,
        find: Callable[[], Iterable[int]] | None = None,
    ):
        self._storage_dir = storage_dir
        self._horizon = horizon
        self._find = find
        self._looked = time.monotonic()
        self._opened = False  # whether a storage file was seen
        self.members = [self._member(pid) for pid in dict.fromkeys(pids)]
        if find is None:
            self._check_children()

    def sample(self) -> Sample:
        """Take a sample of each process and return that of the first which lives.

        Raises
        ------
        ProcessGoneError
            When all have ended.
        ConfigError
            When it turns out that a child has the storage files.
        """
        samples: list[Sample] = []
        gone = ""
        for member in self.members:
            if member.ended:
                continue
            try:
                samples.append(member.process.sample())
            except ProcessGoneError as error:
                member.ended, gone = True, str(error)
            else:
                member.seen.add(samples[-1])
        self._opened = self._opened or any(member.seen.most("storage_fds") for member in self.members)
        for member in self.members:
            member.seen.opened = self._opened
        if not samples:
            raise ProcessGoneError(
                gone if len(self.members) == 1 else f"all {len(self.members)} processes have ended"
            )
        if time.monotonic() - self._looked >= LOOK_AROUND:
            self.look_around()
        return samples[0]

    def peek(self) -> bool:
        """Look for an open storage file between two samples; False when it need not be done again."""
        if self._storage_dir is not None and not self._opened:
            self._opened = any(member.process.has_storage_files() for member in self.members)
        return self._storage_dir is not None and not self._opened

    def alive(self) -> bool:
        """Return whether any has not ended."""
        return any(member.process.alive() for member in self.members if not member.ended)

    @property
    def judged(self) -> list[Member]:
        """The processes that the verdict is about.

        Those that live and those that leaked until their end, or all if there are none; without those that were seen
        only for a moment, if others were not.
        """
        living = [one for one in self.members if not one.ended or one.seen.found] or self.members
        return [member for member in living if member.seen.count >= NEEDED] or living

    @property
    def state(self) -> str:
        """One of ``verdict.STATES``."""
        states = {member.seen.state for member in self.judged}
        return next(state for state in (LEAK, UNDECIDED, NONE) if state in states)

    @property
    def seconds(self) -> float:
        """How long the group was watched."""
        return max(member.seen.seconds for member in self.members)

    def look_around(self) -> None:
        """Find processes that started since, or children that have the storage files."""
        if self._find is not None:
            known = {member.process.pid for member in self.members if not member.ended}
            for pid in self._find():
                with suppress(ConfigError):  # it has just ended, or cannot be inspected
                    if pid not in known:
                        self.members.append(self._member(pid))
        elif not self._opened:
            self._check_children()
        self._looked = time.monotonic()

    def _check_children(self) -> None:
        pids = {member.process.pid for member in self.members}
        for member in self.members:
            if not member.ended:
                member.process.check_children(pids)

    def _member(self, pid: int) -> Member:
        return Member(WatchedProcess(pid, self._storage_dir), Watch(self._horizon))
