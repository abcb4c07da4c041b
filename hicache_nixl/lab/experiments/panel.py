"""A control panel for a notebook: each change of a control runs a steady load and draws it."""

from __future__ import annotations

import base64
import html
import os
from io import BytesIO
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from matplotlib.figure import Figure

from ...config import LAYOUTS, LIFETIMES, QUEUES
from ...errors import HiCacheNixlError
from .. import figures
from ..worker.client import Worker
from ..worker.descriptors import count_fds
from ..worker.schedule import RECORDED_BASELINE, Schedule
from ..worker.setup import Setup

CALLS = 12
KEYS = [2**power for power in range(8)]  # 1 to 128, as many as a server puts into a call
TIMEOUT = 60  # seconds for the calls of one picture
WIDTH, LABEL = "700px", "110px"  # of the picture, and of the label in front of a control


def panel(
    *,
    storage_dir: str | os.PathLike[str] | None = None,
    page_bytes: int = 4096,
    baseline_fds: int = RECORDED_BASELINE,
    nofile_limit: int = 1024,
    run_dir: str = "",
) -> widgets.VBox | None:
    """Return controls for keys per call, layout, queue and lifetime over a plot of open descriptors.

    Each change runs twelve calls, sets and gets in turn, in a worker that ends after them.  No process, file or
    descriptor is kept between two changes.

    Parameters
    ----------
    storage_dir, page_bytes, baseline_fds, nofile_limit
        As in ``replay``.
    run_dir : str
        The notebook's parameter of that name; there is no panel in a run whose results are kept.

    Returns
    -------
    ipywidgets.VBox or None
        None in a headless run.
    """
    if run_dir or not attended():
        return None
    return Panel(storage_dir, page_bytes, baseline_fds, nofile_limit).box


def attended() -> bool:
    """Return whether this cell was run from an interactive front-end.

    Front-ends allow ``input()`` in the requests that they send to the kernel; papermill, nbconvert and nbclient do
    not.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    return bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


class Panel:
    """The controls, a status line below them, and the picture.

    Attributes
    ----------
    keys, layout, queue, lifetime : ipywidgets.Widget
        The controls; ``value`` is what was chosen.
    status : ipywidgets.Label
        What is running, the result, or the error, in one line.
    picture : ipywidgets.HTML
        The plot with an alternative text, which ``ipywidgets.Image`` does not support.
    box : ipywidgets.VBox
        All of them.
    table : pandas.DataFrame
        A row per call of the last picture, as from ``replay``.
    """

    def __init__(
        self,
        storage_dir: str | os.PathLike[str] | None,
        page_bytes: int,
        baseline_fds: int,
        nofile_limit: int,
    ):
        self._storage_dir = storage_dir
        self._page_bytes = page_bytes
        self._limits = {"baseline_fds": baseline_fds, "nofile_limit": nofile_limit}
        look: dict[str, Any] = {"style": {"description_width": LABEL}, "layout": {"width": "500px"}}
        self.lifetime = widgets.ToggleButtons(options=LIFETIMES)
        self.keys = widgets.SelectionSlider(
            options=KEYS, value=16, description="keys per call", continuous_update=False, **look
        )
        self.layout = widgets.Dropdown(options=LAYOUTS, value="page_first", description="layout", **look)
        self.queue = widgets.Dropdown(options=tuple(QUEUES), description="queue", **look)
        self.status = widgets.Label()
        self.picture = widgets.HTML()
        controls = [self.lifetime, self.keys, self.layout, self.queue]
        label = widgets.Label("lifetime", layout={"width": LABEL, "justify_content": "flex-end"})
        first = widgets.HBox([label, self.lifetime])  # its description would be in a line above the buttons
        self.box = widgets.VBox([first, *controls[1:], self.status, self.picture])
        self.table = pd.DataFrame()
        for control in controls:
            control.observe(self._changed, names="value")
        self.draw()

    def _changed(self, _change: Any) -> None:
        self.draw()

    def draw(self) -> None:
        """Run the calls for the current choice and draw them."""
        try:
            baseline = self._run()
        except HiCacheNixlError as error:
            self.picture.value = ""  # it belongs to another choice
            self.status.value = f"error: {str(error).splitlines()[0]}"
            return
        except KeyboardInterrupt:
            self.status.value = "interrupted; choose again"
            raise
        limit = self._limits["nofile_limit"]
        title = f"{self.lifetime.value}: {growth(self.table, baseline)}"
        alt = f"Open descriptors over {CALLS} calls, and the limit of {limit}. {title}."
        self.picture.value = image(
            figures.steps(self.table, baseline, limit, self.lifetime.value, title), alt
        )
        last = self.table.iloc[-1]
        self.status.value = (
            f"After {CALLS} calls, {last.storage_fds} storage files are open "
            f"and {last.registrations} NIXL registrations alive."
        )

    def _run(self) -> int:
        """Make the calls, fill the table, and return the count of descriptors before the first."""
        setup = Setup(
            self.lifetime.value,
            queue=self.queue.value,
            page_bytes=self._page_bytes,
            pages=self.keys.value,
            layout=self.layout.value,
        )
        self.status.value = "running ..."
        rows = []
        with Worker(setup, storage_dir=self._storage_dir, timeout=TIMEOUT, **self._limits) as worker:
            baseline = count_fds(worker.pid)
            for number, call in enumerate(Schedule.steady(CALLS, self.keys.value), 1):
                self.status.value = f"running call {number} of {CALLS} ..."
                rows.append({"call": number, **worker.call(call.operation, call.keys).as_columns()})
        self.table = pd.DataFrame(rows)
        return baseline


def image(figure: Figure, alt: str) -> str:
    """Return a figure as an HTML ``img`` element, and close it."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150)
    plt.close(figure)
    data = base64.b64encode(png.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}" style="width: {WIDTH}; max-width: 100%">'


def growth(table: pd.DataFrame, baseline: int) -> str:
    """Describe how the calls changed the number of open descriptors.

    Examples
    --------
    >>> growth(pd.DataFrame({"call": [1, 2], "keys": 16, "open_fds": [167, 167], "errno": [0, 24]}), 135)
    '+32 descriptors per call of 16 keys, until call 2 meets EMFILE'
    """
    counts = [baseline, *table.open_fds[table.errno == 0]]
    steps = sorted(set(pd.Series(counts).diff().dropna().astype(int))) or [0]
    keys = int(table["keys"].iloc[0])
    rate = " or ".join(f"{step:+d}" for step in steps)
    text = f"{rate} descriptors per call of {keys} key{'s' * (keys != 1)}"
    failed = table[table.errno == 24]
    return f"{text}, until call {failed.call.iloc[0]} meets EMFILE" if len(failed) else text
