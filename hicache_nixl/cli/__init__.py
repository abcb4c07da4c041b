"""The command hicache-nixl; one module for each command, or for two that belong together."""

from . import doctor, replay, report, reproduce, store, watch
from .app import app, main

__all__ = ["app", "doctor", "main", "replay", "report", "reproduce", "store", "watch"]

HELP_ORDER = ("doctor", "reproduce", "watch", "replay", "store", "report", "compare")
app.registered_commands.sort(key=lambda command: HELP_ORDER.index(getattr(command.callback, "__name__", "")))
