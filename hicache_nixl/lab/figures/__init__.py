"""The figures: one question each, its answer as the title, lines labelled directly.

Titles, labels and alt texts are worked out from the table that is drawn: a function returns the figure and its
alt text, as ``Run.figure`` expects them.
"""

from .bench import throughputs
from .counts import end, growth, hero, law, steps, two_counts
from .leaks import behaviours, creation, faults, second_leak
from .objects import object_counts, object_growth, object_speed
from .overlays import counts_of_two, intervals_of_two, ratios_of_two
from .replays import replays
from .serving import first_tokens, served_counts, served_leak, served_registrations, served_watch
from .sharing import through_a_fault
from .stores import anatomy, bounded, by_stored, hit_rates, traffic
from .times import benchmarks, cost, latency, over_calls, pairs_and_ratios
from .words import Drawn

__all__ = [
    "Drawn",
    "anatomy",
    "behaviours",
    "benchmarks",
    "bounded",
    "by_stored",
    "cost",
    "counts_of_two",
    "creation",
    "end",
    "faults",
    "first_tokens",
    "growth",
    "hero",
    "hit_rates",
    "intervals_of_two",
    "latency",
    "law",
    "object_counts",
    "object_growth",
    "object_speed",
    "over_calls",
    "pairs_and_ratios",
    "ratios_of_two",
    "replays",
    "second_leak",
    "served_counts",
    "served_leak",
    "served_registrations",
    "served_watch",
    "steps",
    "through_a_fault",
    "throughputs",
    "traffic",
    "two_counts",
]
