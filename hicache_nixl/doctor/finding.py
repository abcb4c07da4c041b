"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, NO = "ok", "note", "no"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    what : str
    state : str
        ``OK``, ``NOTE`` (it works, with a limitation) or ``NO``.
    detail : str
    advice : str
        What to do about it; empty when there is nothing to do.
    """

    what: str
    state: str
    detail: str
    advice: str = ""
