"""Functions that Numba compiles to machine code: once for a machine, then it reads them from a cache."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

# Types of arguments and results, for mypy and for Numba.
Word = Annotated[Any, types.uint64]
Number = Annotated[Any, types.int64]
Flag = Annotated[Any, types.bool_]
Words = Annotated[npt.NDArray[np.uint64], types.Array(types.uint64, 1, "C")]
Table = Annotated[npt.NDArray[np.uint64], types.Array(types.uint64, 2, "C")]
Numbers = Annotated[npt.NDArray[np.int64], types.Array(types.int64, 1, "C")]
Flags = Annotated[npt.NDArray[np.bool_], types.Array(types.bool_, 1, "C")]
# What is only read may also be a part of another array.
ReadWords = Annotated[npt.NDArray[np.uint64], types.Array(types.uint64, 1, "A", readonly=True)]
ReadTable = Annotated[npt.NDArray[np.uint64], types.Array(types.uint64, 2, "A", readonly=True)]
ReadNumbers = Annotated[npt.NDArray[np.int64], types.Array(types.int64, 1, "A", readonly=True)]
ReadNumberTable = Annotated[npt.NDArray[np.int64], types.Array(types.int64, 2, "A", readonly=True)]


def compiled(function: Function, parallel: bool = False) -> Function:
    """Compile a function, whose arguments and result are annotated with types of this module.

    If it is ``parallel``, other threads run Python code meanwhile.

    The cache is in ``__pycache__`` beside the module, or in a folder of the user's where that cannot be written; where
    neither can, each process compiles for itself.  It is renewed when the file of the function changes, and not when
    that of a function changes that it calls: so functions that call each other are in one file.
    """
    hints = get_type_hints(function, include_extras=True)
    result, *arguments = (_type_of(hints[name]) for name in ("return", *_arguments(function)))
    try:
        made = numba.njit(result(*arguments), cache=True, nogil=parallel)(function)
    except RuntimeError:  # nowhere to write the cache
        made = numba.njit(result(*arguments), nogil=parallel)(function)
    if not made.stats.cache_hits:
        _say_why_it_takes_so_long()
    return made


@functools.cache
def _say_why_it_takes_so_long() -> None:
    logger.warning(
        "compiling the loops of pooled for this processor, which takes some 10 s and is kept for later"
    )


def _arguments(function: Any) -> tuple[str, ...]:
    code = function.__code__
    names: tuple[str, ...] = code.co_varnames[: code.co_argcount]
    return names


def _type_of(hint: Any) -> Any:
    if get_origin(hint) is tuple:
        return types.Tuple([_type_of(part) for part in get_args(hint)])
    return hint.__metadata__[0]
