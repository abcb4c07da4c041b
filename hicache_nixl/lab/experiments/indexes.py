"""Why the index of ``pooled`` is a hash table of its own: the same rows in it, in LMDB and in SQLite."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol

import lmdb
import numpy as np
import pandas as pd

from ...lifetimes.pooled.locks import Locks
from ...lifetimes.pooled.row import NAME_WORDS, ROW, ROW_WORDS, Rows, Words, words_of
from ...lifetimes.pooled.table import Table
from ...lifetimes.pooled.words import guard
from ..statistics import median_of
from .alternating import alternating, counted

KEYS = 128  # of a call
SEGMENT_ROWS = 16384  # pages of 16 KiB in a segment of 256 MiB
CALLS, DROPS = 41, 7  # that are timed with each index
OPERATIONS = {"find": KEYS, "put": KEYS, "drop": SEGMENT_ROWS}  # and the rows of each
SPACE = 1
NAME_BYTES = 8 * NAME_WORDS  # key and space, by which a row is found


class Index(Protocol):
    """Rows of pages, in a file that several processes can use at the same time.

    None of them waits for the disk: an index that a power cut damages is made anew.
    """

    FILE: str

    def __init__(self, folder: str, rows: int): ...

    def put(self, rows: Rows) -> None:
        """Add rows in one transaction."""

    def find(self, keys: Words) -> Words:
        """Return the words of the rows of keys behind their names, shape (n, 7), without keys that are missing."""

    def drop(self, rows: Rows) -> None:
        """Forget these rows, which are all of a segment."""

    def close(self) -> None:
        """Close all files."""


class PooledIndex:
    """The table of ``pooled``, with what its store adds: a lock, and the generation of each segment.

    As in the store, there is room for as many rows as it will have, and a segment is dropped with a new generation.
    """

    FILE = "index.0"

    def __init__(self, folder: str, rows: int):
        self._dir_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._locks = Locks(self._dir_fd)
        self._table = Table.create(self._dir_fd, self.FILE, rows + rows // 8)
        self._generations = np.ones(rows // SEGMENT_ROWS + 2, np.uint64)

    def put(self, rows: Rows) -> None:
        """Add rows in one transaction."""
        rows = rows.copy()
        rows["generation"] = self._generations[rows["segment"].astype(np.int64)]
        with self._locks.index():
            assert self._table.put(rows, self._generations).all()

    def find(self, keys: Words) -> Words:
        """Return the words of the rows of keys behind their names."""
        rows, slots = self._table.find(keys, SPACE)
        valid = self._generations[rows["segment"].astype(np.int64)] == rows["generation"]
        return words_of(rows[(slots >= 0) & valid])[:, NAME_WORDS:]

    def drop(self, rows: Rows) -> None:
        """Forget all rows of a segment."""
        with self._locks.index():
            self._generations[rows["segment"][0]] += np.uint64(1)

    def close(self) -> None:
        """Close all files."""
        self._table.close()
        self._locks.close()
        os.close(self._dir_fd)


class LmdbIndex:
    """A database of LMDB in its fastest mode: a writable map, and no flush to the disk."""

    FILE = "data.mdb"

    def __init__(self, folder: str, rows: int):
        room = 8 * rows * ROW.itemsize + (1 << 28)  # addresses; the file grows as it is used
        self._environment = lmdb.open(folder, map_size=room, writemap=True, sync=False)

    def put(self, rows: Rows) -> None:
        """Add rows in one transaction."""
        with self._environment.begin(write=True) as transaction:
            transaction.cursor().putmulti(_items(rows))

    def find(self, keys: Words) -> Words:
        """Return the words of the rows of keys behind their names."""
        with self._environment.begin(buffers=True) as transaction:
            return _words(value for _, value in transaction.cursor().getmulti(_names(keys)))

    def drop(self, rows: Rows) -> None:
        """Forget these rows."""
        with self._environment.begin(write=True) as transaction:
            for name in _names(rows["key"]):
                transaction.delete(name)

    def close(self) -> None:
        """Close all files."""
        self._environment.close()


class SqliteIndex:
    """A table of SQLite in WAL mode, ordered by name, without a flush to the disk."""

    FILE = "index.sqlite"

    def __init__(self, folder: str, rows: int):
        self._database = sqlite3.connect(os.path.join(folder, self.FILE), isolation_level=None)
        for setting in ("journal_mode = WAL", "synchronous = OFF", f"mmap_size = {1 << 30}"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE pages (name BLOB PRIMARY KEY, place BLOB) WITHOUT ROWID")
        self._find = f"SELECT name, place FROM pages WHERE name IN ({', '.join('?' * KEYS)})"

    def put(self, rows: Rows) -> None:
        """Add rows in one transaction."""
        self._change("INSERT OR REPLACE INTO pages VALUES (?, ?)", _items(rows))

    def find(self, keys: Words) -> Words:
        """Return the words of the rows of keys behind their names."""
        names = _names(keys)
        found = dict(self._database.execute(self._find, names))
        return _words(found[name] for name in names if name in found)

    def drop(self, rows: Rows) -> None:
        """Forget these rows."""
        self._change("DELETE FROM pages WHERE name = ?", [(name,) for name in _names(rows["key"])])

    def _change(self, statement: str, values: Sequence[tuple[bytes, ...]]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(statement, values)
        self._database.execute("COMMIT")

    def close(self) -> None:
        """Close all files."""
        self._database.close()


INDEXES: dict[str, type[Index]] = {"pooled": PooledIndex, "LMDB": LmdbIndex, "SQLite": SqliteIndex}


def index_times(rows: int, *, storage_dir: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """Time three indexes with the same rows of 96 bytes, in turn.

    A find is of 128 rows, chosen at random among all; a put adds 128 new rows in one transaction; a drop forgets all
    rows of a segment, which are put again afterwards.  LMDB and SQLite are told which rows a segment has; a store
    would have to look for them first.

    Parameters
    ----------
    rows : int
        Rows of each index, one segment or more.  They are put 128 at a time, in no order of their keys.

    Returns
    -------
    pandas.DataFrame
        A row per call: ``pair``; ``arm``: pooled, LMDB, SQLite; ``operation``: find, put, drop; ``seconds``; ``good``,
        whether all rows were found that should be, and no others; ``disk_bytes`` of the index before the first call.
    """
    stored, new = _rows(rows, 0), _rows(KEYS * (CALLS + 1), rows // SEGMENT_ROWS + 1, seed=2)
    table: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hicache-nixl-", dir=storage_dir))
        indexes, disk_bytes = {}, {}
        for name, kind in INDEXES.items():
            own = os.path.join(folder, name)
            os.mkdir(own)
            indexes[name] = stack.enter_context(closing(kind(own, rows)))
            for first in range(0, rows, KEYS):
                indexes[name].put(stored[first : first + KEYS])
            disk_bytes[name] = os.stat(os.path.join(own, kind.FILE)).st_blocks * 512
        for calls, timed in ((CALLS, _find_and_put), (DROPS, _drop)):
            for pair, name in alternating(list(indexes), calls, label="indexes"):
                found = timed(indexes[name], stored, new, pair + 1)
                table += [{"pair": pair, "arm": name, **row, "disk_bytes": disk_bytes[name]} for row in found]
    return counted(table)


def index_summary(times: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Return medians with their intervals, in milliseconds, and the space on disk: a row for each index."""
    summary = []
    for name, own in times.groupby("arm", sort=False):
        medians = {
            f"{operation} {count} rows, ms": str(median_of(own.seconds[own.operation == operation] * 1e3))
            for operation, count in OPERATIONS.items()
        }
        space = round(own.disk_bytes.iloc[0] / rows * 1e6 / 2**20)
        summary.append({"index": name, **medians, "MiB per million rows": space})
    return pd.DataFrame(summary)


