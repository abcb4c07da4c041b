"""What the samples of a process say together: whether it leaks, how fast, and how long until its limit."""

from __future__ import annotations

import pandas as pd

from ..lab.statistics import Estimate
from . import wording
from .rule import NEEDED, Track
from .sample import COUNTS, KINDS, NAMES, Sample
from .series import Samples

AT_LIMIT = 0.99  # of the limit; a call that does not fit closes again what it had opened


class Watch:
    """What a series of samples says, sample by sample, in bounded memory.

    Leaks are judged on the storage files where a folder was named, else on the regular files.

    Attributes
    ----------
    first, last : Sample or None
    """

    def __init__(self) -> None:
        self._samples = Samples()
        self._tracks = {name: Track(page_files=name == "storage_fds") for name in COUNTS}
        self._most = dict.fromkeys(COUNTS, 0)
        self.first: Sample | None = None
        self.last: Sample | None = None

    @classmethod
    def of(cls, table: pd.DataFrame) -> Watch:
        """Judge a table of ``read_watch`` as it would have been judged live."""
        watch = cls()
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
        views = self._samples.views()
        for number, (name, track) in enumerate(self._tracks.items()):
            self._most[name] = max(self._most[name], counts[name])
            track.update(sample.seconds, counts[name], [view.column(number) for view in views])

    @property
    def count(self) -> int:
        """The number of samples."""
        return self._samples.count

    @property
    def seconds(self) -> float:
        """How long it was watched."""
        return self.last.seconds if self.last else 0.0

    @property
    def judged(self) -> str:
        """The column that a leak is judged on."""
        return "regular" if self.last is None or self.last.storage_fds is None else "storage_fds"

    @property
    def found(self) -> bool:
        """Whether a leak was found, and has not been closed again."""
        return self.grows(self.judged)

    @property
    def settled(self) -> bool:
        """Whether the answer is yes or no: a leak was found, or enough samples show none."""
        return self.found or not (self.at_limit() or self.count < NEEDED or self.track().unsettled)

    @property
    def leak(self) -> Estimate | None:
        """The growth per minute of what is judged: while it leaked if a leak was found, else over all."""
        return self.track().found or self.growth(self.judged)

    def track(self, column: str | None = None) -> Track:
        """Return what the rule says of a column, of the one that is judged when left out."""
        return self._tracks[column or self.judged]

    def growth(self, column: str = "open_fds") -> Estimate | None:
        """Return the growth per minute of a column now; None for too few samples."""
        return self._tracks[column].growth

    def most(self, column: str) -> int:
        """Return the highest count of a column so far."""
        return self._most[column]

    def grows(self, column: str) -> bool:
        """Return whether the rule found that a column grows."""
        return self._tracks[column].found_at is not None

    def growing(self) -> bool:
        """Return whether any kind that was found to grow still does."""
        return any(track.growing for name, track in self._tracks.items() if name != "open_fds")

    def shown(self) -> list[str]:
        """Return the columns that are worth a row, all descriptors last."""
        names = [name for name in COUNTS[1:] if self._most[name] or name == self.judged]
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

    def at_limit(self) -> bool:
        """Return whether the process can open next to nothing more."""
        last = self.last
        return (
            last is not None and last.limit is not None and last.counts["open_fds"] >= AT_LIMIT * last.limit
        )

    def seconds_left(self) -> Estimate | None:
        """Return the seconds until the limit at the growth that was found; None without such growth.

        Kinds that still grow count together.  When none does any more, it is the growth that there was.
        """
        grown = [track for name, track in self._tracks.items() if name != "open_fds" and track.found]
        rates = [track.found for track in grown if track.growing] or [track.found for track in grown]
        found = [rate for rate in rates if rate is not None]
        if self.last is None or self.last.limit is None or not found:
            return None
        median, low, high = (sum(getattr(rate, name) for rate in found) for name in ("median", "low", "high"))
        free = 60 * max(0, self.last.limit - self.last.counts["open_fds"])
        return Estimate(free / median, free / high, free / low, min(rate.count for rate in found))

    def answer(self) -> str:
        """Say in one line whether there is a leak."""
        return wording.answer(self)
