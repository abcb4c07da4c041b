"""Functions that Numba compiles to machine code: once for a machine, then it reads them from a cache."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import binding
from numba.core import types

from ...errors import ConfigError

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

# Types of arguments and results, for mypy and for Numba.
Word = Annotated[Any, types.uint64]
Number = Annotated[Any, types.int64]
Flag = Annotated[Any, types.bool_]
Words = Annotated[npt.NDArray[np.uint64], types.Array(types.uint64, 1, "C")]
Matrix = Annotated[npt.NDArray[np.uint64], types.Array(types.uint64, 2, "C")]
Numbers = Annotated[npt.NDArray[np.int64], types.Array(types.int64, 1, "C")]
Flags = Annotated[npt.NDArray[np.bool_], types.Array(types.bool_, 1, "C")]
# What is only read may also be a part of another array.
ReadWords = Annotated[npt.NDArray[np.uint64], types.Array(types.uint64, 1, "A", readonly=True)]
ReadMatrix = Annotated[npt.NDArray[np.uint64], types.Array(types.uint64, 2, "A", readonly=True)]
ReadNumbers = Annotated[npt.NDArray[np.int64], types.Array(types.int64, 1, "A", readonly=True)]
ReadNumberMatrix = Annotated[npt.NDArray[np.int64], types.Array(types.int64, 2, "A", readonly=True)]

_said: list[str] = []
SOURCES = ("compiled.py", "kernels.py", "pieces.py", "row.py", "words.py", "xxh3.py")


@functools.cache
def _version() -> str:
    """Return what is different for other sources, another Numba, and another processor."""
    folder, told = Path(__file__).parent, hashlib.sha256()
    for name in SOURCES:
        told.update((folder / name).read_bytes())
    told.update(
        f"{numba.__version__} {binding.get_host_cpu_name()} {binding.get_host_cpu_features()}".encode()
    )
    return told.hexdigest()[:12]


def compiled(function: Function) -> Function:
    """Compile a function, whose arguments and result are annotated with types of this module.

    The cache is in ``__pycache__`` beside the module, or in a folder of the user's where that cannot be written
    (``NUMBA_CACHE_DIR``).  Numba renews it when the file of a function changes, but not for other files, and what a
    killed process left may be taken for new: so the names of its files have a hash of all that matters.
    """
    return _compiled(function, unlocked=False)


def unlocked(function: Function) -> Function:
    """Compile a function that runs without the interpreter's lock: other threads run Python code meanwhile."""
    return _compiled(function, unlocked=True)


def _compiled(function: Function, unlocked: bool) -> Function:
    if getattr(numba.config, "DISABLE_JIT", False):
        raise ConfigError("lifetime: pooled needs Numba's compiler; unset NUMBA_DISABLE_JIT")
    hints = get_type_hints(function, include_extras=True)
    result, *arguments = (_type_of(hints[name]) for name in ("return", *_arguments(function)))
    function.__qualname__ += f"_{_version()}"
    try:
        made = numba.njit(result(*arguments), cache=True, nogil=unlocked)(function)
        if not made.stats.cache_hits:
            _say("and kept for later")
    except Exception as error:  # nowhere to write the cache, no room for it, or it is damaged
        made = numba.njit(result(*arguments), nogil=unlocked)(function)
        _say(f"each time, since Numba's cache cannot be used: {error}; see NUMBA_CACHE_DIR")
    return made


def _say(what_then: str) -> None:
    """Say once what takes so long."""
    if not _said:
        _said.append(what_then)
        logger.warning("the loops of pooled are compiled, which takes some 10 s, %s", what_then)


def _arguments(function: Any) -> tuple[str, ...]:
    code = function.__code__
    names: tuple[str, ...] = code.co_varnames[: code.co_argcount]
    return names


def _type_of(hint: Any) -> Any:
    if get_origin(hint) is tuple:
        return types.Tuple([_type_of(part) for part in get_args(hint)])
    return hint.__metadata__[0]
