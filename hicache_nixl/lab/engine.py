"""How papermill runs a notebook here: it tells how far it is, keeps the kernel's own output, and Ctrl-C ends it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.log import logger

NAME = "hicache-nixl"
QUIET = logging.getLogger(f"{__name__}.interrupted")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False
OnCell = Callable[[int, int], object]  # code cells done, and how many there are


class Engine(NBClientEngine):
    """Papermill's engine with more options.

    ``on_cell`` is called before the first cell and after each; ``on_interrupt`` when Ctrl-C came, before the kernel is
    ended, which takes some seconds; ``kernel_output`` is a file for what the kernel's
    process prints besides the outputs of cells, which would otherwise come into the terminal.
    """

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        *,
        on_cell: OnCell,
        on_interrupt: Callable[[], object],
        kernel_output: IO[bytes],
        execution_timeout: int | None = None,
        start_timeout: int = 60,
        **options: Any,
    ) -> Any:
        """Run the notebook; called by papermill."""
        options.pop("input_path", None)
        client = _Client(
            nb_man,
            kernel_name=kernel_name,
            timeout=execution_timeout,
            startup_timeout=start_timeout,
            log=logger,
            **options,
        )
        client.on_cell, client.on_interrupt = on_cell, on_interrupt
        return client.execute(stdout=kernel_output, stderr=kernel_output)


class _Client(PapermillNotebookClient):
    on_cell: OnCell
    on_interrupt: Callable[[], object]

    def papermill_execute_cells(self) -> None:
        """Run the cells; an interrupt is raised here, where nbclient would only end the kernel."""
        code = [index for index, cell in enumerate(self.nb.cells) if cell.cell_type == "code"]
        completed = self.nb_man.cell_complete

        def counted(cell: Any, cell_index: int, **more: Any) -> None:
            completed(cell, cell_index=cell_index, **more)
            self.on_cell(sum(index <= cell_index for index in code), len(code))

        self.nb_man.cell_complete = counted
        self.on_cell(0, len(code))
        try:
            with interruptible():
                super().papermill_execute_cells()
        except KeyboardInterrupt:
            # What still waits for the kernel is told that it died, and would say so in the middle of the progress.
            self.log = QUIET
            logging.getLogger("asyncio").addFilter(_no_dead_kernel)
            self.on_interrupt()
            raise


def _no_dead_kernel(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], DeadKernelError))


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT and SIGTERM; in another thread than the main one, signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


papermill_engines.register(NAME, Engine)
