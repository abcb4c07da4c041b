"""The calls of the NIXL agent: register, deregister, query, transfer.

NIXL moves bytes only between regions that are registered with it.  A region is one descriptor: an (address,
size) in host memory, an open file, or an object.  The caller of ``register`` owns the registration and must
deregister it.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain, repeat
from operator import add
from typing import Any, TypeAlias

import torch

from ..errors import RegistrationError, TransferError
from .agent import NixlBackend

Buffer: TypeAlias = "torch.Tensor | tuple[int, int]"  # a contiguous tensor, or (address, bytes)
StorageTuple: TypeAlias = tuple[int, int, int, str]  # (offset, length, fd or object id, path or key)

POLL_SECONDS = 100e-6  # as in SGLang; the plugins POSIX and OBJ have no notification
FAILED_SECONDS = 60.0  # after which no request of a failed transfer of objects is on its way any more
EAGER_SECONDS, PAUSE_SHARE = 1e-3, 1 / 16


def steady_pause(running: float) -> None:
    """Sleep before the next poll as SGLang does; this is a third of the time of a small transfer."""
    time.sleep(POLL_SECONDS)


def growing_pause(running: float) -> None:
    """Let other threads run before the next poll, for longer if the transfer is ``running`` longer (seconds).

    A transfer that may be short is polled without sleeping, a long one as often as in SGLang.  Longer pauses
    would delay it: the POSIX plugin has 64 I/Os in flight and submits the next ones when it is polled.
    """
    if running < EAGER_SECONDS:
        os.sched_yield()  # time.sleep(0) would take 50 us, the timer slack of the kernel
    else:
        time.sleep(min(running * PAUSE_SHARE, POLL_SECONDS))


class NixlRegistration:
    """A NIXL agent, with errors as ``RegistrationError`` and ``TransferError``.

    Parameters
    ----------
    backend : NixlBackend
        Agent and plugin.  ``close()`` drops the agent, which ends all its registrations.
    """

    def __init__(self, backend: NixlBackend):
        self._failed: deque[tuple[float, Any, Any]] = deque()  # handles, with their agents
        self._object_ids = itertools.count(1)  # unique among all objects that this agent registers
        self.attach(backend)

    def attach(self, backend: NixlBackend) -> None:
        """Replace the agent; the registrations of the previous one end with it."""
        self.agent = backend.agent
        self.agent_name = backend.agent_name
        self.plugin = backend.plugin
        self.mem_type = backend.mem_type
        self.keeps_failed_io = backend.keeps_failed_io

    def register(self, items: Any, mem_type: str | None = None) -> Any:
        """Register regions; return NIXL's list of them, for ``deregister``.

        Parameters
        ----------
        items : list of 4-tuples, tensor, or list of tensors
        mem_type : str, optional
            ``"DRAM"``, ``"FILE"`` or ``"OBJ"``; not needed for tensors.
        """
        if isinstance(items, list | tuple) and not items:
            raise RegistrationError("nothing to register with NIXL: an empty list")
        try:
            descs = self.agent.get_reg_descs(items, mem_type)
            if descs is not None:
                return self.agent.register_memory(descs)
        except Exception as error:
            raise RegistrationError(f"cannot register with NIXL: {error}") from error
        raise RegistrationError("cannot register with NIXL: not valid regions; are the tensors contiguous?")

    def register_buffers(self, buffers: torch.Tensor | Sequence[Buffer]) -> Any:
        """Register host memory: a tensor, tensors, or (address, bytes) pairs."""
        if not isinstance(buffers, torch.Tensor) and buffers and isinstance(buffers[0], tuple):
            return self.register([(address, size, 0, "") for address, size in buffers], "DRAM")
        return self.register(buffers)

    def deregister(self, registration: Any) -> None:
        """End a registration."""
        _deregister(self.agent, registration)

    def registered(self, items: Any, mem_type: str | None = None) -> AbstractContextManager[Any]:
        """Register regions for the time of a ``with`` block; parameters as in ``register``."""
        return self._held(self.register, items, mem_type)

    def registered_buffers(self, buffers: torch.Tensor | Sequence[Buffer]) -> AbstractContextManager[Any]:
        """Register host memory for the time of a ``with`` block; parameters as in ``register_buffers``."""
        return self._held(self.register_buffers, buffers)

    @contextmanager
    def _held(self, register: Callable[..., Any], *regions: Any) -> Iterator[Any]:
        """Register, and deregister at the end of the block, however it is left.

        Both with the same agent, also when the agent is replaced in between.
        """
        agent, registration = self.agent, register(*regions)
        try:
            yield registration
        finally:
            _deregister(agent, registration)

    def objects_to_nixl_tuples(self, keys: Sequence[str], sizes: Sequence[int]) -> list[StorageTuple]:
        """Return ``(0, size, id, key)`` for each object; NIXL needs a unique number for each."""
        return [(0, size, next(self._object_ids), key) for key, size in zip(keys, sizes, strict=True)]

    def xfer_descs(self, buffers: Sequence[Buffer], storage: Sequence[StorageTuple]) -> tuple[Any, Any]:
        """Return the two descriptor lists of a transfer: host side, storage side."""
        sizes = buffer_sizes(buffers)
        try:
            if isinstance(buffers[0], tuple):
                host = self.agent.get_xfer_descs([(address, size, 0) for address, size in buffers], "DRAM")
            else:
                host = self.agent.get_xfer_descs(buffers)
            files = [(item[0], size, item[2]) for item, size in zip(storage, sizes, strict=True)]
            stored = self.agent.get_xfer_descs(files, self.mem_type)
        except Exception as error:
            raise RegistrationError(f"no descriptor list could be made of these buffers: {error}") from error
        if host is None or stored is None:
            raise RegistrationError("no descriptor list could be made of these buffers: are they contiguous?")
        return host, stored

    def initialize(self, direction: str, host_descs: Any, storage_descs: Any) -> Any:
        """Return the handle of a transfer, ``"READ"`` or ``"WRITE"``; ``run`` posts and releases it."""
        try:
            return self.agent.initialize_xfer(direction, host_descs, storage_descs, self.agent_name)
        except Exception as error:
            raise RegistrationError(f"NIXL refused the transfer request: {error}") from error

    def run(self, handle: Any, pause: Callable[[float], None] = steady_pause) -> None:
        """Post a transfer, poll until it is done, with a pause between two polls, and release its handle.

        The handle is released only when the transfer is DONE or has failed, also when the wait is
        interrupted: releasing a transfer in flight is a use after free (nixl #1955).
        """
        agent, state = self.agent, "PROC"
        try:
            state, start = agent.transfer(handle), time.perf_counter()
            while state == "PROC":
                pause(time.perf_counter() - start)
                state = agent.check_xfer_state(handle)
        except Exception as error:
            raise TransferError(f"the transfer failed in NIXL: {error}") from error
        finally:
            self._settle(agent, handle, state)
            self._release(agent, handle, state)
        if state != "DONE":
            raise TransferError(f"the transfer failed in NIXL: state {state}")

    def _release(self, agent: Any, handle: Any, state: str) -> None:
        """Release a handle; that of a failed transfer of objects later.

        NIXL reports the first object that failed while requests for others are still on their way, and their answers
        are written into the handle (seen as a crash after a get of several objects, one of which was missing).
        """
        if self.mem_type == "OBJ" and state != "DONE":
            self._failed.append((time.monotonic(), agent, handle))
        else:
            agent.release_xfer_handle(handle)
        while self._failed and time.monotonic() - self._failed[0][0] > FAILED_SECONDS:
            _, its_agent, failed = self._failed.popleft()
            its_agent.release_xfer_handle(failed)

    @staticmethod
    def _settle(agent: Any, handle: Any, state: str) -> None:
        while state == "PROC":
            time.sleep(POLL_SECONDS)
            try:
                state = agent.check_xfer_state(handle)
            except Exception:  # the transfer has failed, or was never posted
                return

    def query(self, names: Sequence[str]) -> list[dict[str, str] | None]:
        """Look up files (paths) or objects (keys); ``None`` for one that is missing."""
        if not names:
            return []
        try:
            tuples = [(0, 0, 0, name) for name in names]
            return list(self.agent.query_memory(tuples, self.plugin, mem_type=self.mem_type))
        except Exception as error:
            raise RegistrationError(f"NIXL could not look up {len(names)} pages: {error}") from error

    def close(self) -> None:
        """Drop the agent, which ends its registrations.  May be called twice."""
        if self._failed:  # the answers to its other requests take less
            time.sleep(max(0.0, self._failed[-1][0] + 1 - time.monotonic()))
            self._failed.clear()
        self.agent = None


class RegisteredPools:
    """The memory of host pools, each registered until it is replaced, or until ``close()``.

    Parameters
    ----------
    registration : NixlRegistration
    """

    def __init__(self, registration: NixlRegistration):
        self._registration = registration
        self._held: dict[str, ExitStack] = {}
        # Replaced, not changed: calls on other pools read it meanwhile.
        self._ranges: dict[str, list[tuple[int, int]]] = {}

    def replace(self, pool: str, memory: Sequence[torch.Tensor]) -> None:
        """Register the memory of a pool, in place of what was registered of it before."""
        others = {name: ranges for name, ranges in self._ranges.items() if name != pool}
        self._ranges, ranges = others, []
        held = self._held.setdefault(pool, ExitStack())
        held.close()
        for start, size in zip(buffer_addresses(memory), buffer_sizes(memory), strict=True):
            held.enter_context(self._registration.registered_buffers([(start, size)]))
            ranges.append((start, start + size))
        self._ranges = {**others, pool: ranges}

    def contain(self, buffers: Sequence[Buffer]) -> bool:
        """Return whether all buffers lie in the memory of pools."""
        ranges = list(chain(*self._ranges.values()))
        starts, sizes = buffer_addresses(buffers), buffer_sizes(buffers)
        ends = list(map(add, starts, sizes))
        if _inside(min(starts), max(ends), ranges):
            return True
        return all(map(_inside, starts, ends, repeat(ranges)))  # a page may have pieces in several tensors

    def close(self) -> None:
        """End all registrations.  May be called twice."""
        with ExitStack() as stack:
            for held in self._held.values():
                stack.callback(held.close)


def _inside(start: int, end: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(first <= start and end <= last for first, last in ranges)


def _deregister(agent: Any, registration: Any) -> None:
    try:
        agent.deregister_memory(registration)
    except Exception as error:
        raise RegistrationError(f"cannot deregister with NIXL: {error}") from error


def buffer_addresses(buffers: Sequence[Buffer]) -> list[int]:
    """Return the address of each buffer."""
    return [buffer[0] if isinstance(buffer, tuple) else buffer.data_ptr() for buffer in buffers]


def buffer_sizes(buffers: Sequence[Buffer]) -> list[int]:
    """Return the bytes of each buffer."""
    return [
        buffer[1] if isinstance(buffer, tuple) else buffer.numel() * buffer.element_size()
        for buffer in buffers
    ]
