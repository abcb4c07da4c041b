"""README is part of the product: its links, commands and printed results are checked."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import typer.main

from hicache_nixl.cli import app
from hicache_nixl.config import FILE_PER_PIECE
from hicache_nixl.lab import execute as reproduction

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
LINKS = re.findall(r"\]\(([^)]+)\)", README)
ANCHORS, ANCHORS_BELOW = (
    [
        "#" + re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(rf"^{level} (.+)$", README, re.MULTILINE)
    ]
    for level in ("##", "###")
)
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
PYTHONS = [entry.rsplit(" ", 1)[1] for entry in CLASSIFIERS if re.search(r":: 3\.\d+$", entry)]
COMMANDS = [line[2:].split("#")[0].strip() for line in README.splitlines() if line.startswith("$ ")]
COMMAND = typer.main.get_command(app)


def options_of(arguments: list[str], command=COMMAND, parent=None) -> None:
    """Parse a command line of hicache-nixl; raises when it has an option that does not exist."""
    with command.make_context("hicache-nixl", list(arguments), parent=parent) as context:
        name, subcommand, rest = command.resolve_command(context, list(arguments))
        if hasattr(subcommand, "commands"):
            options_of(rest, subcommand, context)
        else:
            subcommand.make_context(name, rest, parent=context)


def test_there_is_something_to_check():
    assert len(LINKS) > 5
    assert len(COMMANDS) > 5


@pytest.mark.parametrize("link", [link for link in LINKS if not link.startswith(("https://", "#"))])
def test_a_link_leads_to_a_file_of_the_project(link):
    workflow = re.fullmatch(
        r"\.\./\.\./actions/workflows/(\w+\.yml)(/badge\.svg)?", link
    )  # GitHub's own pages
    assert (ROOT / (f".github/workflows/{workflow[1]}" if workflow else link)).exists()


@pytest.mark.parametrize("link", sorted({link for link in LINKS if link.startswith("#")}))
def test_a_link_within_the_page_leads_to_a_heading(link):
    assert link in ANCHORS + ANCHORS_BELOW


def test_the_contents_list_every_heading():
    contents = README.partition("## Contents")[2].partition("## ")[0]
    assert re.findall(r"\(([^)]+)\)", contents) == [anchor for anchor in ANCHORS if anchor != "#contents"]


def test_the_badge_names_the_supported_pythons():
    assert f"![Python {' | '.join(PYTHONS)}]" in README
    assert f"/badge/python-{'_%7C_'.join(PYTHONS)}-" in README


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_a_make_command_has_its_target_and_options_that_exist(command):
    words = shlex.split(command)
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    passed_on = [shlex.split(word.removeprefix("ARGS=")) for word in words if word.startswith("ARGS=")]
    if words[1] == "reproduce":
        options_of(["reproduce", *(passed_on[0] if passed_on else [])])


@pytest.mark.parametrize("command", [command for command in COMMANDS if "bin/hicache-nixl " in command])
def test_a_command_of_ours_has_options_that_exist(command):
    options_of(shlex.split(command)[1:])


def test_the_printed_run_is_the_reference_run():
    printed = re.search(r"<!-- data/reference/reproduce.txt -->\n```text\n(.*?)```", README, re.DOTALL)[1]
    reference = (ROOT / "data/reference/reproduce.txt").read_text()
    assert [line.rstrip() for line in printed.strip().splitlines()] == [
        line.rstrip() for line in reference.strip().splitlines()
    ]


def test_every_claim_of_the_reference_run_is_told_right():
    claims = reproduction.claims_of(ROOT / "data/reference")
    held = int((claims.verdict == "holds").sum())
    assert f"{held} of {len(claims)} claims hold" in README
    assert not (claims.verdict == "fails").any()


def test_every_lifetime_and_every_notebook_has_its_row():
    for name in FILE_PER_PIECE:
        assert f"[`{name}`]" in README
    for name in reproduction.notebooks():
        assert f"[{name}](notebooks/{name}.ipynb)" in README
        assert re.search(rf"\(docs/reference(-server)?/notebooks/{name}\.ipynb\)", README)


def test_who_is_affected_is_what_the_investigation_found():
    """The table on the first screen and data/connectors.csv, each row of which is a claim of notebooks 01 to 05."""
    found = pd.read_csv(ROOT / "data/connectors.csv").set_index("connector")
    rows = re.findall(
        r"^\| (?:up to )?(0\.5\.\d+)(?: or later| \(the PR\))? \| (.+?) \|", README, re.MULTILINE
    )
    assert [version for version, _ in rows] == ["0.5.11", "0.5.12", "0.5.13"]
    for version, told in rows:
        release = found[found.index.str.startswith(f"sglang=={version}")].iloc[0]
        counts = {
            "open descriptors": release.fds_per_key,
            "NIXL registrations": release.registrations_per_key,
        }
        kept = [f"{count:g} {what}" for what, count in counts.items() if count]
        assert told.partition(" per key")[0] == (" and ".join(kept) or "nothing")


def test_what_ours_does_better_is_what_the_investigation_found():
    found = pd.read_csv(ROOT / "data/connectors.csv").set_index("connector")
    newest, ours = found.loc["sglang==0.5.23"], found.loc["scoped"]
    assert (newest.pages_besides_a_bad_one, ours.pages_besides_a_bad_one) == (0, 7)
    assert (newest.half_written_seen, ours.half_written_seen) == (True, False)
    assert "| loads none of the other 7 | loads the other 7 |" in README
    assert "| counts the page | does not count it before it is complete |" in README


def test_every_message_of_the_troubleshooting_is_one_of_the_package():
    sources = "".join(path.read_text() for path in (ROOT / "hicache_nixl").rglob("*.py"))
    section = README.partition("## Troubleshooting")[2].partition("## Development")[0]
    quoted = [
        text for line in section.splitlines() for text in re.findall(r"`([^`]+)`", line.split(" | ")[0])
    ]
    messages = [text for text in quoted if "..." in text or " cannot be " in text]
    assert len(messages) > 5
    for message in messages:
        fixed = re.split(r"\.\.\.|POSIX|\{.*\}|repeats=|sglang==|run ", message)
        parts = [part.strip(" ;") for part in fixed if part.strip(" ;")]
        assert [part for part in parts if part not in sources] == [], message
