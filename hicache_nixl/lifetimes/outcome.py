"""The outcome of storing or loading a page, or one piece of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What happened to a page or piece: moved, failed with an error, or not touched because of an error.

    Attributes
    ----------
    error : Exception or None
        Why it was not stored or loaded; None when all its bytes were.
    touched : bool
        False when its storage is as it was before the call.

    Examples
    --------
    >>> MOVED.moved, Outcome.failed(OSError("disk full")).moved
    (True, False)
    """

    error: Exception | None = None
    touched: bool = True

    @classmethod
    def failed(cls, error: Exception) -> Outcome:
        """Return the outcome of what may have been written in part."""
        return cls(error)

    @classmethod
    def not_touched(cls, error: Exception) -> Outcome:
        """Return the outcome of what failed before anything was changed in storage."""
        return cls(error, touched=False)

    @property
    def moved(self) -> bool:
        """Whether all bytes were stored or loaded."""
        return self.error is None


MOVED = Outcome()
