"""The outcome of storing or loading one piece of a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What happened to one piece: moved, failed with an error, or not touched because of an error.

    Attributes
    ----------
    error : Exception or None
        Why the piece was not stored or loaded; None when all its bytes were.
    touched : bool
        False when the storage of this piece is as it was before the call.

    Examples
    --------
    >>> MOVED.moved, Outcome.failed(OSError("disk full")).moved
    (True, False)
    """

    error: Exception | None = None
    touched: bool = True

    @classmethod
    def failed(cls, error: Exception) -> Outcome:
        """Return the outcome of a piece of which some bytes may have been written."""
        return cls(error)

    @classmethod
    def not_touched(cls, error: Exception) -> Outcome:
        """Return the outcome of a piece that failed before anything was changed in storage."""
        return cls(error, touched=False)

    @property
    def moved(self) -> bool:
        """Whether all bytes were stored or loaded."""
        return self.error is None


MOVED = Outcome()
