"""Where ``data/``, ``notebooks/`` and ``runs/`` are, in a clone and when installed from a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """Return the path of a file or folder that belongs to the project, such as ``"data/reference"``."""
    in_wheel = _PACKAGE / name
    return in_wheel if in_wheel.exists() else _PACKAGE.parent / name


def runs_folder() -> Path:
    """Return the folder that runs go to: ``runs/`` of the clone, else of the current folder."""
    root = _PACKAGE.parent
    return (root if (root / "pyproject.toml").exists() else Path.cwd()) / "runs"


def write_whole(path: Path, text: str) -> None:
    """Write a whole file or nothing, in UTF-8 in any locale."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
