"""The figures of real servers say what their tables hold, also where no server could be installed."""

from __future__ import annotations

import pandas as pd
import pytest
from measured import SERVER
from served import FIRST, LATER, LEAK, LIMIT, OURS, PREDICTED, served

from hicache_nixl.lab import figures
from hicache_nixl.lab.experiments.serving import COLUMNS

pytestmark = pytest.mark.usefixtures("closed_figures")
NOTHING = pd.DataFrame(columns=COLUMNS)


def test_the_leak_is_told_with_its_limit_and_the_round_in_which_loading_ends():
    drawn = figures.served_leak(LEAK, PREDICTED, LIMIT)
    assert drawn.title == (
        "The server of SGLang 0.5.11 has 510 descriptors open at the end, of 512; from round 4 on nothing comes from "
        "storage."
    )


def test_a_server_that_loses_nothing_is_told_so():
    drawn = figures.served_leak(served("sglang==0.5.11", per_key=2), PREDICTED, LIMIT)
    assert drawn.title.endswith("no round loads less.")


def test_connectors_that_grow_are_named_with_their_server_and_those_that_do_not():
    drawn = figures.served_counts(OURS)
    assert (
        drawn.title
        == "Descriptors grow with leaky in 0.5.11 and leaky in 0.5.23, and not with scoped and pooled."
    )
    assert "scoped: +0, pooled: +1 in the server of 0.5.23" in drawn.alt


def test_registrations_are_told_for_each_release():
    drawn = figures.served_registrations(LATER)
    assert (
        "9 MiB with SGLang 0.5.12, 0 MiB with SGLang 0.5.13.post1 and 0 MiB with SGLang 0.5.23" in drawn.title
    )


def test_the_first_token_is_told_as_a_share_of_computing():
    drawn = figures.first_tokens(FIRST)
    assert "24% with SGLang 0.5.23, 22% with scoped and 20% with pooled" in drawn.title


def test_the_title_of_a_watch_is_its_answer():
    drawn = figures.served_watch(SERVER)
    assert drawn.title.startswith("Leak: ")
    assert "storage files" in drawn.alt


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.served_leak(NOTHING, pd.DataFrame({"open_fds": []}), LIMIT),
        lambda: figures.served_counts(NOTHING),
        lambda: figures.served_registrations(NOTHING),
        lambda: figures.first_tokens(pd.DataFrame(columns=FIRST.columns)),
        lambda: figures.served_watch(pd.DataFrame()),
    ],
    ids=["leak", "counts", "registrations", "first tokens", "watch"],
)
def test_without_a_server_a_figure_says_that_it_was_not_run(draw):
    assert draw().title.startswith("Not run: ")
