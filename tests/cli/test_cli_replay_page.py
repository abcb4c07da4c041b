"""hicache-nixl replay --html: one page with the summary, the figure, the settings and every call."""

from __future__ import annotations

from pathlib import Path

import pytest
from bs4 import BeautifulSoup, Tag
from test_cli import run as run_in_this_process
from test_cli_replay import SMALL, cells

from hicache_nixl.lab.report import replay_page

run = run_in_this_process  # the fixture that runs a command line
TWO = f"{SMALL} --connector leaky --connector scoped"


def page(path: Path) -> Tag:
    return BeautifulSoup(path.read_text(), "html.parser").main


def row(table: Tag, heading: str) -> list[str]:
    """Return the cells of the row with a heading."""
    (found,) = [line for line in table("tr") if line.th.get_text() == heading]
    return [cell.get_text() for cell in found("td")]


def test_its_summary_is_the_printed_one(run, tmp_path):
    answer = run(f"replay steady --calls 2 --keys 4 {TWO} --html {tmp_path}/p.html")
    assert (answer.code, answer.err) == (0, "")
    table = page(tmp_path / "p.html").select_one("#summary ~ div table")
    assert [cell.get_text() for cell in table.thead("th")] == ["connector", "leaky", "scoped"]
    printed = cells(answer.out)
    assert {heading: row(table, heading) for heading in printed} == printed
    assert row(table, "descriptors at end") == ["151", "135"]


def test_it_has_the_figure_for_a_desk_and_for_a_phone_and_nothing_from_elsewhere(run, tmp_path):
    run(f"replay steady --calls 2 --keys 4 {TWO} --html {tmp_path}/p.html")
    picture = page(tmp_path / "p.html").picture
    assert "with leaky the count rises from 135 to 151" in picture.img["alt"]
    assert picture.source["media"]
    sources = (picture.img["src"], picture.source["srcset"])
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    text = (tmp_path / "p.html").read_text()
    assert [part for part in ("http://", "https://", "<script", "url(", "@import") if part in text] == []


def test_the_calls_of_each_connector_are_folded(run, tmp_path):
    run(f"replay steady --calls 3 --keys 4 {TWO} --html {tmp_path}/p.html")
    folded = page(tmp_path / "p.html").select("#calls ~ details:not(.kept)")
    assert [one.summary.get_text() for one in folded] == ["leaky: 3 calls", "scoped: 3 calls"]
    assert not any(one.has_attr("open") for one in folded)
    rows = [[cell.get_text() for cell in line("td")] for line in folded[0].tbody("tr")]
    assert [line[:4] for line in rows] == [
        ["1", "set", "4", "8"],
        ["2", "get", "4", "8"],
        ["3", "set", "4", "8"],
    ]


def test_of_very_many_calls_it_has_the_first_ones_and_says_so(run, monkeypatch, tmp_path):
    monkeypatch.setattr(replay_page, "MOST", 2)
    run(f"replay steady --calls 3 --keys 4 {SMALL} --html {tmp_path}/p.html")
    folded = page(tmp_path / "p.html").select_one("#calls ~ details")
    assert folded.summary.get_text() == "leaky: the first 2 of 3 calls"
    assert len(folded.tbody("tr")) == 2


def test_it_names_the_log_and_the_settings_that_were_given(run, tmp_path):
    log = tmp_path / "<server>.csv"
    log.write_text("operation,keys\nget,16\nset,8\n")
    run(f"replay '{log}' {SMALL} --nofile-limit 1000 --html {tmp_path}/p.html")
    table = page(tmp_path / "p.html").select_one("#setting ~ table")
    settings = {line.th.get_text(): line.td.get_text() for line in table("tr")}
    assert settings["read from"] == str(log)
    assert settings["stored before call 1"] == "16 keys"
    assert (settings["nofile limit"], settings["baseline fds"], settings["direct"]) == ("1000", "135", "no")
    assert "model" not in settings


@pytest.mark.parametrize(
    ("options", "verdict", "says"),
    [
        ("", "every page of every call was right", ""),
        ("--nofile-limit 142", "2 calls failed", "leaky: call 1, a set, is the first that failed: Too many"),
        (
            "--connector scoped --connector sglang==0.0.1",
            "every page of every call was right",
            "sglang==0.0.1: ",
        ),
    ],
    ids=["right", "failed", "not replayed"],
)
def test_it_begins_with_whether_the_calls_were_right(run, tmp_path, options, verdict, says):
    run(f"replay steady --calls 2 --keys 4 {SMALL} {options} --html {tmp_path}/p.html")
    main = page(tmp_path / "p.html")
    assert main.p.get_text() == verdict
    assert says in main.get_text()


def test_a_page_that_cannot_be_written_does_not_hide_the_summary(run, monkeypatch, tmp_path):
    monkeypatch.setattr(
        Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    answer = run(f"replay steady --calls 1 --keys 1 {SMALL} --html {tmp_path}/p.html")
    assert answer.code == 1
    assert cells(answer.out)["descriptors at end"] == ["137"]
    assert answer.error() == f"{tmp_path}/p.html was not written: No space left"
