"""Standard output and error whose reader may go away, and whose disk may be full."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ..errors import HiCacheNixlError


class OutputError(HiCacheNixlError):
    """Standard output cannot be written to."""


class Guarded:
    """A stream that is dropped once it cannot be written to.

    A reader that goes away, as under ``| head``, changes nothing else: the command runs to its end, and ends with the
    exit code that it would have had.  Any other error of standard output is raised, once, as ``OutputError``; errors of
    standard error are ignored, since there is nowhere to report them.

    Attributes
    ----------
    lost : bool
        Whether what is written goes nowhere.
    """

    def __init__(self, stream: TextIO, needed: bool):
        self.lost = False
        self._stream = stream
        self._needed = needed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, and return its length."""
        if text == "":  # how typer asks whether it is a stream of text; an error would be taken for an answer
            return 0
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        self.lost = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(
            nowhere, self._stream.fileno()
        )  # for what is buffered, which is written at exit at the latest
        os.close(nowhere)
        if self._needed and error.errno != errno.EPIPE:
            raise OutputError(f"cannot write to standard output: {error.strerror}") from None


@contextmanager
def guarded() -> Iterator[None]:
    """Guard both streams, and flush them at the end."""
    before = sys.stdout, sys.stderr
    if sys.stdout is not None:  # it is None where it was closed
        sys.stdout = Guarded(sys.stdout, needed=True)
    if sys.stderr is not None:
        sys.stderr = Guarded(sys.stderr, needed=False)
    try:
        yield
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        finally:
            sys.stdout, sys.stderr = before
