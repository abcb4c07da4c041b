"""hicache-nixl server: real SGLang servers on this machine's processors; install, list, remove and run them."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .app import INTERRUPTED, AsJson, app, print_json, say, say_interrupted
from .server_output import copied_to_stderr, log_file, showing_installation, started, starting, table
from .store_output import size_of

if TYPE_CHECKING:
    from ..lab.server import Server

POLL = 0.3  # seconds
SIGNALS = (signal.SIGINT, signal.SIGTERM)

server = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Run a real SGLang server without a GPU, to watch it, ask it or break it.

    It is the released SGLang with a small model of random weights: its HTTP
    server, scheduler, radix cache, cache controller, storage backend and NIXL
    are real; CUDA is replaced. Linux, 2 GB of memory for each server.

        hicache-nixl server install 0.5.11    once: 3.5 GB, some minutes
        hicache-nixl server run 0.5.11        until Ctrl-C
        hicache-nixl server list              what is installed
        hicache-nixl server remove            frees the disk
    """,
)
app.add_typer(server, name="server")


@server.command()
def install(
    version: Annotated[list[str], typer.Argument(help="Releases of SGLang, such as 0.5.11.")],
) -> None:
    """Install what servers of these releases need, with pip.

    The first release takes 3.5 GB of disk at most, a further one 0.3 GB. It is
    kept in ~/.cache/hicache-nixl/servers, or in the folder servers of
    HICACHE_NIXL_CACHE. Ctrl-C keeps the steps that are complete; the same
    command continues. Nothing else on the machine is changed.

    [bold]Examples[/]

        hicache-nixl server install 0.5.11 0.5.23

    [bold]Exit codes[/]

        0    they are installed
        1    pip failed: the reason and its last lines are printed
        2    there is no such release, it cannot be used, or the disk is full
        130  interrupted
    """
    from ..lab.server.environment import install as make
    from ..lab.server.environment import installed, servers_folder

    for one in dict.fromkeys(version):
        if installed(one) is not None:
            say(f"sglang {one} is installed already")
            continue
        since = time.monotonic()
        try:
            with showing_installation() as progress:
                make(one, progress)
        except KeyboardInterrupt:
            say_interrupted(
                f"; the steps that are complete stay in {servers_folder()}: the same command continues"
            )
            raise typer.Exit(INTERRUPTED) from None
        say(f"sglang {one} is installed, in {time.monotonic() - since:.0f} s: hicache-nixl server run {one}")


@server.command("list")
def list_releases(as_json: AsJson = False) -> None:
    """List the releases that can be run, which are installed, and their size.

    Other releases are refused: their packages are not pinned.

    [bold]--json[/]

    folder, bytes (of all), common (bytes that all releases share), other
    (bytes of models, and of environments of earlier pins), releases: a list of
    version, installed, bytes.
    """
    from ..lab.server.environment import installed, servers_folder, sizes

    size = sizes()
    common, other = size.pop("common"), size.pop("other")
    releases = [
        {"version": version, "installed": installed(version) is not None, "bytes": of_it}
        for version, of_it in size.items()
    ]
    found = {"folder": servers_folder(), "bytes": sum(size.values()) + common + other}
    found |= {"common": common, "other": other, "releases": releases}
    if as_json:
        print_json(found)
    else:
        table(found)


@server.command()
def remove(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all that was installed for servers, and their models.

    Storage folders that servers were given stay. Installing again downloads
    everything again.

    [bold]Exit codes[/]

        0  it is removed, or there was nothing
        1  it was not confirmed
        2  it could not be asked, so --yes is needed, or a server is running
    """
    from ..lab.server.environment import remove as remove_all
    from ..lab.server.environment import servers_folder, sizes

    folder, size = servers_folder(), sum(sizes().values())
    if not yes and size:
        if not sys.stdin.isatty():
            raise ConfigError(f"{folder} has {size_of(size)}; give --yes to remove it")
        typer.confirm(f"Remove {folder} with {size_of(size)}?", abort=True)
    say(f"{size_of(remove_all())} were freed")


@server.command()
def run(
    version: Annotated[str, typer.Argument(help="A release of SGLang, such as 0.5.11.")],
    backend: Annotated[
        str, typer.Option(help="nixl is SGLang's own; hicache_nixl is the connector of this package.")
    ] = "nixl",
    lifetime: Annotated[
        str | None,
        typer.Option(help="With hicache_nixl: scoped, pooled, try_finally or leaky.", show_default="scoped"),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="Of the host pool: page_first, layer_first or page_first_direct.")
    ] = "page_first",
    nofile_limit: Annotated[
        int,
        typer.Option(min=0, help="Descriptors of each process, 200 or more; 0 for the limit of the shell."),
    ] = 0,
    storage_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where pages are stored; not removed at the end.", show_default="a new folder, removed"
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="On 127.0.0.1.", show_default="a free one")] = None,
    model: Annotated[str, typer.Option(help="small or larger: 0.6 or 27 million random weights.")] = "small",
    log: Annotated[
        Path | None, typer.Option(help="Write the log to this new file.", show_default="stderr")
    ] = None,
) -> None:
    r"""Run a server until Ctrl-C, and end all of its processes.

    When it answers, after 20 to 60 s, stdout has its address, the process that
    opens the storage files, the storage folder, and two commands to paste into
    other shells: one watches its descriptors; one, a loop, asks a new prompt,
    empties the caches but not the storage, asks it again, and prints
    cached_tokens_details of both answers. What is not installed is installed
    first. The processes also end when this command is killed. Warnings about
    CUDA, vllm and openai_harmony in the log are normal.

    [bold]Examples[/]

    See the leak: the descriptors grow by 44 in each round of the loop. After
    some 8 rounds they reach the limit, and nothing comes from storage any
    more: cached_tokens_details of the second answer is null.

        hicache-nixl server run 0.5.11 --nofile-limit 400

    The same server with this package's connector:

        hicache-nixl server run 0.5.11 --backend hicache_nixl \
            --lifetime pooled --storage-dir /mnt/nvme --log server.log

    [bold]Exit codes[/]

        0    it was ended by Ctrl-C or SIGTERM
        1    it did not start, or ended by itself: printed with its last lines
        2    an option cannot work
        130  interrupted before it answered
    """
    from ..lab.server import Server, ServerError
    from ..lab.server import install as make

    if lifetime is not None and backend != "hicache_nixl":
        raise ConfigError(
            f"--lifetime {lifetime} has no effect with --backend {backend}; expected hicache_nixl"
        )
    options: dict[str, Any] = {"layout": layout, "nofile_limit": nofile_limit, "storage_dir": storage_dir}
    options |= {"lifetime": lifetime or "scoped", "port": port, "model": model}
    with ExitStack() as ends:
        ends.enter_context(_signals_as_interrupt())
        file = ends.enter_context(log_file(log))
        not_started = Server(version, backend, **options, log=file)
        with showing_installation() as progress:
            make(version, progress)
        starting(not_started, log)
        if log is None:
            ends.enter_context(copied_to_stderr(file))
        running = ends.enter_context(not_started)
        ended = _end_of(running)
    if ended:
        raise ServerError(ended)
    say("ended; no process of the server is left")


def _end_of(running: Server) -> str:
    """Wait for the end of a server; return how it has ended, nothing for an interrupt."""
    try:
        started(running)
        while not (ended := running.process.ended()):
            time.sleep(POLL)
        return ended
    except KeyboardInterrupt:
        return ""


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Let SIGTERM act as Ctrl-C, and SIGINT as well where a script has started this with ``&``, which ignores it."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
