"""The review of PR #24671: its three remarks, and what the fix leaves behind in each release."""

from __future__ import annotations

import ast
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TypeGuard

import pandas as pd

from ...config import LIFETIMES
from ..progress import tqdm
from ..worker.client import Worker
from ..worker.releases import fetch, version_of
from ..worker.setup import Setup, key_of

PACKAGE = "hicache_nixl"
UPSTREAM = "sglang/srt/mem_cache/storage/nixl"
PAGES, BAD, ROUNDS = 8, 3, 3  # pages per call, position of the damaged one, sets and gets that are counted


def release_facts(
    connectors: Sequence[str], *, queue: str = "libaio", storage_dir: str | os.PathLike[str] | None = None
) -> pd.DataFrame:
    """Measure the behaviour in which SGLang's releases differ, with multi-head pages, zero-copy, in a file for each piece.

    Returns
    -------
    pandas.DataFrame
        Per connector: ``calls`` and the ``keys`` of each; ``fds_per_call`` and ``registrations_per_call`` that a call
        leaves; ``exists_of_8``, what
        ``batch_exists`` answers for 8 stored pages; ``pages_besides_a_bad_one``, how many of the 7 good pages
        of a batch of 8 a get loads; ``half_written_seen``, whether ``batch_exists`` counts a page of
        which half the bytes are there.
    """
    rows = []
    setups = [Setup(connector, queue=queue, page_bytes=8192, pages=PAGES) for connector in connectors]
    for worker, setup in _in_turn(setups, storage_dir):
        first = worker.call("set", PAGES)
        calls = [worker.call(operation, PAGES) for _ in range(ROUNDS) for operation in ("set", "get")]
        exists = worker.call("exists", PAGES).pages_ok
        stored = (1 + ROUNDS) * PAGES
        latest = [key_of(setup.seed, stored - PAGES + position) for position in range(PAGES)]
        _damage(worker.folder, latest[BAD])
        besides = worker.call("get", PAGES).pages_ok
        _damage(worker.folder, latest[0])
        seen = worker.call("exists", PAGES).pages_ok > 0
        rows.append(
            {
                "connector": setup.connector,
                "calls": len(calls),
                "keys": PAGES,
                "fds_per_call": (calls[-1].open_fds - first.open_fds) / len(calls),
                "registrations_per_call": (calls[-1].registrations - first.registrations) / len(calls),
                "exists_of_8": exists,
                "pages_besides_a_bad_one": besides,
                "half_written_seen": seen,
            }
        )
    return pd.DataFrame(rows)


