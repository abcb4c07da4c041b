"""Tables as a reader sees them, in JupyterLab and on the pages of a report: numbers right, words left, no row numbers."""

from __future__ import annotations

import re
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
from IPython import get_ipython
from markupsafe import escape
from pandas.api.types import is_bool_dtype, is_numeric_dtype

MOST = 100  # rows
MISSING = "-"
INTERVAL = re.compile(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]")  # as Estimate prints it


def install() -> None:
    """Show tables in this style from now on, in the notebook that runs; nothing outside of one."""
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["text/html"].for_type(pd.DataFrame, as_html)


def as_html(frame: pd.DataFrame, most: int = MOST) -> str:
    """Return a table as HTML.

    An index that only counts rows is left out; another one becomes the first column.  The alignment is written at each
    cell, because JupyterLab aligns all of them to the right.

    Examples
    --------
    >>> as_html(pd.DataFrame({"open_fds": [167]}))
    '<table class="data"><thead><tr><th scope="col" style="text-align:right">open fds</th></tr></thead><tbody><tr><td style="text-align:right">167</td></tr></tbody></table>'
    """
    table = _flat(frame)
    if table.empty:
        return "<p>No rows.</p>"
    sides = ["right" if is_number(table.iloc[:, place]) else "left" for place in range(table.shape[1])]
    head = "".join(
        f'<th scope="col" style="text-align:{side}">{escape(str(column).replace("_", " "))}</th>'
        for column, side in zip(table.columns, sides, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align:{side}">{escape(shown(value))}</td>'
            for value, side in zip(row, sides, strict=True)
        )
        + "</tr>"
        for row in table.head(most).itertuples(index=False, name=None)
    )
    rest = f"<p>The first {most} of {len(table)} rows.</p>" if len(table) > most else ""
    return f'<table class="data"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{rest}'


def shown(value: Any) -> str:
    """Format a value of a table: four significant digits, whole numbers without a decimal point.

    Examples
    --------
    >>> shown(0.123456), shown(4167), shown(4167.0), shown(float("nan")), shown("set"), shown(True)
    ('0.1235', '4167', '4167', '-', 'set', 'yes')
    """
    if value is None or (np.isscalar(value) and pd.isna(value)) or value is pd.NA:
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
    return str(value)


def is_number(value: Any) -> bool:
    """Return whether a value is a number, or all values of a column are numbers, intervals or missing."""
    if not isinstance(value, pd.Series):
        return isinstance(value, Number) and not isinstance(value, bool)
    if is_numeric_dtype(value):
        return not is_bool_dtype(value)
    known = value.dropna()
    return len(known) > 0 and all(
        is_number(cell) or (isinstance(cell, str) and INTERVAL.fullmatch(cell)) for cell in known
    )


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table without an index, and with columns of one level."""
    across = " ".join(str(name) for name in frame.columns.names if name is not None)
    flat = frame.copy()
    flat.columns = pd.Index(
        [" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame.columns]
    )
    counted = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    if counted or (frame.index.nlevels == 1 and frame.index.name is None and is_numeric_dtype(frame.index)):
        return flat.reset_index(drop=True)
    names = [name if name is not None else "" for name in frame.index.names]
    flat.index.names = [f"{name} / {across}" if across else name for name in names]
    return flat.reset_index()
