"""Taking samples of a process until something ends the watch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import Event

from ..errors import ConfigError, FileError
from ..lab.worker.descriptors import ProcessGoneError
from .process import WatchedProcess
from .recording import WatchFile
from .rule import NEEDED
from .verdict import Watch

SHORTEST, LONGEST = 0.05, 3600.0  # seconds between two samples
SLICE = 1.0  # seconds after which, at the latest, the end of the process is noticed


def check_times(interval: float, duration: float | None) -> None:
    """Refuse times that cannot work: too short for as many samples as the rule needs, for instance."""
    if not SHORTEST <= interval <= LONGEST:  # false for nan as well
        raise ConfigError(f"--interval {interval:g}: expected {SHORTEST:g} to {LONGEST:g} seconds")
    shortest = interval * (NEEDED - 1)
    if duration is not None and not shortest <= duration < math.inf:
        raise ConfigError(
            f"--duration {duration:g}: expected {shortest:g} seconds or more, for {NEEDED} samples at --interval "
            f"{interval:g}"
        )


class Follower:
    """Takes samples of a process, judges and records them.

    Parameters
    ----------
    process : WatchedProcess
    record : WatchFile, optional
        Where each sample is written.
    interval : float
        Seconds from sample to sample.
    duration : float, optional
        Seconds after which the watch ends.

    Attributes
    ----------
    seen : Watch
        What the samples say.
    broken : str or None
        Why the record ended before the watch did.
    """

    def __init__(
        self,
        process: WatchedProcess,
        record: WatchFile | None = None,
        interval: float = 1.0,
        duration: float | None = None,
    ):
        check_times(interval, duration)
        self.seen = Watch()
        self.broken: str | None = None
        self._process = process
        self._record = record
        self._interval = interval
        self._duration = duration

    def run(self, stop: Event, show: Callable[[Watch], object], is_read: Callable[[], bool]) -> str:
        """Take samples until something ends the watch, and say what did.

        Parameters
        ----------
        stop : threading.Event
            Ends the watch between two samples.
        show : callable
            Called with ``seen`` after each sample.
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
            show(self.seen)
            if not is_read() and self._record is None and self._duration is None:
                return "nobody reads the output"
            due = max(due + self._interval, time.monotonic())
            if self._wait(stop, min(due, end)):
                return "interrupted"
            # The wait also ends when the process does, which the next sample then reports.
            if due > end and time.monotonic() >= end:
                return "duration reached"

    def _take_sample(self) -> None:
        sample = self._process.sample()
        self.seen.add(sample)
        if self._record is None:
            return
        try:
            self._record.write(sample)
        except FileError as error:  # the watch matters more than its record
            self.broken = f"{self._record.path} ends after {sample.seconds:.0f} s: {error.strerror}"
            self._record = None

    def _wait(self, stop: Event, until: float) -> bool:
        """Wait until then, or until the process ends, and return whether the watch was stopped."""
        while (left := until - time.monotonic()) > 0:
            if stop.wait(min(left, SLICE)):
                return True
            if left > SLICE and not self._process.alive():
                break
        return stop.is_set()
