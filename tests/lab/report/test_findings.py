"""The findings of a report follow from the tables of the run: other values, other sentences."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import served
from kept_objects import counts, turns
from measured import COST, INTO_LIMIT, PR_FLAT

from hicache_nixl.lab.connectors import expected
from hicache_nixl.lab.report import build, read_record
from hicache_nixl.lab.report.findings import findings
from hicache_nixl.lab.runs.run import Run

SPEED, LEAK, REVIEW = "03_before_and_after", "04_the_second_leak", "05_the_review_answered"
RELEASES = [name for name in expected().index if "==" in name]


def facts(connectors: list[str] = RELEASES) -> pd.DataFrame:
    """What each release leaves in a call of 8 keys, as expected."""
    known = expected().loc[connectors]
    left = {f"{what}_per_call": 8 * known[f"{what}_per_key"] for what in ("fds", "registrations")}
    return pd.DataFrame({**left, "keys": 8}).reset_index()


def slopes(low: float = 3.8) -> pd.DataFrame:
    rows = [("registrations", 128, 128, 128), ("seconds", 4.4, low, 4.9), ("rss_bytes", 27, 25.9, 28.3)]
    return pd.DataFrame(rows, columns=["column", "per_call", "low", "high"]).assign(connector="try_finally")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The tables that findings are made of."""
    both = {"leaky": INTO_LIMIT, "try_finally": PR_FLAT}
    first = Run(SPEED, tmp_path, {"nofile_limit": 4200})
    first.table("descriptors", pd.concat(both, names=["connector"]).reset_index("connector"))
    first.table("cost", COST.assign(id="cost", time_ratio=1.02, low=0.98, high=1.04))
    Run(LEAK, tmp_path, {"keys_per_call": 32}).table("slopes", slopes())
    Run(REVIEW, tmp_path, {}).table("releases", facts())
    return tmp_path


def said(run: Path) -> list[str]:
    return [answer.text for answer in findings(read_record(run))]


def test_five_sentences_say_how_large_what_it_does_costs_leaves_and_what_to_install(run):
    leak, fix, cost, left, affected = said(run)
    assert leak == (
        "Before the fix, every key of a call leaves 2 descriptors open: at a limit of 4200, call 22 of 27 fails "
        "with EMFILE (too many open files), and from then on 0 of 768 pages are stored or loaded."
    )
    assert fix.startswith(
        "With the fix, 135 descriptors are open after 21 of the same 21 calls, as before the first"
    )
    assert cost.startswith("A set takes 1.02 [0.98, 1.04] times as long after the fix (no slower); a get")
    assert cost.endswith(" The margin is 1.05: 5 % longer is allowed.")
    assert "leaves 128 NIXL registrations" in left
    assert (
        "memory grows by 27.0 [25.9, 28.3] KiB per call, and a get takes 4.40 [3.80, 4.90] µs longer with every call."
        in left
    )
    assert affected == (
        "SGLang up to 0.5.11 leaks descriptors, 0.5.12 leaks registrations, from 0.5.13 on neither: install 0.5.13 "
        "or later. Checked in this run, by the descriptors and registrations that a call of 8 keys leaves: "
        "0.5.11 (16 and 32), 0.5.12 (0 and 32), 0.5.13.post1 (0 and 0) and 0.5.23 (0 and 0)."
    )


def test_they_follow_from_what_was_measured(run):
    files = read_record(run).files
    leaking = PR_FLAT.assign(open_fds=PR_FLAT.open_fds + PR_FLAT.call)
    files.write_table(SPEED, "descriptors", leaking.assign(connector="try_finally", storage_fds=leaking.call))
    files.write_table(LEAK, "slopes", slopes(low=-1))
    files.write_table(REVIEW, "releases", facts().assign(fds_per_call=[16, 0, 0, 3]))
    leak, fix, _, left, affected = said(run)
    assert leak == "Not measured in this run (notebook 03)."
    assert "135 descriptors are open after 0 of the same 21 calls" in fix
    assert "whether gets become slower is not certain (4.40 [-1.00, 4.90] µs per call)" in left
    assert "0.5.13.post1 neither, from 0.5.23 on leaks descriptors: no later release is known" in affected


