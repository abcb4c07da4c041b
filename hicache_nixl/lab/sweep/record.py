"""The folder of a sweep.

=====================  ==========================================================
``sweep.json``         the grid, the scheduler, the facts of each host, and the state of each point
``points/SLUG/``       the run of each point, as ``reproduce`` writes it
``points.csv``         the points as a table, with what they measured
``figures/``           the figures of the page, and those for phones below ``narrow``
``index.html``         the page
=====================  ==========================================================
"""

from __future__ import annotations

import gzip
import io
import json
import shlex
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import ConfigError
from ...resources import runs_folder, write_whole
from ..runs.claims import FAILS, HOLDS, INCONCLUSIVE
from ..runs.record import Record, read_record
from .child import ENDED, INTERRUPTED
from .grid import Grid, Point, make_grid, told
from .lanes import Answer
from .remote import FAILED

FORMAT = 1
MISSING = "missing"  # the state of a point that has not run
UNFINISHED = ".unfinished"  # ends the name of a folder that is being unpacked
MOST = 2 << 30  # bytes of an unpacked run, which has some MB
BAD = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError)  # of an archive or a disk


class _Unpacking:
    """The tar file in an archive, of which no more than ``MOST`` is unpacked."""

    def __init__(self, archive: bytes):
        self._file = gzip.GzipFile(fileobj=io.BytesIO(archive))
        self._left = MOST

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError(f"it has more than {MOST} bytes")
        return data


@dataclass
class PointState:
    """A point and what came of it.

    Attributes
    ----------
    slug, host, values
        As of ``Point``; ``host`` is that on which it ran, once it has.
    notebooks : list of str
    state : str
        ``"missing"``, ``"ended"`` or ``"failed"``.
    reason : str
        Why it failed.
    verdict : str
        How many of its claims hold.
    errors : list of str
        Its claims that fail, and the cells that raised.
    seconds : float or None
        Of its notebooks.
    bytes : int
        Of the archive that came back.
    deaths : int
        How often its worker died.
    """

    slug: str
    host: str | None
    values: dict[str, Any]
    state: str = MISSING
    reason: str = ""
    verdict: str = ""
    errors: list[str] = field(default_factory=list)
    seconds: float | None = None
    bytes: int = 0
    deaths: int = 0


