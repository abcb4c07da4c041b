"""A process of its own for each point: it runs notebooks, or finds the facts of its host, and ends with its worker.

Its standard input is a request, one line of JSON, and then nothing: where it ends, the worker is gone or wants an end,
and the process ends as after Ctrl-C, with its kernels.  Its standard output is the answer: one line of JSON, then the
folder of the run as a tar file.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ...errors import ConfigError

ENDED, INTERRUPTED, REFUSED = "ended", "interrupted", "refused"
WAIT = 0.2  # seconds between two tries to lock the machine
ENDING = 90.0  # seconds to end in, more than a worker waits before it kills this process


def main() -> None:
    """Answer one request."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # what a library prints is no part of the answer
        request = json.loads(sys.stdin.readline())
        folder = Path(request["folder"])  # made by its worker, which may be gone at the end
        try:
            threading.Thread(target=_end_with_the_worker, args=(folder,), daemon=True).start()
            with _alone(Path(request["lock"]), request["exclusive"]):
                told, run = ACTIONS[request["action"]](request, folder)
        except ConfigError as error:
            told, run = {"state": REFUSED, "reason": str(error)}, None
        except KeyboardInterrupt:
            told, run = {"state": INTERRUPTED}, None
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _send(answer, told, run)
    shutil.rmtree(folder, ignore_errors=True)


def _end_with_the_worker(folder: Path) -> None:
    """Interrupt this process once its worker is gone; one that hangs would have the machine's lock for ever."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(ENDING)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _alone(path: Path, exclusive: bool) -> Iterator[None]:
    """Wait until nothing runs on this machine beside which this must not; the kernel unlocks what a process had locked.

    Dask counts shares for each worker.  A machine may have several, and a new one while the process of the last ends.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)) as file:
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(WAIT)  # not in flock, which a signal just before it would not end
        yield


def _send(answer: IO[bytes], told: dict[str, Any], run: Path | None) -> None:
    answer.write(json.dumps(told).encode() + b"\n")
    if run is not None:
        # most of it are pictures, which do not become smaller
        with tarfile.open(fileobj=answer, mode="w:gz", compresslevel=1) as archive:
            archive.add(run, arcname=".")


def _run(request: dict[str, Any], folder: Path) -> tuple[dict[str, Any], Path | None]:
    """Run the notebooks of the request, whose text comes with it, as ``reproduce`` does."""
    from ..execute import execute

    known = {name: folder / f"{name}.ipynb" for name in request["notebooks"]}
    for name, path in known.items():
        path.write_text(request["notebooks"][name], encoding="utf-8")
    result = execute(
        list(known),
        profile=request["profile"],
        parameters=request["parameters"],
        run=request["slug"],
        runs=folder / "runs",
        known=known,
    )
    if result.interrupted is not None:
        return {"state": INTERRUPTED}, None
    crashed = [str(outcome.error) for outcome in result.outcomes if outcome.crashed]
    told = {
        "state": ENDED,
        "reason": "; ".join(crashed),
        "verdict": result.verdict,
        "errors": result.errors(),
        "seconds": sum(outcome.seconds for outcome in result.outcomes),
    }
    return told, result.folder


def _facts(request: dict[str, Any], folder: Path) -> tuple[dict[str, Any], None]:
    """Find the facts of this host: as ``doctor`` finds them, or of a new folder in ``storage_dir`` for a sweep."""
    from .facts import facts_of

    return {"state": ENDED, **facts_of(request["storage_dir"], request["own_folder"])}, None


ACTIONS = {"run": _run, "facts": _facts}

if __name__ == "__main__":
    main()
