"""The connectors that are compared, and what is expected of each, as data."""

from __future__ import annotations

import pandas as pd
import pytest

from hicache_nixl.config import LIFETIMES
from hicache_nixl.errors import ConfigError
from hicache_nixl.lab import connectors
from hicache_nixl.lab.worker.releases import PREFIX, known_releases

EXPECTED = connectors.expected()


def test_every_lifetime_and_every_release_has_a_row_and_nothing_else():
    assert set(EXPECTED.index) == {*LIFETIMES, *(f"{PREFIX}{version}" for version in known_releases())}
    assert EXPECTED.index.is_unique


def test_a_release_stands_for_the_lifetime_of_its_role():
    for version, row in known_releases().items():
        if row.stands_for:
            assert EXPECTED.role[f"{PREFIX}{version}"] == EXPECTED.role[row.stands_for]


def test_what_is_returned_may_be_changed():
    table = connectors.expected()
    table.loc["leaky", "role"] = "other"
    assert connectors.expected().role["leaky"] == "before"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched; the newest release is not available."""

    def at_hand(names: list[str]) -> dict[str, str]:
        return {name: "no registry" if name == EXPECTED.index[-1] else "" for name in names}

    monkeypatch.setattr(connectors, "at_hand", at_hand)


@pytest.mark.usefixtures("offline")
class TestPeers:
    def test_they_are_the_releases_of_the_roles_in_the_order_of_the_table(self):
        known = connectors.peers("fix", "before").connector.tolist()
        assert known == [name for name in EXPECTED.index if name.startswith(PREFIX)][:2]

    def test_without_a_role_they_are_all_releases(self):
        assert len(connectors.peers()) == len(known_releases())

    def test_a_role_that_no_connector_has_is_refused(self):
        with pytest.raises(ConfigError, match="role leak is unknown; expected one of before, fix, owned"):
            connectors.peers("fix", "leak")

    def test_one_that_is_not_available_has_its_reason(self):
        released = connectors.peers()
        assert released.status.tolist() == ["available", "available", "available", "no registry"]
        assert connectors.available(released) == released.connector.tolist()[:-1]


def test_same_counts_are_counted_call_by_call():
    table = pd.DataFrame({"open_fds": [6, 8, 10], "storage_fds": [0, 2, 4], "registrations": [4, 8, 12]})
    assert connectors.same_counts(table, table) == 3
    assert connectors.same_counts(table, table.assign(open_fds=[6, 8, 11])) == 2
    assert connectors.same_counts(table, table.assign(registrations=0)) == 0