def register_files_left(
    connectors: Sequence[str],
    calls: Sequence[int] = (1, 10, 100),
    *,
    queue: str = "libaio",
    storage_dir: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Count the descriptors that calls of ``register_files`` with one file leave open (third remark).

    Where the call returns an owner, the owner is closed, as its user would do.

    Returns
    -------
    pandas.DataFrame
        A row per connector, a column per number of calls; none where the connector has no ``register_files``.
    """
    rows = []
    setups = [Setup(connector, queue=queue, pages=1) for connector in connectors]
    for worker, setup in _in_turn(setups, storage_dir):
        left: dict[str, object] = {"connector": setup.connector}
        done, before = 0, worker.storage_fds()
        for count in calls:
            offered = worker.request("register_files", calls=count - done)["offered"]
            left[f"after {count}"] = worker.storage_fds() - before if offered else None
            done = count
        rows.append(left)
    return pd.DataFrame(rows).astype({f"after {count}": "Int64" for count in calls})


def imports_inside_functions(connector: str, module: str = "traceback") -> list[str]:
    """Return where a connector's source imports a module inside a function (first remark): ``file:line``.

    Examples
    --------
    >>> imports_inside_functions("scoped")
    []
    """
    found = []
    for name, source in _sources(connector):
        for function in ast.walk(ast.parse(source)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                found += [f"{name}:{node.lineno}" for node in ast.walk(function) if _imports(node, module)]
    return sorted(set(found))


def owner_of_descriptors(connector: str) -> dict[str, object]:
    """Return what closes the descriptors of a transfer, and how many statements it contains (second remark).

    Read from the source: a ``finally`` that closes the files which its block opened, or a ``with`` whose context
    manager opens files and closes them in a ``finally``.

    Returns
    -------
    dict
        ``connector``; ``closed_by``, ``"nothing"``, ``"finally"`` or ``"with"``; ``statements`` inside it;
        ``objects``, whether a transfer of objects, which has no descriptors, is ``"inside"`` it too or ``"outside"``;
        ``"not in a block"`` where nothing closes them.
    """
    functions = [
        node
        for _, source in _sources(connector)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    ]
    closing = {function.name for function in functions if _closes(function)}
    managers = {function.name for function in functions if _closes_what_it_opens(function, closing)}
    for function in functions:
        blocks = [node for node in ast.walk(function) if isinstance(node, ast.Try | ast.With)]
        for block in blocks:
            if kind := _closes_files(block, closing, managers - {function.name}):
                statements = [node for part in block.body for node in ast.walk(part)]
                return {
                    "connector": connector,
                    "closed_by": kind,
                    "statements": sum(isinstance(node, ast.stmt) for node in statements),
                    "objects": "inside" if any(map(_is_for_objects, statements)) else "outside",
                }
    return {"connector": connector, "closed_by": "nothing", "statements": 0, "objects": "not in a block"}


def _in_turn(
    setups: Sequence[Setup], storage_dir: str | os.PathLike[str] | None
) -> Iterator[tuple[Worker, Setup]]:
    """Open one connector after another in a single worker, so that what each adds is counted."""
    with Worker(setups[0], storage_dir=storage_dir) as worker:
        for setup in tqdm(setups, desc="connectors", unit="connector", leave=False):
            worker.open(setup)
            yield worker, setup


def _closes_files(block: ast.Try | ast.With, closing: set[str], managers: set[str]) -> str | None:
    """Return how a block closes the files of a transfer: ``"finally"``, ``"with"`` or None."""
    if isinstance(block, ast.Try):
        closes = _names(block.finalbody) & closing and "files_to_nixl_tuples" in _names(block.body)
        return "finally" if closes else None
    calls = [item.context_expr for item in block.items if isinstance(item.context_expr, ast.Call)]
    return "with" if _names([call.func for call in calls]) & managers else None


def _closes(function: ast.FunctionDef) -> bool:
    """Return whether a function closes a descriptor that it is given, as ``close_file`` does."""
    given = {argument.arg for argument in function.args.args}
    calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
    return any(ast.unparse(call.func) == "os.close" and given & _names(call.args) for call in calls)


def _closes_what_it_opens(function: ast.FunctionDef, closing: set[str]) -> bool:
    """Return whether a function is a context manager that closes files in a ``finally``.

    The ``finally`` closes them itself, or runs what was assigned before: ``closing = map(os.close, fds)``.
    """
    if not any("contextmanager" in ast.unparse(decorator) for decorator in function.decorator_list):
        return False
    closers, nodes = {"os.close", *closing}, list(ast.walk(function))
    for node in nodes:
        if isinstance(node, ast.Assign) and _names([node.value]) & closers:
            closers |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return any(isinstance(node, ast.Try) and _names(node.finalbody) & closers for node in nodes)


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the names in some code; of ``os.close`` both that and ``close``."""
    found = {name for part in nodes for name in ast.walk(part) if isinstance(name, ast.Name | ast.Attribute)}
    return {ast.unparse(name) for name in found} | {
        name.attr for name in found if isinstance(name, ast.Attribute)
    }


def _is_for_objects(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return node.value == "OBJ"
    return isinstance(node, ast.Attribute) and node.attr == "objects_to_nixl_tuples"


def _imports(node: ast.AST, module: str) -> TypeGuard[ast.Import | ast.ImportFrom]:
    if isinstance(node, ast.Import):
        return any(alias.name == module for alias in node.names)
    return isinstance(node, ast.ImportFrom) and node.module == module


def _sources(connector: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of the modules of a connector; the lifetime's own first, and of no other lifetime."""
    version = version_of(connector)
    if version is None:
        package = Path(str(resources.files(PACKAGE)))
        shared = [module for module in package.glob("lifetimes/*.py") if module.stem not in LIFETIMES]
        modules = [
            *shared,
            *package.glob("transport/*.py"),
            *package.glob("host/*.py"),
            *package.glob("*.py"),
        ]
        lifetimes = package / "lifetimes"
        own = [*lifetimes.glob(f"{connector}.py"), *sorted(lifetimes.glob(f"{connector}/*.py"))]
        yield from ((module.name, module.read_text()) for module in (*own, *sorted(modules)))
        return
    with zipfile.ZipFile(fetch(version)) as wheel:
        for name in sorted(wheel.namelist()):
            folder, _, file = name.rpartition("/")
            if folder == UPSTREAM and file.endswith(".py") and not file.startswith("test_"):
                yield file, wheel.read(name).decode()


def _damage(folder: Path, key: str) -> None:
    """Truncate one file of a page to half its bytes, as after a crash during a write."""
    path = min(folder.rglob(f"{key}*"))
    os.truncate(path, path.stat().st_size // 2)
