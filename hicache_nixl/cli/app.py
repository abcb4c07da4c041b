"""What the commands share: the application, its console, options of several commands, and how an error is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import ConfigError, HiCacheNixlError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A HiCache storage backend on NIXL, and the investigation of what its descriptors cost.",
)
out = Console()

Model = Annotated[
    str | None, typer.Option(help="Take the pages of a model, such as Qwen2.5-32B, instead of page_bytes.")
]
PageSize = Annotated[int, typer.Option(help="With --model: tokens per page.")]
Layers = Annotated[
    int | None, typer.Option(help="With --model: fewer layers than it has, for a small machine.")
]


def main() -> None:
    """Run the command; an error that we know is one line."""
    try:
        app()
    except HiCacheNixlError as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(1 if not isinstance(error, ConfigError) else 2)
    except KeyboardInterrupt:  # before a command runs: it has ends of its own
        sys.exit(130)


def page_of(model: str, page_size: int, layers: int | None) -> tuple[int, bool]:
    """Return the bytes of a model's page, and whether it is an MLA page."""
    from ..host.geometries import model_geometry  # here: it loads torch, which most commands do without

    geometry = model_geometry(model)
    return geometry.page_bytes(page_size, layers), geometry.is_mla


def existing_folder(path: str) -> Path:
    """Return a storage folder that was given, absolute."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"storage_dir {path}: no such folder; it takes an existing, writable folder")
    return folder
