"""Notebooks for points of a sweep, and sweeps that have begun."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiny_notebooks import BEGIN, FINISH, WAVER, write_notebook

from hicache_nixl.lab.sweep import record
from hicache_nixl.lab.sweep.fleet import Fleet
from hicache_nixl.lab.sweep.grid import Grid, Point, points_of
from hicache_nixl.lab.sweep.lanes import Job
from hicache_nixl.lab.sweep.record import Sweep

HOLD = 'run.claim(lab.exactly("sum_{name}", "One and one is two.", 2, 1 + 1))'
MOVE = """\
setup = lab.Setup("scoped", queue=queue, page_bytes=4096)
run.table("moved", lab.replay(lab.Schedule.steady(2, 2), setup))"""
WAIT = "import time\nfor _ in range(600): time.sleep(0.1)"
FAIL_BIG = 'run.claim(lab.exactly("flat", "The count is flat.", 135, 167 if page_bytes > 4096 else 135))'
DIE_BIG = "import os\nif page_bytes > 4096:\n    os._exit(3)"


class TinyNotebooks:
    """A folder of notebooks, and one for runs.

    ``01_counts`` states a count, ``02_measures`` a measurement, ``03_moves`` moves pages on the queue of its parameter,
    ``04_waits`` runs for a minute, and with large pages ``05_fails`` has a claim that fails and ``06_dies`` has no kernel.
    """

    def __init__(self, folder: Path):
        self.folder, self.runs = folder / "notebooks", folder / "runs"
        self.folder.mkdir()
        cells: dict[str, Sequence[str]] = {
            "01_counts": [],
            "02_measures": [WAVER],
            "03_moves": [MOVE],
            "04_waits": [WAIT],
            "05_fails": [FAIL_BIG],
            "06_dies": [DIE_BIG],
        }
        for name, more in cells.items():
            first = BEGIN.format(name=name), HOLD.format(name=name)
            write_notebook(self.folder / f"{name}.ipynb", *first, *more, FINISH)

    def known(self) -> dict[str, Path]:
        """Return the notebooks by name."""
        return {path.stem: path for path in sorted(self.folder.glob("*.ipynb"))}


def begun(
    folder: Path, grid: Grid, notebooks: list[str], hosts: Sequence[str], scheduler: str | None = None
) -> Sweep:
    """Begin a sweep whose hosts have told their facts already."""
    folder.mkdir(parents=True)
    sweep = record.begin(folder, grid, notebooks, points_of(grid, hosts), scheduler)
    sweep.hosts = {host: {"NIXL": "1.5.1"} for host in hosts}
    sweep.write()
    return sweep


def no_facts(fleet: Fleet, begun: Sweep, points: Sequence[Point]) -> list[Job]:
    """Take the place of what asks for the facts of hosts, which takes seconds."""
    return []
