"""What ``leaky``, ``try_finally`` and ``scoped`` share: each piece of a page is a file or an object.

``store`` and ``load`` pass every page through ``_execute_transfer``, which each of the three implements.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle
from typing import Any

import torch

from ..config import OBJ_PLUGINS, NixlBackendConfig
from ..errors import ConfigError, FileError, RegistrationError, TransferError
from ..host.addresses import Addresses
from ..names import KV, Named, PageNames
from ..transport.agent import make_backend
from ..transport.files import NixlFileManager, most_files
from ..transport.objects import ObjectRequests
from ..transport.registration import Buffer, NixlRegistration, buffer_sizes
from .outcome import MOVED, Outcome

logger = logging.getLogger(__name__)


class FilePerPiece(ABC):
    """A NIXL agent and the files or objects that it transfers; parameters as in ``protocol.Lifetime``.

    Attributes
    ----------
    as_released : bool
        True reproduces a release of SGLang: one bad piece fails its whole batch, and ``present`` does not
        compare sizes.
    memory : dict of sequence of torch.Tensor
        What ``register_pool`` registered last, by host pool.
    """

    as_released = even_pieces = False

    def __init__(self, config: NixlBackendConfig, storage_dir: str):
        self._config = config
        self.memory: dict[str, Sequence[torch.Tensor]] = {}
        backend = make_backend(config)
        self.registration = NixlRegistration(backend)
        self._files: NixlFileManager | None = None
        self._objects: ObjectRequests | None = None
        if backend.plugin in OBJ_PLUGINS:
            if not self.as_released:
                self._objects = ObjectRequests(self.registration, config)
        else:
            shared = config.allow_shared_folder or self.as_released
            self._files = NixlFileManager(
                storage_dir, config.use_direct_io, shared, config.sync, held=not self.as_released
            )
        logger.info("plugin %s", backend.plugin)
        self.stages_copies = not self.as_released
        self.direct = self._files is not None and self._files.direct
        # replacing the agent after a failed transfer must not affect a transfer of another thread
        self._one_at_a_time: AbstractContextManager[Any] = (
            threading.Lock() if backend.keeps_failed_io else nullcontext()
        )

    @property
    def file_manager(self) -> NixlFileManager:
        """The page files; ConfigError with OBJ."""
        if self._files is None:
            raise ConfigError("OBJ stores objects and opens no files; use register_objects")
        return self._files

    def check_pages(self, *calls: tuple[Sequence[int], int]) -> None:
        """Do nothing: a file has any size, and the file system that of its disk."""

    @abstractmethod
    def register_pool(self, memory: Sequence[torch.Tensor], pool: str = KV) -> None:
        """Take host memory, see ``protocol.Lifetime``."""

    @abstractmethod
    def register_files(self, paths: Sequence[str]) -> Any:
        """Open and register files."""

    @abstractmethod
    def _execute_transfer(
        self, buffers: Sequence[Buffer], keys: Sequence[str], direction: str
    ) -> list[Outcome]:
        """Move bytes between buffers and files or objects, see ``_keys``.

        Parameters
        ----------
        direction : str
            ``"WRITE"`` to storage, ``"READ"`` from it.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what this lifetime knows of."""

    # -- storing and loading ---------------------------------------------------------------------------

    def store(self, pages: Named, buffers: Sequence[Buffer]) -> list[Outcome]:
        """Write each buffer to its file or object, see ``protocol.Lifetime``."""
        outcomes: list[Outcome] = []
        for pieces, part in pages.parts(self._most_pages(pages)):
            stored = self._store(self._keys(part.names), buffers[pieces], len(pages.endings))
            outcomes += _of_pages(stored, len(pages.endings))
        return outcomes

    def _store(self, keys: Sequence[str], buffers: Sequence[Buffer], pieces_per_page: int) -> list[Outcome]:
        if self._files is None:
            return self._move(buffers, keys, "WRITE")
        written: list[str] = []
        outcomes: list[Outcome] = []
        try:
            if not self.as_released:
                written = list(keys)  # opening a file to write creates or empties it
            else:
                for path in keys:
                    if self._files.create_file(path):
                        written.append(path)
            outcomes = self._move(buffers, keys, "WRITE")
            return outcomes
        finally:  # also after an interrupt, when there are no outcomes
            kept = set(_kept(keys, outcomes, pieces_per_page))
            self._files.discard(path for path in written if path not in kept)

    def load(self, pages: Named, buffers: Sequence[Buffer]) -> list[Outcome]:
        """Read each file or object into its buffer, see ``protocol.Lifetime``."""
        outcomes: list[Outcome] = []
        for pieces, part in pages.parts(self._most_pages(pages)):
            loaded = self._move(buffers[pieces], self._keys(part.names), "READ")
            outcomes += _of_pages(loaded, len(pages.endings))
        return outcomes

    def _most_pages(self, pages: Named) -> int:
        """Return the pages of one transfer: all, or those of as many files as may be open at a time."""
        if self._files is None or self.as_released:
            return len(pages.keys)
        return max(1, most_files() // len(pages.endings))

    def _keys(self, names: Sequence[str]) -> list[str]:
        """Return names of files in the folder, or keys of objects; as in the releases: paths of files."""
        if self._files is None or not self.as_released:
            return list(names)
        return [self._files.get_file_path(name) for name in names]

    def _move(self, buffers: Sequence[Buffer], keys: Sequence[str], direction: str) -> list[Outcome]:
        """Execute a transfer; after one that failed in NIXL, each piece alone, as NIXL names no culprit.

        Each object is a transfer of its own from the start.
        """
        if self._objects is not None:
            try:
                pieces: list[Any] = list(Addresses.of(buffers, 1))
            except RegistrationError as error:
                return [Outcome.not_touched(error)] * len(keys)
            move = self._objects.put if direction == "WRITE" else self._objects.get
            return [MOVED if error is None else Outcome.failed(error) for error in move(keys, pieces)]
        with self._one_at_a_time:
            try:
                return self._execute_transfer(buffers, keys, direction)
            except TransferError as error:
                cause = self._after_failure(keys, buffer_sizes(buffers), direction == "WRITE") or error
            except Exception as error:
                return [Outcome.failed(error)] * len(keys)
        if self.as_released or len(keys) == 1:
            return [Outcome.failed(cause)] * len(keys)
        logger.warning("%s of %d failed, each is tried alone now: %s", direction, len(keys), cause)
        alone = zip(buffers, keys, strict=True)
        return [self._move([buffer], [key], direction)[0] for buffer, key in alone]

    def _after_failure(self, keys: Sequence[str], sizes: Sequence[int], writing: bool) -> FileError | None:
        """Find the file that made a transfer fail, and remove what would make later ones fail."""
        fault = None
        if self._files is not None:
            fault = self._files.first_fault(keys, sizes, writing)
            if writing:  # some of the new bytes may be in the files
                self._files.discard(keys)
        if self.registration.keeps_failed_io:
            self._replace_agent()
        return fault

    def _replace_agent(self) -> None:
        """Go on with a new agent; errors are only logged, since the caller handles that of a transfer."""
        try:
            self.registration.attach(make_backend(self._config))
        except Exception as error:  # the next transfer fails, too, and tries it again
            logger.error("after a failed transfer the agent cannot be replaced: %s", error)
            return
        for pool, memory in self.memory.items():
            try:
                self.register_pool(memory, pool)
            except Exception as error:
                logger.error(
                    "pool %s: after a failed transfer each call registers its buffers: %s", pool, error
                )

    # -- the rest --------------------------------------------------------------------------------------

    def present(self, pages: Named, sizes: Sequence[int] | None) -> Iterator[bool]:
        """Look for files or objects, see ``protocol.Lifetime``."""
        keys = self._keys(pages.names)
        if self._objects is not None:
            self._objects.check()
            found = self._objects.bucket.leading(keys, cycle(sizes or [None]))
        elif self.as_released or self._files is None:
            found = iter([answer is not None for answer in self.registration.query(keys)])
        else:
            found = self._files.present(keys, cycle(sizes or [None]))
        return (all(pieces) for pieces in zip(*[found] * len(pages.endings), strict=True))

    def clear(self, names: PageNames) -> int:
        """Remove page files or objects, see ``protocol.Lifetime``."""
        if self._objects is not None:
            bucket = self._objects.bucket
            # what lies in a folder of the bucket is somebody else's, as on a disk
            own = [name for name in bucket.names() if "/" not in name and names.is_own(name)]
            bucket.remove(own)
            return len(own)
        if self._files is None:
            raise ConfigError("clear removes files; empty a bucket with the tools of its object store")
        return self._files.clear(names.is_own)

    def register_buffers(self, buffers: torch.Tensor | Sequence[Buffer]) -> Any:
        """Register host memory until the agent ends."""
        return self.registration.register_buffers(buffers)

    def register_objects(self, keys: Sequence[str], sizes: Sequence[int]) -> Any:
        """Register objects until the agent ends."""
        return self.registration.register(self.registration.objects_to_nixl_tuples(keys, sizes), "OBJ")


def _of_pages(outcomes: Sequence[Outcome], pieces: int) -> Sequence[Outcome]:
    """Return the outcome of each page, given those of its pieces: moved, or the first that was not."""
    if pieces == 1:
        return outcomes
    pages = zip(*[iter(outcomes)] * pieces, strict=True)
    return [next((outcome for outcome in page if not outcome.moved), MOVED) for page in pages]


def _kept(keys: Sequence[str], outcomes: Sequence[Outcome], pieces: int) -> Iterable[str]:
    """Yield the pieces of pages that were stored whole, or not touched at all."""
    for first in range(0, len(outcomes), pieces):
        page = outcomes[first : first + pieces]
        if all(outcome.moved for outcome in page) or not any(outcome.touched for outcome in page):
            yield from keys[first : first + pieces]
