"""The command hicache-nixl; a module per command."""

from . import replay, reproduce
from .app import app, main

__all__ = ["app", "main", "replay", "reproduce"]
