"""What the commands share: the application, its console, options of several commands, and errors in one line."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.markup import escape

from .. import __version__
from ..errors import ConfigError, HiCacheNixlError
from ..interrupts import deferred
from .streams import guarded

INTERRUPTED = 130  # exit code
LARGEST_PAGE = 2**30  # bytes
PATHS = ("--csv", "--png", "--html", "--out", "--storage-dir", "--sglang", "--log")  # options of all commands
SUFFIXES = {"--png": ".png", "--html": ".html"}  # of new files


class _Commands(typer.core.TyperGroup):
    """The commands; an empty path is refused, and Ctrl-C ends a command that does not handle it with a line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that was given, and what follows it."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing:  # as completion in a shell parses
            _refuse_empty_paths(rest)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was given."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say_interrupted()
            raise typer.Exit(INTERRUPTED) from None


def _refuse_empty_paths(args: Sequence[str]) -> None:
    """Refuse an empty path, as an unset variable of a shell gives; Typer would make it that of the current folder."""
    for option in PATHS:
        if (option, "") in pairwise(args) or f"{option}=" in args:
            raise ConfigError(f"{option}: the path is empty; give one, or leave the option out")


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # of every command
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Check, reproduce and watch for the descriptor leak of SGLang's NIXL backend.

    The leak (SGLang up to 0.5.11, fixed by PR #24671): each file that a batch
    call of the HiCache storage backend on NIXL opens stays open.

    Start with:

        hicache-nixl doctor       what can run on this machine
        hicache-nixl reproduce    the whole investigation, in about 7 minutes
        hicache-nixl watch PID    whether a running server leaks
        hicache-nixl bench        how fast pages are stored and loaded
        hicache-nixl server       a real SGLang server, without a GPU

    --install-completion completes commands and options in your shell.
    """,
)
out = Console()

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")
]

Model = Annotated[
    str | None,
    typer.Option(help="Use the page size of a model, such as Qwen2.5-32B; overrides page_bytes and mla."),
]
PageSize = Annotated[int, typer.Option(min=1, help="With --model: tokens per page.")]
Layers = Annotated[
    int | None, typer.Option(help="With --model: use fewer layers than the model has, for smaller pages.")
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hicache-nixl {__version__}")
        raise typer.Exit


class CommandFailedError(HiCacheNixlError):
    """A command that ran to its end, with a result that is a failure."""


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options that stand before the command; the text of the help is that of ``app``."""


def main() -> None:
    """Run the command; an error of this package is printed as one line.

    A reader that goes away, as under ``| head``, is no error: the command ends as it would have without it.  An output
    that cannot be written for another reason, such as a full disk, ends it with 1.
    """
    try:
        with guarded():
            app()
    except HiCacheNixlError as error:
        with guarded():
            Console(stderr=True).print(
                f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
            )
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:  # before a command runs, or after it
        say_interrupted()
        sys.exit(INTERRUPTED)


def say_interrupted(more: str = "") -> None:
    """Print on stderr that Ctrl-C has ended the command."""
    Console(stderr=True).print(f"interrupted{more}", markup=False, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Print a line as it is, however long it is."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(result: dict[str, Any]) -> None:
    """Print a result of ``--json``: NaN and infinity, which JSON does not have, become null."""
    typer.echo(json.dumps(_plain(result), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """Return a value with the types that JSON has; numpy's numbers become Python's."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def check_new_files(**paths: Path | None) -> None:
    """Refuse files that options of these names ask for, where one exists, cannot be created, or two are one."""
    given = [(f"--{name}", path) for name, path in paths.items() if path is not None]
    for (option, path), (other, second) in combinations(given, 2):
        if os.path.realpath(path) == os.path.realpath(second):
            raise ConfigError(f"{option} {path} and {other} {second} are one file; name two different files")
    for option, path in given:
        _check_new_file(option, path, SUFFIXES.get(option, ""))


def _check_new_file(option: str, path: Path, suffix: str) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(
            f"{option} {path}: there is no folder {folder}; expected a new file in an existing folder"
        )
    if path.is_dir():
        raise ConfigError(f"{option} {path}: it is a folder; expected the name of a new file")
    if not path.name.lower().endswith(suffix):
        raise ConfigError(f"{option} {path}: expected a name that ends in {suffix}")
    try:
        deferred(_make_and_remove, path)
    except FileExistsError:
        raise ConfigError(
            f"{option} {path} exists already; remove it, or choose another name for a new file"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: {error.strerror}; expected a new file in a folder that can be written to"
        ) from None


def _make_and_remove(path: Path) -> None:
    path.touch(exist_ok=False)
    path.unlink()


def page_of(model: str | None, page_size: int, layers: int | None) -> tuple[int, bool] | None:
    """Return the bytes of a model's page, and whether it is an MLA page; None without a model."""
    if model is None:
        if layers is not None:
            raise ConfigError(f"--layers {layers} has no effect without --model; give a model as well")
        return None
    from ..host.geometries import model_geometry  # here: it loads torch, which most commands do without

    geometry = model_geometry(model)
    size = geometry.page_bytes(page_size, layers)
    if size > LARGEST_PAGE:
        raise ConfigError(
            f"--model {model} --page-size {page_size}: a page would have {size} bytes; expected at most {LARGEST_PAGE}, so "
            "reduce --page-size or --layers"
        )
    return size, geometry.is_mla
