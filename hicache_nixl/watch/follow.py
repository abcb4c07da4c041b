"""Taking samples of processes until something ends the watch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import Event

from ..errors import ConfigError, FileError
from ..lab.worker.descriptors import ProcessGoneError
from .group import Group
from .recording import WatchFile
from .rule import NEEDED

SHORTEST, LONGEST = 0.05, 3600.0  # seconds between two samples
LONGEST_WATCH = 10 * 365 * 86400.0  # seconds
PEEK = 0.02  # seconds between two looks for the first storage file
SLICE = 1.0  # seconds after which, at the latest, the end of the process is noticed


def check_times(interval: float, duration: float | None) -> None:
    """Refuse times that cannot work: too short for as many samples as the rule needs, for instance."""
    if not SHORTEST <= interval <= LONGEST:  # false for nan as well
        raise ConfigError(f"--interval {interval:g}: expected {SHORTEST:g} to {LONGEST:g} seconds")
    shortest = interval * (NEEDED - 1)
    if duration is not None and not duration <= LONGEST_WATCH:  # false for nan as well
        raise ConfigError(
            f"--duration {duration:g}: expected a number of seconds, at most {LONGEST_WATCH:g}; without --duration the "
            "watch goes on until Ctrl-C"
        )
    if duration is not None and duration < shortest:
        raise ConfigError(
            f"--duration {duration:g}: expected {shortest:g} seconds or more, for {NEEDED} samples at --interval "
            f"{interval:g}"
        )


class Follower:
    """Takes samples of processes, judges and records them.

    Parameters
    ----------
    group : Group
    record : WatchFile, optional
        Where each sample of the first process is written.
    interval : float
        Seconds from sample to sample.
    duration : float, optional
        Seconds after which the watch ends.

    Attributes
    ----------
    broken : str or None
        Why the record ended before the watch did.
    """

    def __init__(
        self,
        group: Group,
        record: WatchFile | None = None,
        interval: float = 1.0,
        duration: float | None = None,
    ):
        check_times(interval, duration)
        self.broken: str | None = None
        self._group = group
        self._record = record
        self._interval = interval
        self._duration = duration

    def run(self, stop: Event, show: Callable[[], object], is_read: Callable[[], bool]) -> str:
        """Take samples until something ends the watch, and say what did.

        Parameters
        ----------
        stop : threading.Event
            Ends the watch between two samples.
        show : callable
            Called after each sample.
        is_read : callable
            Whether somebody reads what is shown; if not, the watch ends unless it has a record or a duration.
        """
        due = time.monotonic()
        end = math.inf if self._duration is None else due + self._duration
        while True:
            try:
                self._take_sample()
            except ProcessGoneError as error:
                return str(error)
            show()
            if not is_read() and self._record is None and self._duration is None:
                return "nobody reads the output"
            due = max(due + self._interval, time.monotonic())
            if self._wait(stop, min(due, end)):
                return "interrupted"
            # The wait also ends when the process does, which the next sample then reports.
            if due > end and time.monotonic() >= end:
                return "duration reached"

    def _take_sample(self) -> None:
        sample = self._group.sample()
        if self._record is None:
            return
        try:
            self._record.write(sample)
        except FileError as error:  # the watch matters more than its record
            self.broken = f"{self._record.path} ends after {sample.seconds:.0f} s: {error.strerror}"
            self._record = None

    def _wait(self, stop: Event, until: float) -> bool:
        """Wait until then, or until the process ends, and return whether the watch was stopped.

        Meanwhile look for a storage file, until the first was seen: calls may be much shorter than the interval.
        """
        looked = time.monotonic()
        while (left := until - time.monotonic()) > 0:
            began = time.monotonic()
            peeks = self._group.peek()
            spent = time.monotonic() - began
            if stop.wait(min(left, max(PEEK, 20 * spent) if peeks else SLICE)):
                return True
            if left > SLICE and time.monotonic() - looked >= SLICE:
                looked = time.monotonic()
                if not self._group.alive():
                    break
        return stop.is_set()
