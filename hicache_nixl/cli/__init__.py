"""The command hicache-nixl; one module for each command, or for two that belong together."""

from . import bench, doctor, replay, report, reproduce, server, store, sweep, watch
from .app import app, main

__all__ = [
    "app",
    "bench",
    "doctor",
    "main",
    "replay",
    "report",
    "reproduce",
    "server",
    "store",
    "sweep",
    "watch",
]

HELP_ORDER = ("doctor", "reproduce", "sweep", "watch", "replay", "bench", "store", "report", "compare")
app.registered_commands.sort(key=lambda command: HELP_ORDER.index(getattr(command.callback, "__name__", "")))
