"""The benchmark over an object store: its workers, their turns, and the store."""

from __future__ import annotations

import dataclasses
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ...errors import HiCacheNixlError, StoreError
from ...host.pools import pool_for_page_bytes
from ...lifetimes.pooled.keys import space_of
from ...lifetimes.pooled_objects.gathered import gathered_folder_of
from ...lifetimes.pooled_objects.segment import folder_of
from ...names import PageNames
from ..experiments.alternating import counted
from ..object_store import Endpoint, ObjectStore
from ..worker.placement import write_back
from ..worker.releases import at_hand, source_of
from ..worker.setup import Setup, key_of
from .arms import OPERATIONS
from .measure import ArmWorker, Turn, Watch, in_rounds, started
from .object_plan import ARMS, OF_SGLANG, OTHER, ObjectArm, ObjectPlan, bucket_of
from .plan import KEYS, KIB, PEER

PATIENCE = 120.0  # seconds for all calls of an operation in a turn
REMOVED = 250  # names in a request; SeaweedFS takes some milliseconds for each
REMOVING = 30.0  # seconds for one


@dataclass(frozen=True)
class MeasuredObjects:
    """What was measured.

    Attributes
    ----------
    plan : ObjectPlan
        Without the arms that were left out.
    times : pandas.DataFrame
        A row per call: ``pair`` (the round), ``arm``, ``page_bytes``, ``operation``, ``seconds``, ``bytes``,
        ``core_seconds`` of the client, and, NaN where they are not known, ``requests`` and ``store_core_seconds``
        of a call in the mean of its turn.
    left_out : list of str
        A sentence for each arm that could not run.
    """

    plan: ObjectPlan
    times: pd.DataFrame
    left_out: list[str]


class ObjectWorker(ArmWorker):
    """A worker that opens arms of this benchmark; each request has a time of its own."""

    def request(self, request: str, **fields: Any) -> dict[str, Any]:
        """Send the worker a request and wait for the answer."""
        self._deadline = time.monotonic() + PATIENCE
        return super().request(request, **fields)

    def open_object_arm(
        self, arm: ObjectArm, endpoint: Endpoint, page_bytes: int, calls: int, seed: int, model: str
    ) -> None:
        """Open an arm."""
        self._ask_to_open(
            kind=arm.kind,
            folder=os.fspath(self.folder),
            queue="libaio",
            page_bytes=page_bytes,
            keys=KEYS,
            calls=calls,
            direct=False,
            seed=seed,
            written=0,
            options=_options_of(arm, endpoint),
            scattered=True,
            wheel=source_of(PEER) if arm.kind in ("nixl", "seaweedfs") else None,
            model=model,
            with_objects=True,
            another=arm.another,
        )

    def time(self, operation: str, calls: int) -> list[dict[str, Any]]:
        """Time calls of one operation; a row for each."""
        rows: list[dict[str, Any]] = self.request("turn", calls=calls, operations=[operation])["rows"]
        return rows


def _options_of(arm: ObjectArm, endpoint: Endpoint) -> dict[str, Any]:
    if arm.on_files:
        return dict(arm.options)
    if arm.kind == "seaweedfs":
        return {
            "endpoint": endpoint.url,
            "bucket": endpoint.bucket,
            "region": endpoint.region,
            "access_key": endpoint.access_key,
            "secret_key": endpoint.secret_key,
        }
    return {**arm.options, **endpoint.extra_config()}


def measure(
    plan: ObjectPlan, storage_dir: str | os.PathLike[str] | None = None, watch: Watch = lambda turn: None
) -> MeasuredObjects:
    """Run a benchmark over an object store; every page size has a store of its own where one is started.

    Raises
    ------
    HiCacheNixlError
        When a worker died, or a call did not store, find or load every page; no credentials are in its message.
    """
    left_out: dict[str, str] = {}
    if set(OF_SGLANG) & set(plan.arms) and (reason := at_hand([PEER])[PEER]):
        left_out = {arm: reason for arm in OF_SGLANG if arm in plan.arms}
    rows: list[dict[str, Any]] = []
    for page_bytes in plan.pages:
        rows += _measure_point(plan, page_bytes, storage_dir, watch, left_out)
    arms = tuple(arm for arm in plan.arms if arm not in left_out)
    times = counted(rows)
    told = [f"{arm} is left out: {reason}" for arm, reason in left_out.items()]
    return MeasuredObjects(dataclasses.replace(plan, arms=arms), times[times.arm.isin(arms)], told)


