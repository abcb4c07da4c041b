"""What the samples of a process say together: whether it leaks, how fast, and how long until its limit."""

from __future__ import annotations

import math

import pandas as pd

from ..lab.statistics import Estimate
from . import wording
from .rule import HOLD, Track, look
from .sample import COUNTS, KINDS, NAMES, Sample
from .series import Samples

AT_LIMIT = 0.99  # of the limit; a call that does not fit closes again what it had opened
HORIZON = 24.0  # hours
LEAK, NONE, UNDECIDED = STATES = ("leak", "no leak", "undecided")


class Watch:
    """What a series of samples says, sample by sample, in bounded memory.

    Every kind of descriptor is judged by itself.  It leaks while its growth is above zero.  It does not leak when
    growth that would reach the limit within the horizon is excluded.  Anything else is undecided.

    Parameters
    ----------
    horizon : float
        Hours in which growth has to reach the limit to matter.

    Attributes
    ----------
    first, last : Sample or None
    opened : bool
        Whether a storage file was seen between two samples, or in another process that is watched.
    """

    def __init__(self, horizon: float = HORIZON) -> None:
        self.horizon = horizon
        self._samples = Samples()
        self._tracks = {name: Track(page_files=name == "storage_fds") for name in COUNTS}
        self._most = dict.fromkeys(COUNTS, 0)
        self.first: Sample | None = None
        self.last: Sample | None = None
        self.opened = False

    @classmethod
    def of(cls, table: pd.DataFrame, horizon: float = HORIZON) -> Watch:
        """Judge a table of ``read_watch`` as it would have been judged live."""
        watch = cls(horizon)
        for row in table.to_dict("records"):
            storage, limit = (
                None if pd.isna(row[name]) else int(row[name]) for name in ("storage_fds", "limit")
            )
            kinds = {kind: int(row[kind]) for kind in KINDS}
            watch.add(Sample(row["time"], row["seconds"], storage, kinds, limit))
        return watch

    def add(self, sample: Sample) -> None:
        """Add a sample."""
        counts = sample.counts
        self.first = self.first or sample
        self.last = sample
        self._samples.add(sample.seconds, [counts[name] for name in COUNTS])
        views = look(self._samples)
        for number, (name, track) in enumerate(self._tracks.items()):
            self._most[name] = max(self._most[name], counts[name])
            columns = [view.column(number) for view in views]
            track.update(sample.seconds, counts[name], columns, full=self.at_limit())

    @property
    def count(self) -> int:
        """The number of samples."""
        return self._samples.count

    @property
    def seconds(self) -> float:
        """How long it was watched."""
        return self.last.seconds if self.last else 0.0

    @property
    def kinds(self) -> list[str]:
        """The columns that are judged, storage files first where a folder was named."""
        named = self.last is not None and self.last.storage_fds is not None
        return ["storage_fds", *KINDS] if named else list(KINDS)

    @property
    def leaks(self) -> list[str]:
        """The columns that leak now, the fastest first."""
        found = [name for name in self.kinds if self.grows(name)]
        return sorted(found, key=lambda name: -grown.median if (grown := self.growth(name)) else 0.0)

    @property
    def judged(self) -> str:
        """The column that the answer is about."""
        return next(iter(self.leaks), self.kinds[0])

    @property
    def found(self) -> bool:
        """Whether anything leaks now."""
        return bool(self.leaks)

    @property
    def settled(self) -> bool:
        """Whether the answer is yes or no."""
        return self.state != UNDECIDED

    @property
    def state(self) -> str:
        """One of ``STATES``."""
        if self.found:
            return LEAK
        return NONE if wording.open_question(self) is None else UNDECIDED

    @property
    def leak(self) -> Estimate | None:
        """The current growth per minute of what is judged."""
        return self.growth(self.judged)

    @property
    def matters(self) -> float:
        """The growth per minute that would reach the limit within the horizon."""
        if self.last is None or self.last.limit is None:
            return math.inf
        return max(0, self.last.limit - self.last.counts["open_fds"]) / (60 * self.horizon)

    def not_excluded(self) -> str | None:
        """Return the kind that may grow so fast that it matters; the one that may grow fastest."""
        open_ = {name: grown.high for name in self.kinds if (grown := self.growth(name)) is not None}
        fastest = max(open_, key=lambda name: open_[name], default=None)
        return fastest if fastest is not None and open_[fastest] >= self.matters else None

    def may_leak(self) -> str | None:
        """Return a kind whose growth is above zero, and was not for long enough to be found a leak."""
        return next(
            (name for name in self.kinds if (grown := self.growth(name)) is not None and grown.low > 0), None
        )

    def seconds_to_find(self, name: str) -> float:
        """Return how long growth above zero has to be seen still, at most, to be found a leak."""
        return HOLD * (self.seconds - self._tracks[name].since)

    def is_idle(self) -> bool:
        """Return whether no folder was named, and no regular file was opened or closed from sample to sample."""
        steps = self._tracks["regular"].steps
        return "storage_fds" not in self.kinds and steps.count == 0 and not steps.fell

    def seconds_to_decide(self, name: str) -> float:
        """Return how long to watch still until growth of a kind that matters will be found or excluded.

        The interval is taken to narrow with the time watched.  It does so where what leaks is rare; beside calls that
        open and close files it narrows faster, and where leaks come in irregular bursts, more slowly.
        """
        grown = self.growth(name)
        if grown is None or self.matters == 0:
            return math.inf
        middle = max(0.0, min(grown.median, self.matters))
        apart = max(self.matters - middle, middle)
        measured = self.seconds - self._tracks[name].since
        return measured * max(0.1, max(grown.high - middle, middle - grown.low) / apart - 1)

    def never_opened(self) -> bool:
        """Return whether no sample has an open storage file; without a storage folder, whether no count ever changed."""
        if "storage_fds" in self.kinds:
            return not (self._most["storage_fds"] or self.opened)
        return not any(track.steps.count or track.steps.fell for track in self._tracks.values())

    def track(self, column: str | None = None) -> Track:
        """Return what the rule says of a column, of the one that is judged when left out."""
        return self._tracks[column or self.judged]

    def growth(self, column: str = "open_fds") -> Estimate | None:
        """Return the growth per minute of a column now; None for too few samples."""
        return self._tracks[column].now

    def most(self, column: str) -> int:
        """Return the highest count of a column so far."""
        return self._most[column]

    def grows(self, column: str) -> bool:
        """Return whether the rule found that a column grows now."""
        return self._tracks[column].found_at is not None

    def shown(self) -> list[str]:
        """Return the columns that are worth a row, all descriptors last."""
        names = [name for name in COUNTS[1:] if self._most[name] or name == self.kinds[0]]
        return [*names, "open_fds"]

    def table(self) -> pd.DataFrame:
        """Return a row for each kind: ``now``, ``most``, ``per_minute`` with ``low`` and ``high``, ``grows``."""
        rows = []
        for name in self.shown():
            now, grown = self.last.counts[name] if self.last else 0, self.growth(name)
            values = (grown.median, grown.low, grown.high) if grown else (None, None, None)
            rows.append((NAMES[name], now, self.most(name), *values, self.grows(name)))
        columns = ["descriptors", "now", "most", "per_minute", "low", "high", "grows"]
        return pd.DataFrame(rows, columns=columns)

    def series(self) -> pd.DataFrame:
        """Return the samples, ``seconds`` and each count; on a long watch the lowest of several in a row."""
        if not self.count:
            return pd.DataFrame(columns=["seconds", *COUNTS])
        whole = self._samples.views()[0]
        return pd.DataFrame(whole.low, columns=list(COUNTS)).assign(seconds=whole.seconds)

    def at_limit(self) -> bool:
        """Return whether the process can open next to nothing more."""
        last = self.last
        return (
            last is not None and last.limit is not None and last.counts["open_fds"] >= AT_LIMIT * last.limit
        )

    def seconds_left(self) -> Estimate | None:
        """Return the seconds until the limit at the growth of all kinds that leak; None where none does."""
        found = [grown for name in self.leaks if (grown := self.growth(name)) is not None and grown.low > 0]
        if self.last is None or self.last.limit is None or not found:
            return None
        median, low, high = (sum(getattr(rate, name) for rate in found) for name in ("median", "low", "high"))
        free = 60 * max(0, self.last.limit - self.last.counts["open_fds"])
        return Estimate(free / median, free / high, free / low, min(rate.count for rate in found))

    def answer(self) -> str:
        """Say in one line whether there is a leak."""
        return wording.answer(self)
