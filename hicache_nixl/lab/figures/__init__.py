"""The figures: one question each, its answer as the title, lines labelled directly."""

from .counts import end, faults, growth, hero, law, second_leak, steps, two_counts
from .overlays import counts_of_two, intervals_of_two, ratios_of_two
from .times import benchmarks, latency, over_calls, pairs_and_ratios

__all__ = [
    "benchmarks",
    "counts_of_two",
    "end",
    "faults",
    "growth",
    "hero",
    "intervals_of_two",
    "latency",
    "law",
    "over_calls",
    "pairs_and_ratios",
    "ratios_of_two",
    "second_leak",
    "steps",
    "two_counts",
]
