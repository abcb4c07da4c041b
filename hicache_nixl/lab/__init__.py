"""The instruments of the investigation.

``Schedule`` and ``replay`` run calls against a connector in a process of its own; ``fd_table`` names
descriptors; ``compare`` times two connectors; ``Run`` keeps tables, figures and claims.

Names are loaded when they are used: the worker process lives in this package and must not carry
matplotlib, scipy and IPython with it.
"""

from __future__ import annotations

from ..lazy import lazily

_MODULES = {
    "experiments.alternating": ("alternating",),
    "experiments.compare": ("compare", "left_per_key", "usable_queues"),
    "experiments.deleting": ("deletion_times",),
    "experiments.fault_matrix": ("every_fault", "fault_summary", "patch"),
    "experiments.panel": ("panel",),
    "experiments.publishing": ("publish_times",),
    "experiments.replay": ("replay", "replay_each"),
    "experiments.review": (
        "imports_inside_functions",
        "owner_of_descriptors",
        "register_files_left",
        "release_facts",
    ),
    "experiments.waiting": ("large_transfer", "small_transfer", "waits"),
    "runs.claims": ("above", "at_most", "exactly", "no_slower"),
    "runs.provenance": ("describe",),
    "runs.run": ("Run",),
    "statistics": (
        "PAIRS",
        "Estimate",
        "against_reference",
        "median_of",
        "paired_difference",
        "paired_ratio",
        "pooled_ratio",
        "ratio_table",
        "slope",
        "slope_table",
        "slower_and_faster",
    ),
    "worker.client": ("Worker", "WorkerError"),
    "worker.descriptors": ("fd_table", "opened_by", "trace_opens"),
    "worker.releases": ("at_hand",),
    "worker.schedule": (
        "RECORDED_BASELINE",
        "Call",
        "Schedule",
        "ScheduleError",
        "files_per_key",
        "predicted_fds",
        "recorded_log",
        "splits",
    ),
    "worker.setup": ("Setup", "queue_params"),
}
__getattr__, __all__ = lazily(__name__, _MODULES)


def __dir__() -> list[str]:
    return __all__
