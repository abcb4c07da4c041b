"""hicache-nixl watch: the open descriptors of a running server, from outside."""

from __future__ import annotations

import json
import shlex
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from .app import app, check_new_files
from .watch_output import Output, say, shown, tell_end

if TYPE_CHECKING:
    from ..watch.group import Group
    from ..watch.recording import WatchFile

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@app.command()
def watch(
    pid: Annotated[
        list[str] | None, typer.Argument(metavar="PID", help="The processes to watch.", show_default=False)
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Watch every SGLang scheduler of this machine.")
    ] = False,
    children: Annotated[
        bool, typer.Option("--children", help="Watch the descendants of the process as well.")
    ] = False,
    storage_dir: Annotated[
        str | None,
        typer.Option(help="Folder of the page files, as the server sees it: names them storage files."),
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two samples.")] = 1.0,
    duration: Annotated[
        float | None, typer.Option(help="Stop after so many seconds.", show_default="at Ctrl-C")
    ] = None,
    horizon: Annotated[
        float, typer.Option(help="Hours: growth that would take longer to reach the limit does not matter.")
    ] = 24.0,
    paths: Annotated[
        bool, typer.Option("--paths", help="Show the folders and files that grew most.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write every sample to this new file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the watch into this new file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    prometheus: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT", help="Serve metrics for Prometheus, on 127.0.0.1 unless HOST is given."
        ),
    ] = None,
) -> None:
    r"""Watch the open descriptors of running servers and say whether they leak.

    Reads /proc only; the server is not changed or restarted. SGLang's storage
    files are opened by its scheduler, a process of its own. Watch it under
    traffic. A leak is growth of what stays open between calls, of any kind of
    descriptor, with a 95 % interval above zero, for as long as it grows.

    [bold]Examples[/]

        hicache-nixl watch --all --storage-dir /mnt/nvme
        hicache-nixl watch 4711 --duration 600 --json
        hicache-nixl watch --all --prometheus 9464

    [bold]Exit codes[/]

        0  no leak: no growth that would reach the limit within --horizon
        2  an option cannot work, or this is not the process to watch
        3  leak
        4  undecided; the message says what is missing, and for how long
           to watch
    """
    from ..watch.follow import Follower, check_times
    from ..watch.summary import EXIT_CODES, summary
    from ..watch.wording import idle

    check_times(interval, duration)
    check_new_files(csv=csv, png=png)
    out = Output(stderr=as_json)
    with ExitStack() as ends:
        stop = ends.enter_context(_stopped_by_signals())
        group = _group(_pids(pid or []), every, children, storage_dir, horizon)
        record = _record(ends, csv, group, every or children)
        show = [ends.enter_context(_served(prometheus, group))] if prometheus else []
        follower = Follower(group, record, interval, duration)
        until = "; press Ctrl-C to stop" if duration is None else f" for {duration:g} s"
        names = ", ".join(member.process.name for member in group.members)
        say(out, f"watching process{'es' * (len(group.members) > 1)} {names} every {interval:g} s{until}")
        for note in (note for member in group.members for note in member.process.notes):
            say(out, f"note: {note}")
        show.append(ends.enter_context(shown(out, group, paths)))
        ended = follower.run(
            stop, lambda: [step() for step in show], is_read=lambda: bool(prometheus) or not out.lost
        )
    said = [note for one in group.judged for note in (idle(one.seen), one.process.suggestion())]
    notes = [note for note in dict.fromkeys([follower.broken, *said]) if note]
    tell_end(out, group, ended, notes, paths)
    if png is not None and group.seconds:
        say(out, _draw(group, png))
    if csv is not None and group.seconds:
        say(out, f"samples: {shlex.quote(str(csv))}; to see them beside those of the PR:")
        say(out, f"hicache-nixl reproduce --notebook 01 -p {shlex.quote(f'watched={csv}')}")
    if as_json:
        typer.echo(json.dumps(summary(group, ended, notes), indent=2))
    raise typer.Exit(EXIT_CODES[group.state])


def _group(
    pids: Sequence[int], every: bool, children: bool, storage_dir: str | None, horizon: float
) -> Group:
    """Return the processes to watch."""
    from ..watch.group import Group
    from ..watch.tree import SCHEDULER, family, schedulers

    if not 0 < horizon <= 24 * 365:  # false for nan as well
        raise ConfigError(f"--horizon {horizon:g}: expected hours, more than 0 and at most {24 * 365}")
    find: Callable[[], Iterable[int]] | None = None
    if every and (pids or children):
        raise ConfigError("--all finds the processes itself; expected no PID and no --children")
    if every:
        pids, find = schedulers(), schedulers
        if not pids:
            raise ConfigError(
                f"--all: no process with the title {SCHEDULER} is running, or none can be seen from here"
            )
    elif not pids:
        raise ConfigError("no PID was given; if it came from pgrep, no process matches its pattern")
    elif children:
        if len(pids) > 1:
            raise ConfigError(f"--children: expected one PID, not {len(pids)}")
        find = partial(family, pids[0])
    group = Group(pids, storage_dir, horizon, find)
    if children:
        group.look_around()
    return group


def _record(ends: ExitStack, csv: Path | None, group: Group, many: bool) -> WatchFile | None:
    from ..watch.recording import WatchFile

    if csv is None:
        return None
    if many or len(group.members) > 1:
        raise ConfigError("--csv records one process; expected one PID, without --all and --children")
    return ends.enter_context(WatchFile(csv))


@contextmanager
def _served(address: str, group: Group) -> Iterator[Callable[[], None]]:
    from ..watch.exporter import serving

    with serving(address) as exporter:
        yield partial(exporter.update, group)


def _draw(group: Group, path: Path) -> str:
    """Draw the figure, and say where it is or why it is not; the verdict matters more."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from ..watch.figure import servers

    figure = servers({member.process.name: member.seen for member in group.members if member.seen.count})
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        return f"note: no figure, {path}: {error.strerror or error}"
    finally:
        plt.close(figure)
    return f"figure: {path}"


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Let Ctrl-C and SIGTERM end the watch between two samples, so that each sample is complete."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pids(words: list[str]) -> list[int]:
    found = []
    for word in " ".join(words).split():  # a quoted "$(pgrep ...)" is one word, whatever it found
        try:
            found.append(int(word))
        except ValueError:
            raise ConfigError(f"PID {word!r}: expected the number of a process, as pgrep prints it") from None
    return found
