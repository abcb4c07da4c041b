"""The command hicache-nixl; a module per command."""

from . import doctor, replay, report, reproduce, watch
from .app import app, main

__all__ = ["app", "doctor", "main", "replay", "report", "reproduce", "watch"]
