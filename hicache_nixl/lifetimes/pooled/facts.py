"""What an inspection finds in a store."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Segment:
    """A segment that holds pages.

    Attributes
    ----------
    number, generation, taken : int
        ``taken`` is when it got its generation, in seconds since 1970.
    used, live, dead : int
        Bytes behind which there is room; those of pages; and those of pages that are stored again elsewhere or
        were cleared, with gaps.
    pages : int
    is_written, is_read : bool
        Whether a process is its writer; whether one reads from it or writes to it at the moment.
    """

    number: int
    generation: int
    taken: int
    used: int
    live: int
    dead: int
    pages: int
    is_written: bool
    is_read: bool


@dataclass(frozen=True)
class Facts:
    """What is in a store.

    Attributes
    ----------
    path : str
    format : int
    in_use : bool
        Whether a process has it open.
    pages, stored, dead : int
        ``stored`` and ``dead`` in bytes, see ``Segment``.
    capacity, segment_bytes, most_segments : int
    segments : list of Segment
        Oldest first.
    spaces : dict
        Number of pages by space: a hash of model, rank, layout and pieces, in hexadecimal.
    index : dict
        ``file``, ``bytes``, ``slots``, ``occupied`` slots, and ``load``, the part of slots that is occupied.
    counters : dict
        By the names in ``state.COUNTERS``.
    """

    path: str
    format: int
    in_use: bool
    pages: int
    stored: int
    dead: int
    capacity: int
    segment_bytes: int
    most_segments: int
    segments: list[Segment]
    spaces: dict[str, int]
    index: dict[str, Any]
    counters: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Damaged:
    """A page with other bytes than were stored.

    Attributes
    ----------
    key : str
        64 hexadecimal digits: SGLang's key, or the hash of another one.
    segment, offset, size : int
    problem : str
    """

    key: str
    segment: int
    offset: int
    size: int
    problem: str
