"""Two real SGLang servers that share an object store: what one has stored the other loads, and no secret is shown."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import psutil
import pytest

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.experiments.sharing import two_servers
from hicache_nixl.lab.object_store import ObjectStore
from hicache_nixl.lab.runs.record import AVAILABLE
from hicache_nixl.lab.server import Server, ServerError, install

pytestmark = [pytest.mark.server, pytest.mark.timeout(1200)]

NEW = "0.5.23"
CONNECTIONS = 16  # that NIXL's eight threads and the client that lists keep, at most


@pytest.fixture(scope="module", autouse=True)
def environments() -> None:
    """Skip where what the servers need is not there and cannot be installed."""
    try:
        install(NEW)
    except (ConfigError, ServerError) as error:
        pytest.skip(f"sglang {NEW} cannot be installed here: {error}")


@pytest.mark.parametrize("lifetime", ["pooled", "scoped"])
def test_one_loads_all_whole_pages_that_the_other_has_stored(lifetime):
    released = pd.DataFrame({"connector": [f"sglang=={NEW}"], "status": [AVAILABLE]})
    table = two_servers(released, lifetimes=[lifetime], prompts=2, model="small")
    by_step = table.groupby("step").hit_rate
    assert (
        by_step.min().to_dict()
        == by_step.max().to_dict()
        == {"stored": 0, "again": 0, "cold": 0, "shared": 1}
    )
    assert table.same_output[table.step == "shared"].all()
    assert ((table.open_fds - table.fds_before).abs() <= CONNECTIONS).all()


def test_the_build_of_nixl_with_objects_is_the_only_one_loaded_and_no_secret_is_in_a_command_line_or_log():
    with (
        ObjectStore() as store,
        Server(NEW, "hicache_nixl", lifetime="pooled", objects=store.endpoint) as server,
    ):
        server.ask([5] * 8)
        maps = Path(f"/proc/{server.pid}/maps").read_text()
        assert "nixl_cu12" in maps
        assert "nixl_cu13" not in maps
        commands = [one.cmdline() for one in psutil.Process(server.pid).parent().children()]
        for shown in (server.log(), repr(commands), repr(server.process.processes())):
            assert store.endpoint.secret_key not in shown
