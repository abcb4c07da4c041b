"""The first line of a notebook: its parameters become a run and a setup."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..worker.setup import Setup
from .run import Run
from .show import install

RENAMED = {"keys_per_call": "pages"}  # parameters that a setup knows by another name


def begin(notebook: str, namespace: Mapping[str, Any]) -> tuple[Setup, Run]:
    """Start the run of a notebook, after its parameters cell.

    Parameters
    ----------
    notebook : str
        Name without ending.
    namespace : mapping
        ``globals()``.  The parameters are its annotated names, ``queue: str = "libaio"``; a value that papermill
        injects after them is used.

    Returns
    -------
    Setup
        Of the lifetime ``leaky``, with the parameters that a setup has: ``queue``, ``page_bytes``, ``layout``,
        ``mla``, and ``keys_per_call`` as ``pages``.  ``setup.for_connector(name)`` is the same for another one.
    Run
        With all parameters noted, in ``run_dir``; ``run.storage_dir`` is the folder for the page files.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     names = {"queue": "io_uring", "run_dir": folder, "strict": True, "other": 1}
    ...     names["__annotations__"] = {"queue": str, "run_dir": str, "strict": bool}
    ...     setup, run = begin("00_example", names)
    >>> setup.queue, run.notebook
    ('io_uring', '00_example')
    """
    install()
    pd.set_option("display.max_colwidth", None, "display.max_rows", 200)
    parameters = {name: namespace[name] for name in namespace["__annotations__"]}
    fields = {field.name for field in dataclasses.fields(Setup)}
    named = {RENAMED.get(name, name): value for name, value in parameters.items()}
    setup = Setup(**{name: value for name, value in named.items() if name in fields})
    noted = {name: value for name, value in parameters.items() if name not in ("run_dir", "strict")}
    return setup, Run(notebook, parameters["run_dir"], noted, parameters["strict"])
