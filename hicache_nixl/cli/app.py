"""What the commands share: the application, its console, options of several commands, and errors in one line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import ConfigError, HiCacheNixlError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Check, reproduce and watch for the descriptor leak of SGLang's NIXL backend.

    The leak (SGLang up to 0.5.11, fixed by PR #24671): each file that a batch
    call of the HiCache storage backend on NIXL opens stays open.

    Start with:

        hicache-nixl doctor       what can run on this machine
        hicache-nixl reproduce    the whole investigation, in 4 minutes
        hicache-nixl watch PID    whether a running server leaks
    """,
)
out = Console()

Model = Annotated[
    str | None,
    typer.Option(help="Use the page size of a model, such as Qwen2.5-32B; overrides page_bytes and mla."),
]
PageSize = Annotated[int, typer.Option(help="With --model: tokens per page.")]
Layers = Annotated[
    int | None, typer.Option(help="With --model: use fewer layers than the model has, for smaller pages.")
]


class CommandFailedError(HiCacheNixlError):
    """A command that ran to its end, with a result that is a failure."""


def main() -> None:
    """Run the command; an error of this package is printed as one line."""
    try:
        app()
    except HiCacheNixlError as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:  # outside of the commands that handle it themselves
        sys.exit(130)


def say(line: str) -> None:
    """Print a line as it is, however long it is."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def page_of(model: str | None, page_size: int, layers: int | None) -> tuple[int, bool] | None:
    """Return the bytes of a model's page, and whether it is an MLA page; None without a model."""
    if model is None:
        if layers is not None:
            raise ConfigError(f"--layers {layers} has no effect without --model; give a model as well")
        return None
    from ..host.geometries import model_geometry  # here: it loads torch, which most commands do without

    geometry = model_geometry(model)
    return geometry.page_bytes(page_size, layers), geometry.is_mla
