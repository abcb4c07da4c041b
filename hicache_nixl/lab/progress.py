"""Progress bars: text in a terminal, widgets in a notebook."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm as _chosen

IN_NOTEBOOK = any(base.__module__ == "tqdm.notebook" for base in _chosen.__mro__)


class WidgetBar(_chosen):
    """A bar whose output is emptied when it is done.

    A closed widget remains an output of its cell, and shows an error about a missing model when the notebook is
    opened again.
    """

    _shown: Any = None

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, display=False, **options)
        if not self.disable:
            from IPython.display import display  # only here: a worker and the command must not carry IPython

            self._shown = display(self.container, display_id=True)

    def close(self) -> None:
        """End the bar and empty its output; may be called twice."""
        super().close()
        if self._shown is not None:
            self.container.close()
            self._shown.update({"text/html": ""}, raw=True)
            self._shown = None


class TextBar(_chosen):
    """A bar in a terminal, and nothing in a file or a pipe, where each step would be one more line."""

    def __init__(self, *args: Any, disable: bool | None = None, **options: Any):
        super().__init__(*args, disable=disable, **options)


tqdm = WidgetBar if IN_NOTEBOOK else TextBar
