"""The metrics of a watch, asked for over HTTP, and the alert rules and the panel that use them."""

from __future__ import annotations

import json
import os
import re
import socket
import urllib.request
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from test_verdict import FLAT, LEAKING

from hicache_nixl.errors import ConfigError
from hicache_nixl.watch.exporter import METRICS, serving
from hicache_nixl.watch.group import Group

DATA = Path(__file__).resolve().parents[2] / "data"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served() -> dict[str, dict[tuple[str, ...], float]]:
    """What a real request answers for a process that leaks: by name, the value of each pid and other label."""
    group, port = Group([os.getpid()]), free_port()
    for sample in LEAKING:
        group.members[0].seen.add(sample)
    with serving(str(port)) as exporter:
        exporter.update(group)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    return {
        family.name: {
            tuple(sample.labels[label] for label in METRICS[family.name][1]): sample.value
            for sample in family.samples
        }
        for family in text_string_to_metric_families(text)
    }


def test_every_metric_is_served(served):
    assert set(served) == set(METRICS)


def test_the_values_are_those_of_the_watch_with_the_process_as_label(served):
    pid = str(os.getpid())
    assert served["hicache_watch_open_fds"][pid, "storage"] == 118
    assert served["hicache_watch_open_fds"][pid, "socket"] == 40
    assert served["hicache_watch_fd_limit"] == {(pid,): 1000}
    assert served["hicache_watch_growth_per_minute"][pid, "storage"] == pytest.approx(120)
    assert served["hicache_watch_growth_per_minute_low"][pid, "storage"] < 120
    assert served["hicache_watch_growth_per_minute_high"][pid, "storage"] > 120
    assert {kind for (_, kind), leaks in served["hicache_watch_leaking"].items() if leaks} == {"storage"}
    expected = {(pid, "leak"): 1, (pid, "no leak"): 0, (pid, "undecided"): 0}
    assert served["hicache_watch_verdict"] == expected
    assert served["hicache_watch_seconds_to_limit"][(pid,)] == pytest.approx(421)


def test_without_a_leak_there_is_no_time_until_the_limit():
    group, port = Group([os.getpid()]), free_port()
    for sample in FLAT:
        group.members[0].seen.add(sample)
    with serving(f"127.0.0.1:{port}") as exporter:
        exporter.update(group)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert "hicache_watch_seconds_to_limit{" not in answer.read().decode()


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"--prometheus {port}: Address already in use; expected a free"
        ):
            serving(str(port)).__enter__()


@pytest.mark.parametrize("name", ["prometheus_alerts.yml", "grafana_panel.json"])
def test_what_is_in_data_uses_metrics_and_labels_that_are_served(name):
    text = (DATA / name).read_text()
    (yaml.safe_load if name.endswith("yml") else json.loads)(text)
    used = set(re.findall(r"hicache_watch_\w+", text))
    assert used
    assert used <= set(METRICS)
    labels = set(re.findall(r"\{\{ *\$labels\.(\w+)", text)) | set(re.findall(r"\{\{(\w+)\}\}", text))
    served = {label for _, labels in METRICS.values() for label in labels}
    assert labels <= served | {"instance", "job"}


def test_the_panel_and_the_alerts_have_expressions():
    panel = json.loads((DATA / "grafana_panel.json").read_text())
    assert [target["refId"] for target in panel["targets"] if target["expr"]] == ["A", "B", "C"]
    (group,) = yaml.safe_load((DATA / "prometheus_alerts.yml").read_text())["groups"]
    assert all({"alert", "expr", "for", "labels", "annotations"} <= set(rule) for rule in group["rules"])
