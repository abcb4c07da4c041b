"""The figures: one question each, its answer as the title, lines labelled directly."""

from .counts import end, faults, growth, hero, law, second_leak, steps, two_counts
from .times import benchmarks, latency, over_calls, pairs_and_ratios
from .watched import watched

__all__ = [
    "benchmarks",
    "end",
    "faults",
    "growth",
    "hero",
    "latency",
    "law",
    "over_calls",
    "pairs_and_ratios",
    "second_leak",
    "steps",
    "two_counts",
    "watched",
]