@dataclass
class Sweep:
    """A sweep, as its folder describes it.

    Attributes
    ----------
    folder : Path
    grid : Grid
    notebooks : list of str
        What each point runs.
    points : dict of PointState
        By slug.
    hosts : dict
        The facts of each host, by name.
    problems : dict
        Why there are no facts of a host.
    started : str
    scheduler : str or None
        The address of the Dask scheduler whose hosts run it; None for this machine alone.
    left : set of str
        The slugs of points that are to run in this process and have not come back.
    """

    folder: Path
    grid: Grid
    notebooks: list[str]
    points: dict[str, PointState]
    hosts: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    started: str = ""
    scheduler: str | None = None
    left: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The name of the sweep, which is that of its folder."""
        return self.folder.name

    @property
    def handle(self) -> str:
        """What ``--resume`` finds the sweep by, in a shell: its name below ``runs/``, or its path."""
        below = self.folder.resolve().parent == runs_folder().resolve()
        return self.name if below else shlex.quote(str(self.folder))

    @property
    def page(self) -> Path:
        """The page of the sweep."""
        return self.folder / "index.html"

    def label(self, slug: str, host: str | None = None) -> str:
        """Return what a point is called in the shell: the values that vary, and its host."""
        point = self.points[slug]
        values = {name: point.values[name] for name in self.grid.axes}
        where = host or point.host
        return " ".join([*([told(values)] if values else []), *([f"on {where}"] if where else [])])

    def run_of(self, slug: str) -> Path:
        """Return the folder of the run of a point."""
        return self.folder / "points" / slug

    def record(self, slug: str) -> Record | None:
        """Return the run of a point; None where nothing of it came back."""
        folder = self.run_of(slug)
        return read_record(folder) if folder.is_dir() else None

    def of(self, state: str) -> list[PointState]:
        """Return the points in a state."""
        return [point for point in self.points.values() if point.state == state]

    @property
    def state(self) -> str:
        """The verdict on the sweep: fails; inconclusive when points are missing; else holds."""
        if self.of(FAILED) or any(point.errors for point in self.points.values()):
            return FAILS
        return INCONCLUSIVE if self.of(MISSING) else HOLDS

    def verdict(self) -> str:
        """Return how many points have run, failed, or have claims that fail, in one line."""
        ended, failed, missing = (self.of(state) for state in (ENDED, FAILED, MISSING))
        wrong = sum(bool(point.errors) for point in ended)
        right = ended and not wrong
        parts = [f"{len(ended)} of {len(self.points)} points ran"]
        parts += [f"{len(failed)} failed"] if failed else []
        parts += [f"{len(missing)} missing"] if missing else []
        parts += [f"claims fail at {wrong}"] if wrong else ["no claim fails"] if right else []
        return ", ".join(parts)

    def to_run(self) -> list[Point]:
        """Return the points that have not ended, as ``left``; what came of one stays until it has come back."""
        again = [point for point in self.points.values() if point.state != ENDED]
        self.left = {point.slug for point in again}
        any_host = not self.grid.every_host
        return [Point(point.slug, None if any_host else point.host, point.values) for point in again]

    def keep(self, answer: Answer) -> PointState:
        """Keep what came of a point: its run, and its state; a run that cannot be unpacked is why it failed."""
        point, told_by = self.points[answer.job.slug], answer.told
        self.left.discard(point.slug)
        shutil.rmtree(self.run_of(point.slug), ignore_errors=True)  # that of an earlier attempt
        reason = told_by.get("reason", "")
        if told_by["state"] == INTERRUPTED:  # not by this sweep, which does not keep the answer then
            reason = "its process was interrupted on its host"
        if answer.archive:
            reason = self._unpack(point.slug, answer.archive) or reason
        point.state = ENDED if told_by["state"] == ENDED and not reason else FAILED
        point.reason, point.deaths, point.bytes = reason, len(answer.job.deaths), len(answer.archive)
        point.host = answer.host or point.host
        point.verdict, point.seconds = told_by.get("verdict", ""), told_by.get("seconds")
        point.errors = told_by.get("errors", [])
        self.write()
        return point

    def _unpack(self, slug: str, archive: bytes) -> str:
        """Unpack a run beside its place and rename it, so that a part of one is never taken for a whole.

        Returns
        -------
        str
            Why it could not be unpacked, and nothing of it is left; empty when it was.
        """
        folder = self.run_of(slug)
        beside = folder.with_name(f"{slug}{UNFINISHED}")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            with tarfile.open(fileobj=_Unpacking(archive), mode="r|") as files:  # type: ignore[call-overload]
                files.extractall(beside, filter="data")  # refuses paths that lead out of the folder
            beside.rename(folder)
        except BAD as error:
            return f"its run cannot be unpacked: {error}"
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return ""

    def write(self) -> None:
        """Write ``sweep.json``."""
        known = {
            "format": FORMAT,
            "version": __version__,
            "started": self.started,
            "scheduler": self.scheduler,
            "grid": self.grid.model_dump(mode="json"),
            "notebooks": self.notebooks,
            "hosts": self.hosts,
            "problems": self.problems,
            "points": [asdict(point) for point in self.points.values()],
        }
        write_whole(self.folder / "sweep.json", json.dumps(known, indent=2) + "\n")


def begin(
    folder: Path, grid: Grid, notebooks: list[str], points: list[Point], scheduler: str | None = None
) -> Sweep:
    """Start the record of a sweep in its new folder."""
    states = {point.slug: PointState(point.slug, point.host, point.values) for point in points}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    sweep = Sweep(folder, grid, notebooks, states, started=started, scheduler=scheduler)
    (folder / "points").mkdir()
    sweep.write()
    return sweep


def read_sweep(name: str | Path) -> Sweep:
    """Read the folder of a sweep: a path, or the name of a folder below ``runs/``.

    Raises
    ------
    ConfigError
        When the folder is not that of a sweep, or of another version.
    """
    path = Path(name).expanduser()
    if not path.exists() and path.name == str(name):
        path = runs_folder() / path
    file = path.resolve() / "sweep.json"
    try:
        known = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"sweep {name}: {file} does not exist; expected the name of a sweep below runs/"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    return _read(file, known)


def _read(file: Path, known: Mapping[str, Any]) -> Sweep:
    try:
        if known["format"] != FORMAT:
            raise ConfigError(f"{file} is of another version of hicache-nixl ({known['version']})")
        points = [PointState(**about) for about in known["points"]]
        return Sweep(
            file.parent,
            make_grid(known["grid"]),
            list(known["notebooks"]),
            {point.slug: point for point in points},
            dict(known["hosts"]),
            dict(known["problems"]),
            known["started"],
            known["scheduler"],
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; start the sweep again") from error
