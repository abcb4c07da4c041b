"""The instruments of the investigation."""

from .fds import fd_table, opened_by, trace_opens
from .replay import Worker, WorkerError, replay
from .schedule import Call, Schedule, ScheduleError, files_per_key, predicted_fds, splits
from .setup import Setup, queue_params

__all__ = [
    "Call",
    "Schedule",
    "ScheduleError",
    "Setup",
    "Worker",
    "WorkerError",
    "fd_table",
    "files_per_key",
    "opened_by",
    "predicted_fds",
    "queue_params",
    "replay",
    "splits",
    "trace_opens",
]
