"""SeaweedFS's program ``weed``: where it is, its command lines, its ports, and what it says of itself."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from ...errors import ConfigError
from .endpoint import INSTALL, Endpoint

HOST = "127.0.0.1"
GRPC = 10_000  # between a port and that of the same process for gRPC
PORTS = range(10_000, 22_000)  # with those of gRPC below the ones that the kernel gives to clients
READINGS, SETTLED = 10, 0.02  # of the counts of requests, and seconds between two
GROWN = 8  # volumes for each server
VOLUME_MB = 128  # room for a volume on a small disk; files grow with what is in them
_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches the loopback
_SETTINGS = ("AWS_", "S3_", "SEAWEEDFS_", "WEED_")  # beginnings of the variables that weed itself reads


def program() -> str:
    """Return the path of ``weed``: of this Python's environment, or of PATH.

    Raises
    ------
    ConfigError
        When it is missing.
    """
    beside = Path(sys.executable).with_name("weed")
    found = os.fspath(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise ConfigError(f"SeaweedFS's program weed is missing: {INSTALL}")
    return found


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """Return ports of the loopback on which nobody listens, each with the one for gRPC above it."""
    found: dict[str, int] = {}
    while len(found) < len(names):
        port = random.choice(PORTS)
        if port not in found.values() and _is_free(port) and _is_free(port + GRPC):
            found[names[len(found)]] = port
    return found


def listens(port: int) -> bool:
    """Return whether a process listens on a port of the loopback, and on the one for gRPC above it."""
    for number in (port, port + GRPC):
        with socket.socket() as asked:
            if asked.connect_ex((HOST, number)) != 0:
                return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind((HOST, port))
        except OSError:
            return False
    return True


def commands(
    ports: Mapping[str, int], data: Path, scratch: Path, volumes: int, replication: str
) -> dict[str, list[str]]:
    """Return the command lines of a master, volume servers, a filer and S3, by role.

    ``weed server`` has all of them in one process.  It is not used, since it sleeps 2 s before it starts S3, leaves
    sockets in /tmp when it is killed, and does not end by SIGTERM.
    """
    master = {
        "mdir": data / "master",
        "peers": "none",  # a master alone waits for no other
        "telemetry": "false",
        "volumeSizeLimitMB": VOLUME_MB,
        "defaultReplication": replication,
    }
    server = {"master": f"{HOST}:{ports['master']}", "max": 0, "preStopSeconds": 0}
    filer = {
        "defaultStoreDir": data / "filer",
        "master": f"{HOST}:{ports['master']}",
        "localSocket": _socket(ports["filer"]),
    }
    s3 = {
        "filer": f"{HOST}:{ports['filer']}",
        "config": scratch / "s3.json",
        "localSocket": _socket(ports["s3"]),
        "metricsPort": ports["metrics"],
        "port.iceberg": 0,
        "port.lance": 0,
    }
    servers = {
        f"volume{number}": {**server, "dir": data / f"volume{number}"} for number in range(1, volumes + 1)
    }
    roles: dict[str, dict[str, Any]] = {"master": master, **servers, "filer": filer, "s3": s3}
    return {role: _command(role, ports[role], options) for role, options in roles.items()}


def _socket(port: int) -> str:
    """Return a name for a socket that is no file: none is left in /tmp, and no path is too long for one."""
    return f"@hicache-nixl-objects-{port}"


def _command(role: str, port: int, options: Mapping[str, Any]) -> list[str]:
    what = "volume" if role.startswith("volume") else role
    everywhere = {"ip": HOST, "ip.bind": HOST, "port": port, **options}
    return [program(), what, *(f"-{name}={value}" for name, value in everywhere.items())]


def environ_of(scratch: Path, volumes: int) -> dict[str, str]:
    """Return the variables of the processes, which read no settings of the user's.

    A bucket begins with as many volumes as are likely to be on every server, since SeaweedFS places them at random.
    """
    grown = {f"WEED_MASTER_VOLUME_GROWTH_COPY_{copies}": str(GROWN * volumes) for copies in (1, 2, 3)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    return {**kept, **grown, "HOME": os.fspath(scratch), "TMPDIR": os.fspath(scratch)}


def write_identity(file: Path, endpoint: Endpoint) -> None:
    """Write the configuration of S3: the one who may log in, readable by this user alone."""
    identity = {
        "name": "lab",
        "credentials": [{"accessKey": endpoint.access_key, "secretKey": endpoint.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        json.dump({"identities": [identity]}, opened)


def known_servers(master: int) -> set[int]:
    """Return the ports of the volume servers that a master knows; none while it does not answer."""
    try:
        with _HTTP.open(f"http://{HOST}:{master}/dir/status", timeout=5) as answer:
            topology = json.load(answer)["Topology"]
    except (OSError, ValueError):
        return set()
    racks = [rack for center in topology.get("DataCenters") or () for rack in center.get("Racks") or ()]
    nodes = [node for rack in racks for node in rack.get("DataNodes") or ()]
    return {int(node["Url"].rpartition(":")[2]) for node in nodes}


def counted_requests(metrics: int) -> Counter[str]:
    """Return the requests that S3 has counted since it started, by kind.

    A request is counted a little after its answer, so the numbers are read until they stay the same,
    or ten times while requests go on.
    """
    counted = _read_requests(metrics)
    for _ in range(READINGS):
        time.sleep(SETTLED)
        before, counted = counted, _read_requests(metrics)
        if before == counted:
            break
    return counted


def _read_requests(metrics: int) -> Counter[str]:
    with _HTTP.open(f"http://{HOST}:{metrics}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    counted: Counter[str] = Counter()
    for sample in (sample for family in families for sample in family.samples):
        if sample.name == "SeaweedFS_s3_request_total":
            counted[sample.labels["type"]] += int(sample.value)
    return counted