def _find_and_put(index: Index, stored: Rows, new: Rows, number: int) -> list[dict[str, Any]]:
    wanted = stored[np.random.default_rng(number).integers(0, len(stored), KEYS)]
    seconds, found = _timed(index.find, wanted["key"])
    rows = [{"operation": "find", "seconds": seconds, "good": _same(found, wanted)}]
    added = new[number * KEYS : (number + 1) * KEYS]
    seconds, _ = _timed(index.put, added)
    return [*rows, {"operation": "put", "seconds": seconds, "good": _same(index.find(added["key"]), added)}]


def _drop(index: Index, stored: Rows, new: Rows, number: int) -> list[dict[str, Any]]:
    segment = number % (len(stored) // SEGMENT_ROWS)
    dropped = stored[segment * SEGMENT_ROWS : (segment + 1) * SEGMENT_ROWS]
    seconds, _ = _timed(index.drop, dropped)
    gone = not any(
        len(index.find(dropped["key"][first : first + KEYS])) for first in range(0, SEGMENT_ROWS, KEYS)
    )
    index.put(dropped)
    return [{"operation": "drop", "seconds": seconds, "good": gone}]


def _timed(call: Callable[[Any], Any], argument: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = call(argument)
    return time.perf_counter() - start, answer


def _same(found: Words, rows: Rows) -> bool:
    return np.array_equal(found, words_of(rows)[:, NAME_WORDS:])


def _rows(count: int, segment: int, seed: int = 1) -> Rows:
    """Return rows with random keys, as hashes are, in segments from this one on."""
    rows, numbers = np.zeros(count, ROW), np.arange(count)
    rows["key"] = np.random.default_rng(seed).integers(0, 2**64, (count, 4), np.uint64)
    rows["space"], rows["generation"] = SPACE, 1
    rows["segment"], rows["offset"] = segment + numbers // SEGMENT_ROWS, numbers % SEGMENT_ROWS << 14
    rows["step"] = rows["size"] = 1 << 13
    guard(words_of(rows))
    return rows


def _names(keys: Words) -> list[bytes]:
    names = np.empty((len(keys), NAME_WORDS), np.uint64)
    names[:, :4], names[:, 4] = keys, SPACE
    whole = names.tobytes()
    return [whole[at : at + NAME_BYTES] for at in range(0, len(whole), NAME_BYTES)]


def _items(rows: Rows) -> list[tuple[bytes, bytes]]:
    """Return the name of each row, and the rest of it."""
    whole, size = rows.tobytes(), ROW.itemsize
    starts = range(0, len(whole), size)
    return [(whole[at : at + NAME_BYTES], whole[at + NAME_BYTES : at + size]) for at in starts]


def _words(values: Iterable[bytes | memoryview]) -> Words:
    return np.frombuffer(b"".join(values), np.uint64).reshape(-1, ROW_WORDS - NAME_WORDS)
