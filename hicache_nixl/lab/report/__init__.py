"""Pages of a run that open offline: its index, its notebooks, and two runs side by side."""

from ..runs.record import Record, read_record
from .comparison import Comparison, compare_runs
from .index import build
from .notebook_page import write_notebook_page
from .pages import AltTextError

__all__ = [
    "AltTextError",
    "Comparison",
    "Record",
    "build",
    "compare_runs",
    "read_record",
    "write_notebook_page",
]