def _measure_point(
    plan: ObjectPlan,
    page_bytes: int,
    storage_dir: str | os.PathLike[str] | None,
    watch: Watch,
    left_out: dict[str, str],
) -> list[dict[str, Any]]:
    arms = [arm for arm in plan.arms if arm not in left_out]
    model = f"bench-{secrets.token_hex(6)}"
    calls, group = plan.calls(page_bytes), f"{page_bytes / KIB:g} KiB"
    stored = Counter[str]()
    with ExitStack() as stack:
        endpoint, store = stack.enter_context(
            _opened_store(plan, page_bytes, model, storage_dir, stored, watch)
        )
        with _without_secrets(endpoint):
            workers = started(stack, arms, ObjectWorker, storage_dir, PATIENCE)
            for name, worker in workers.items():
                try:
                    seed = list(ARMS).index(name)
                    of_arm = _model_of(model, name)
                    worker.open_object_arm(ARMS[name], endpoint, page_bytes, calls, seed, of_arm)
                    stored[name] += KEYS
                    for operation in OPERATIONS:
                        worker.time(operation, 1)
                except HiCacheNixlError as error:
                    if name not in OF_SGLANG:
                        raise
                    left_out[name] = endpoint.redacted(str(error)).partition("\n")[0]

            def turn(arm: str) -> list[dict[str, Any]]:
                stored[arm] += calls * KEYS
                rows = [
                    {"page_bytes": page_bytes, **row}
                    for operation in OPERATIONS
                    for row in _counted(workers[arm], operation, calls, None if ARMS[arm].on_files else store)
                ]
                write_back(workers[arm].folder, drop=True)
                return rows

            return in_rounds(group, [arm for arm in arms if arm not in left_out], plan.rounds, turn, watch)


def _counted(
    worker: ObjectWorker, operation: str, calls: int, store: ObjectStore | None
) -> list[dict[str, Any]]:
    """Time an operation, with what the store did for it."""
    if store is None:
        return worker.time(operation, calls)
    before = sum(store.requests().values()), sum(store.cpu_seconds().values())
    rows = worker.time(operation, calls)
    requests = (sum(store.requests().values()) - before[0]) / calls
    seconds = (sum(store.cpu_seconds().values()) - before[1]) / calls
    return [{**row, "requests": requests, "store_core_seconds": seconds} for row in rows]


# -- the store -----------------------------------------------------------------------------------------


@contextmanager
def _opened_store(
    plan: ObjectPlan,
    page_bytes: int,
    model: str,
    storage_dir: str | os.PathLike[str] | None,
    stored: Mapping[str, int],
    watch: Watch,
) -> Iterator[tuple[Endpoint, ObjectStore | None]]:
    """Start a store, or use the user's own; what was stored is removed, whatever happens."""
    if plan.endpoint is None:
        with (
            tempfile.TemporaryDirectory(prefix="hicache-nixl-", dir=storage_dir) as folder,
            ObjectStore(plan.volumes, folder=folder) as store,
        ):
            yield store.endpoint, store
        return
    try:
        yield plan.endpoint, None
    except KeyboardInterrupt:
        watch(Turn("", 0, 0, removing=True))
        raise
    finally:
        _remove(plan.endpoint, *_written(page_bytes, model, stored))


def _remove(endpoint: Endpoint, folders: Sequence[str], names: Sequence[str]) -> None:
    """Remove objects from the user's own store: those in folders, and those of some names."""
    try:
        with closing(bucket_of(endpoint, REMOVING)) as bucket:
            written = [*names, *(name for folder in folders for name in bucket.names(folder))]
            for first in range(0, len(written), REMOVED):
                bucket.remove(written[first : first + REMOVED])
    except (StoreError, FileNotFoundError, KeyboardInterrupt) as error:
        why = endpoint.redacted(str(error)) or "interrupted"
        raise HiCacheNixlError(
            f"objects in {', '.join(folders[1:])}, and with {folders[0][:-1]} in their names, are left in bucket "
            f"{endpoint.bucket}: {why}"
        ) from None


def _written(page_bytes: int, model: str, stored: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Return the folders of the objects of a point, and the names of those in none."""
    named = {}
    for arm, plain in (("scoped", False), (PEER, True), (OTHER, False)):
        config = dataclasses.replace(Setup("scoped").storage_config(), model_name=_model_of(model, arm))
        named[arm] = PageNames(config, plain=plain)
        if not plain:
            named[arm].for_pool(pool_for_page_bytes(page_bytes, pages=1), True)
    pages = [named[arm].of_pages([], True) for arm in ("scoped", OTHER)]  # pooled and scoped are of one model
    spaces = [space_of(some.suffix, some.endings) for some in pages]
    folders = [folder(space) for space in spaces for folder in (folder_of, gathered_folder_of)]
    names = []
    for arm in ("scoped", PEER):
        keys = [key_of(list(ARMS).index(arm), page) for page in range(stored.get(arm, 0))]
        names += named[arm].of_pages(keys, True).names
    return [f"{model}/", *folders], names


def _model_of(model: str, arm: str) -> str:
    """Return the name of an arm's model: an arm of its own, or it would learn of the segments of another one, too."""
    return f"{model}-{arm}" if arm == OTHER else model


@contextmanager
def _without_secrets(endpoint: Endpoint) -> Iterator[None]:
    """Keep secrets out of the message of an error: SGLang's connector logs its parameters when it fails."""
    try:
        yield
    except HiCacheNixlError as error:
        redacted = endpoint.redacted(str(error))
        if redacted == str(error):
            raise
        raise HiCacheNixlError(redacted) from None
