"""The facts of a host: versions, queues, kernel, limits and disk, and how the hosts of a fleet differ in them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...config import QUEUES
from ..plan import existing_folder
from ..runs.provenance import provenance

SETTINGS = ("kernel/io_uring_disabled", "fs/aio-max-nr", "fs/nr_open")  # below /proc/sys
QUEUES_THAT_WORK, PLUGINS, FREE = "queues that work", "NIXL plugins", "free space"
DISK = ("storage", "O_DIRECT", FREE)  # facts of a folder
VARYING = (FREE,)  # begin the names of facts in which hosts differ in any case
NONE = "none"

Facts = dict[str, str]


@dataclass(frozen=True)
class Difference:
    """A fact in which hosts differ.

    Attributes
    ----------
    what : str
    values : list of (str, list of str)
        Each value with the hosts that have it, the most frequent first.
    """

    what: str
    values: list[tuple[str, list[str]]]


def facts_of(storage_dir: str | None, own_folder: bool) -> dict[str, Any]:
    """Find the facts of this host, in some seconds.

    Parameters
    ----------
    storage_dir : str or None
        The folder whose disk is meant.
    own_folder : bool
        Whether to try things in a new folder there, or in the folder for temporary files, as notebooks do; else in the
        folder itself or the one that a server would use, as ``doctor`` does.

    Returns
    -------
    dict
        ``facts``, and ``diagnosis`` as ``doctor --json`` prints it.
    """
    from ...doctor import sglang_check  # here: doctor is built upon lab
    from ...doctor.diagnosis import diagnose

    parent = existing_folder(storage_dir) if storage_dir else None
    with tempfile.TemporaryDirectory(dir=parent) if own_folder else nullcontext(storage_dir) as folder:
        diagnosis = dataclasses.asdict(diagnose(folder, sglang_check.find(None)))
        return {"facts": _flat(provenance(folder), diagnosis), "diagnosis": diagnosis}


def _flat(known: Mapping[str, Any], diagnosis: Mapping[str, Any]) -> Facts:
    """Return the facts as short texts."""
    versions, limit = known["versions"], known["nofile_limit"]
    found = {row["what"]: row for part in ("leak", "machine") for row in diagnosis[part]}
    queues = {name: found[f"queue {name}"] for name in QUEUES}
    about = found["file system"]["detail"].removeprefix("this is memory, not a disk: ")
    sglang = found["your SGLang"]["detail"].partition("; it is in ")[0].removesuffix(" in this environment")
    return {
        "hicache-nixl": str(versions["hicache-nixl"]),
        "commit": known["git_commit"] or "installed from a wheel",
        "NIXL": str(versions["nixl"]),
        PLUGINS: _plugins(diagnosis["builds"]),
        QUEUES_THAT_WORK: ", ".join(name for name, row in queues.items() if row["state"] == "ok") or NONE,
        **{f"queue {name}": row["detail"] for name, row in queues.items()},
        "SGLang": sglang,
        "storage": f"{known['storage']['file_system']}, {known['storage']['options']}",
        "O_DIRECT": found["O_DIRECT"]["state"],
        FREE: next((part for part in about.split(", ") if "free" in part), "unknown").partition(" free")[0],
        "open files": f"soft {limit['soft']}, hard {limit['hard']}",
        "kernel": known["kernel"],
        **_settings(),
        "cpu": f"{known['cpu']['model']}, {known['cpu']['cores']} cores, {known['machine']}",
        "memory": f"{known['memory_bytes'] / 2**30:.0f} GiB",
        "python": str(versions["python"]),
        "torch": str(versions["torch"]),
        "numpy": str(versions["numpy"]),
        "distributed": version("distributed"),
    }


def of_folder(facts: Facts, folder: str) -> Facts:
    """Name the facts of a disk after the folder in which they were found, where others are in use, too.

    Examples
    --------
    >>> of_folder({"storage": "ext4", "kernel": "6.1"}, "/mnt/a")
    {'storage of /mnt/a': 'ext4', 'kernel': '6.1'}
    """
    return {f"{name} of {folder}" if name in DISK else name: value for name, value in facts.items()}


def _plugins(builds: Sequence[Mapping[str, Any]]) -> str:
    """Return the plugins that can be created, of the build that ``import nixl`` loads."""
    chosen = next((build for build in builds if build["chosen"]), None)
    if chosen is None:
        return NONE
    return ", ".join(plugin["name"] for plugin in chosen["plugins"] if plugin["state"] == "ok") or NONE


def _settings() -> Facts:
    values = {}
    for name in SETTINGS:
        path = Path("/proc/sys", name)
        if path.exists():
            values[name.replace("/", ".")] = path.read_text().strip()
    return values


def differences(hosts: Mapping[str, Facts]) -> tuple[list[Difference], Facts]:
    """Return in what hosts differ, and what all of them share.

    Examples
    --------
    >>> found, shared = differences({"a": {"NIXL": "1.5.1", "kernel": "6.1"}, "b": {"NIXL": "1.5.0", "kernel": "6.1"}})
    >>> found[0].values, shared
    ([('1.5.1', ['a']), ('1.5.0', ['b'])], {'kernel': '6.1'})
    """
    names = dict.fromkeys(name for facts in hosts.values() for name in facts)
    found, shared = [], {}
    for name in names:
        by_value: dict[str, list[str]] = {}
        for host, facts in hosts.items():
            by_value.setdefault(facts.get(name, ""), []).append(host)
        if len(by_value) == 1:
            shared[name] = next(iter(by_value))
        elif not name.startswith(VARYING):
            ordered = sorted(by_value.items(), key=lambda entry: -len(entry[1]))
            found.append(Difference(name, [(value or "nothing told", some) for value, some in ordered]))
    return found, shared


def unusual(hosts: Mapping[str, Facts]) -> set[tuple[str, str]]:
    """Return the pairs of host and fact whose value is not the most frequent one; where all differ, all are.

    Examples
    --------
    >>> sorted(unusual({"a": {"NIXL": "1"}, "b": {"NIXL": "1"}, "c": {"NIXL": "2"}}))
    [('c', 'NIXL')]
    """
    marked = set()
    for difference in differences(hosts)[0]:
        counts = Counter({value: len(some) for value, some in difference.values})
        (_, most), *_ = counts.most_common(1)
        alone = [value for value, count in counts.items() if count == most]
        usual = alone[0] if len(alone) == 1 else None
        marked |= {
            (host, difference.what) for value, some in difference.values if value != usual for host in some
        }
    return marked
