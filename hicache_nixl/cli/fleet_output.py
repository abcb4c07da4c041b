"""What doctor --scheduler prints: the facts of each host, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..config import QUEUES
from .app import out, say

QUEUES_COLUMN = "queues that work"
SHOWN = ("NIXL", QUEUES_COLUMN, "open files", "storage", "free space", "kernel", "SGLang")
ALIKE = ("NIXL", "kernel", "open files", "storage", "cpu", "python", "torch")
MARK = " *"
NO_ANSWER, CANNOT, LEAKS, FEW_FILES, FINE = (
    "did not answer",
    "cannot run",
    "SGLang leaks",
    "few open files",
    "ok",
)
CODES = {
    NO_ANSWER: 1,
    CANNOT: 1,
    LEAKS: 3,
    FEW_FILES: 4,
    FINE: 0,
}  # the worst first, as of doctor on one machine


def state_of(told: Mapping[str, Any]) -> str:
    """Return what the doctor says of a host in a few words."""
    if "diagnosis" not in told:
        return NO_ANSWER
    diagnosis = told["diagnosis"]
    if not diagnosis["usable"]:
        return CANNOT
    if diagnosis["leaking"]:
        return LEAKS
    return FINE if diagnosis["enough_files"] else FEW_FILES


def exit_code(found: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the exit code of the worst host."""
    states = {state_of(told) for told in found.values()}
    return next((code for state, code in CODES.items() if state in states), 0)


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a row for each host, and below it the facts in which hosts differ."""
    from ..lab.sweep.facts import differences, unusual

    hosts = {name: told["facts"] for name, told in found.items() if "facts" in told}
    marked = unusual(hosts)
    table = Table("host", "state", *SHOWN, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.overflow = "fold"
    for name, told in found.items():
        state = state_of(told)
        facts = hosts.get(name, {})
        cells = [
            _cell(_short(what, facts[what]) if what in facts else "", (name, what) in marked)
            for what in SHOWN
        ]
        table.add_row(name, Text(state, style="green" if state == FINE else "red"), *cells)
    out.print(table)
    for name, told in found.items():
        if name not in hosts:
            say(f"{name} did not answer: {told.get('reason', told['state'])}")
    found_differences, shared = differences(hosts)
    for difference in found_differences:
        say(f"{difference.what} differs:")
        for value, some in difference.values:
            say(f"  {value}: {', '.join(some)}")
    if len(hosts) > 1:
        alike = [f"{name} {shared[name]}" for name in ("hicache-nixl", *ALIKE) if name in shared]
        say(f"the same on all {len(hosts)} hosts: {', '.join(alike) or 'none of these facts'}")
    say(last_line(found))


def last_line(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how many hosts are in each state, in one line.

    Examples
    --------
    >>> last_line({"a": {"diagnosis": {"usable": False}}, "b": {"state": "failed"}})
    '2 hosts: 1 did not answer, 1 cannot run'
    """
    states = [state_of(told) for told in found.values()]
    counts = [f"{states.count(state)} {state}" for state in CODES if state in states]
    return f"{len(states)} host{'s' * (len(states) != 1)}: {', '.join(counts)}"


def _short(what: str, value: str) -> str:
    """Return a fact as it stands in the table.

    Examples
    --------
    >>> _short("storage", "ext4, rw,relatime"), _short("open files", "soft 1024, hard 4096")
    ('ext4', '1024 / 4096')
    >>> _short("queues that work", "libaio, posix_aio")
    'no io_uring'
    """
    if what == "storage":
        return value.partition(",")[0]
    if what == QUEUES_COLUMN:
        missing = [name for name in QUEUES if name not in value]
        return f"no {', '.join(missing)}" if missing else "all"
    if what == "SGLang" and value == "not installed":
        return "none"
    if what == "open files":
        return " / ".join(dict.fromkeys(value.removeprefix("soft ").split(", hard ")))
    return value


def _cell(value: str, unusual: bool) -> Text:
    """Return a cell; one that differs from most hosts has a mark, also without colours."""
    return Text(f"{value or '-'}{MARK * unusual}", style="yellow" if unusual else "")
