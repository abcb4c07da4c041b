"""README is part of the product: its links, commands and printed results are checked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from hicache_nixl.cli import app
from hicache_nixl.config import LIFETIMES
from hicache_nixl.lab import execute as reproduction

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
LINKS = re.findall(r"\]\(([^)]+)\)", README)
COMMANDS = [line[2:].split("#")[0].strip() for line in README.splitlines() if line.startswith("$ ")]
COMMAND = typer.main.get_command(app)


def options_of(arguments: list[str]) -> None:
    """Parse a command line of hicache-nixl; raises when it has an option that does not exist."""
    with COMMAND.make_context("hicache-nixl", list(arguments)) as context:
        name, subcommand, rest = COMMAND.resolve_command(context, list(arguments))
        subcommand.make_context(name, rest, parent=context)


def test_there_is_something_to_check():
    assert len(LINKS) > 5
    assert len(COMMANDS) > 5


@pytest.mark.parametrize("link", [link for link in LINKS if not link.startswith("https://")])
def test_a_link_leads_to_a_file_of_the_project(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_a_make_command_has_its_target_and_options_that_exist(command):
    words = shlex.split(command)
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    passed_on = [shlex.split(word.removeprefix("ARGS=")) for word in words if word.startswith("ARGS=")]
    if words[1] == "reproduce":
        options_of(["reproduce", *(passed_on[0] if passed_on else [])])


@pytest.mark.parametrize("command", [command for command in COMMANDS if "hicache-nixl " in command])
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
    for name in [*LIFETIMES, *reproduction.notebooks()]:
        assert f"[`{name}`]" in README or f"[{name}]" in README


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