def test_what_was_not_checked_here_is_said_with_the_reason(run):
    files = read_record(run).files
    why = pd.DataFrame(
        [(RELEASES[-1], f"{RELEASES[-1]} is not available: no package registry; known to work: 0")],
        columns=["connector", "status"],
    )
    files.write_table(REVIEW, "released", why)
    files.write_table(REVIEW, "releases", facts(RELEASES[:-1]))
    text = said(run)[-1]
    assert "from 0.5.13 on neither: install 0.5.13 or later." in text
    assert text.endswith("0.5.13.post1 (0 and 0). Not checked in this run: 0.5.23 (no package registry).")


def test_without_the_notebooks_nothing_is_claimed_as_measured(tmp_path):
    Run(SPEED, tmp_path, {})
    *three, left, affected = said(tmp_path)
    assert three == ["Not measured in this run (notebook 03)."] * 3
    assert left == "Not measured: notebook 04 was not part of this run."
    assert affected.endswith(
        "install 0.5.13 or later. Not checked in this run: 0.5.11, 0.5.12, 0.5.13.post1 and 0.5.23 (notebook 05 was not "
        "part of this run)."
    )
    assert build(tmp_path).read_text().count("none in this run: notebook 05 was not part of this run.") == 3


def test_a_notebook_that_began_did_not_get_that_far(tmp_path):
    Run(REVIEW, tmp_path, {})
    assert said(tmp_path)[-1].endswith("(notebook 05 did not get that far).")
    assert build(tmp_path).read_text().count("none in this run: notebook 05 did not get that far.") == 3


def test_a_run_of_another_notebook_has_no_findings_and_no_agenda(tmp_path):
    Run("01_reproduce_the_leak", tmp_path, {})
    assert said(tmp_path) == []
    page = build(tmp_path).read_text()
    assert [name for name in ("findings", "agenda") if f'id="{name}"' in page or f'"#{name}"' in page] == []


def test_a_run_with_objects_says_what_stays_there_and_what_is_faster(tmp_path):
    run = Run("09_past_one_machine", tmp_path, {})
    run.table("counts", counts())
    known = "With pages in objects, no storage descriptor is open after a call; the PR's fix (try_finally) leaves 4"
    assert said(tmp_path) == [f"{known} registrations per key."]
    run.table("turns", turns(ms_per_mib=0))
    assert said(tmp_path) == [
        f"{known} registrations per key. There, pooled is this many times as fast as scoped: 32 to 128 at sets and 32 to 128 "
        "at gets of 16 KiB pages; 32 to 128 at sets and 32 to 128 at gets of 256 KiB pages."
    ]
    page = build(tmp_path).read_text()
    assert ("Review agenda" in page, page.count("<li><strong>")) == (False, 1)


def test_descriptors_that_stay_open_with_objects_are_counted(tmp_path):
    Run("09_past_one_machine", tmp_path, {}).table("counts", counts(leaking=2))
    assert "up to 42 storage descriptors are open" in said(tmp_path)[0]


def test_a_run_without_an_object_store_measured_nothing(tmp_path):
    Run("09_past_one_machine", tmp_path, {}).table("counts", counts()[:0])
    assert said(tmp_path) == ["Not measured in this run (notebook 09)."]


def test_a_run_with_servers_says_when_the_leak_ends_them_and_what_ours_keeps(tmp_path):
    run = Run("08_inside_sglang", tmp_path, {})
    run.table("leak", served.LEAK)
    run.table("ours", served.OURS)
    leak, ours = said(tmp_path)
    assert leak == (
        "Its scheduler had 62 descriptors open before the first of 5 rounds, and 510 after the last one. From round 4 on, "
        "it found nothing in storage and computed 2 repeated prompts again."
    )
    assert "640 with leaky in 0.5.11, 0 with scoped in 0.5.11" in ours


def test_a_run_without_a_server_measured_nothing(tmp_path):
    Run("08_inside_sglang", tmp_path, {}).table("leak", served.LEAK[:0])
    assert said(tmp_path) == ["Not measured in this run (notebook 08)."] * 2
    page = build(tmp_path).read_text()
    assert "Review agenda" not in page
    assert 'href="#agenda"' not in page


def test_the_report_has_them_after_the_verdict_then_the_agenda_then_the_figures(run):
    page = build(run).read_text()
    places = [
        page.index(f'id="{name}"')
        for name in ("verdict", "findings", "agenda", "figures", "ledger", "setting")
    ]
    assert places == sorted(places)
    assert page.count("<li><strong>") == 5
