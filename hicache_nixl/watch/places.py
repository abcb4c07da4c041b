"""Where the open files of a process are, and where they became more."""

from __future__ import annotations

import os
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

LATEST = 3  # samples whose lowest count is taken, so that files of a running call are not counted
SHOWN = 5


@dataclass(frozen=True)
class Place:
    """A folder or a file whose open descriptors became more.

    Attributes
    ----------
    path : str
    grown : int
        Descriptors more than at the first sample.
    now : int
        Descriptors.
    """

    path: str
    grown: int
    now: int


class Places:
    """The open files of a process: of the first sample, and of the latest ones."""

    def __init__(self) -> None:
        self._first: Counter[str] | None = None
        self._latest: deque[Counter[str]] = deque(maxlen=LATEST)

    def add(self, files: Counter[str]) -> None:
        """Add the descriptors on each file of a sample."""
        if self._first is None:
            self._first = files
        self._latest.append(files)

    @property
    def now(self) -> Counter[str]:
        """The descriptors on each file at the latest sample."""
        return self._latest[-1] if self._latest else Counter()

    def files(self) -> list[Place]:
        """Return the files that have more descriptors than at first, those that grew most."""
        return _grown(self._first or Counter(), _stays(self._latest))

    def folders(self) -> list[Place]:
        """Return the folders whose files have more descriptors than at first, those that grew most.

        The first one is the deepest folder with more than half of the growth, where that is not one of the others.
        """
        before, after = self._first or Counter(), _stays(self._latest)
        first, now = _by_folder(before), _by_folder(after)
        grown = _grown(first, now)
        common = deepest(after - before)
        if common is None or any(place.path == common for place in grown):
            return grown
        count = _below(now, common)
        return [Place(common, count - _below(first, common), count), *grown[: SHOWN - 1]]


def deepest(counts: Counter[str]) -> str | None:
    """Return the deepest folder that holds more than half of what is counted by path; None for the root.

    Examples
    --------
    >>> deepest(Counter({"/mnt/a/1": 3, "/mnt/b/2": 2, "/tmp/c": 1}))
    '/mnt'
    """
    below: Counter[str] = Counter()
    for folder, count in _by_folder(counts).items():
        for parent in (folder, *(str(path) for path in Path(folder).parents)):
            below[parent] += count
    most = max((folder for folder in below if 2 * below[folder] > counts.total()), key=len, default="/")
    return None if most == "/" else most


def _stays(latest: deque[Counter[str]]) -> Counter[str]:
    counts, *others = latest or [Counter()]
    for other in others:
        counts = counts & other  # the lower count of each
    return counts


def _by_folder(files: Counter[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path, count in files.items():
        counts[os.path.dirname(path)] += count
    return counts


def _below(folders: Counter[str], folder: str) -> int:
    return sum(count for path, count in folders.items() if f"{path}/".startswith(f"{folder}/"))


def _grown(first: Counter[str], now: Counter[str]) -> list[Place]:
    more = (now - first).most_common(SHOWN)
    return [Place(path, grown, now[path]) for path, grown in more]
