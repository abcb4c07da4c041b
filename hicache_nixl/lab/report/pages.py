"""Pages from Jinja2 templates. They open offline: style sheet and figures are in the page, and there is no script."""

from __future__ import annotations

import base64
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from PIL import Image
from pygments.formatters import HtmlFormatter

from ...errors import ConfigError, FileError, HiCacheNixlError
from ...resources import write_whole
from ..runs.folder import figure_file, page_file, read_table, table_file
from ..runs.record import Record
from ..runs.show import is_number, shown

TEMPLATES = Path(__file__).parent / "templates"
NBCONVERTS_ALT = "No description has been provided for this image"  # of a picture without alt text
PAGE_DPI = 96  # of CSS
LIGHT, DARK = "xcode", "github-dark"  # styles of Pygments for code


class AltTextError(HiCacheNixlError, ValueError):
    """A picture of a page has no alt text; the message names the page and the place."""


def write_page(path: Path, template: str, **context: Any) -> Path:
    """Render a template and write the page.

    Raises
    ------
    AltTextError
        When a picture has no alt text; nothing is written then.
    """
    try:
        text = page_text(template, **context)
    except AltTextError as error:
        raise AltTextError(f"{path.name}: {error}") from None
    try:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise FileError.of(error, str(path)) from error
    return path


def page_text(template: str, **context: Any) -> str:
    """Render a template.

    Raises
    ------
    AltTextError
        When a picture has no alt text.
    """
    text = _environment().get_template(template).render(code_style=code_style(), **context)
    missing = Pictures(text).without_alt
    if missing:
        raise AltTextError(f"no alt text for the picture {'; '.join(missing)}")
    return text


class Pictures(HTMLParser):
    """Find the pictures of a page that have no alt text; each is named by the last anchor before it."""

    def __init__(self, page: str):
        super().__init__()
        self.without_alt: list[str] = []
        self._place = "at its beginning"
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a picture without alt text, or the current place."""
        attributes = dict(attrs)
        if attributes.get("id"):
            self._place = f"in or after #{attributes['id']}"
        if tag == "img" and (attributes.get("alt") or "").strip() in ("", NBCONVERTS_ALT):
            self.without_alt.append(self._place)


def anchor(claim: Any) -> str:
    """Return the anchor of a claim's row.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> anchor(SimpleNamespace(notebook="04_what", id="get_sglang==0.5.12"))
    'claim-04_what-get_sglang-0.5.12'
    """
    return "claim-" + _plain(f"{claim.notebook}-{claim.id}")


def place(found: Any) -> str:
    """Return the anchor of a figure, given its row of ``figures.csv``, or a finding that it shows.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> place(SimpleNamespace(notebook="04_what", figure="second leak"))
    'figure-04_what-second-leak'
    """
    return "figure-" + _plain(f"{found.notebook}-{found.figure}")


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


def code(text: str) -> Markup:
    """Format text between backquotes as code."""
    parts = re.split(r"`([^`]*)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


def data_uri(path: Path) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def size(path: Path) -> tuple[int, int]:
    """Return the width and height of a figure in pixels of a page, from its size in inches."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            dots = image.info.get("dpi", (PAGE_DPI, PAGE_DPI))[0]
    except OSError as error:  # also what Pillow raises for a file that is not a picture
        raise ConfigError(f"figure {path} cannot be read: {error}; run the notebooks again") from error
    return round(width * PAGE_DPI / dots), round(height * PAGE_DPI / dots)


def table(record: Record, notebook: str, name: str) -> pd.DataFrame | None:
    """Return a table of a run, or None when the run has no table of that name."""
    path = record.files.table(notebook, name)
    return read_table(path) if path.exists() else None


def number_columns(frame: pd.DataFrame) -> list[bool]:
    """Return of each column whether its values are numbers."""
    return [is_number(frame[column]) for column in frame]


@cache
def code_style() -> str:
    """Return the style of highlighted code, light and dark."""
    light = HtmlFormatter(style=LIGHT).get_style_defs(".highlight")
    dark = HtmlFormatter(style=DARK).get_style_defs(".highlight")
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n.highlight {{ background: none }}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "anchor": anchor,
        "code": code,
        "data_uri": data_uri,
        "number_columns": number_columns,
        "place": place,
        "shown": shown,
        "size": size,
    }
    environment.globals |= {
        "figure_file": figure_file,
        "page_file": page_file,
        "table": table,
        "table_file": table_file,
    }
    return environment
