"""A real SGLang server on this machine's processors, as an instrument.

``environment`` makes the Python environment of a release, and ``Server`` starts one, asks it and counts its descriptors.
``stand_ins`` has what replaces CUDA, with the reasons; nothing else loads it.
"""

from .environment import Environment, ServerError, install, installed, remove, versions
from .process import environ_of
from .server import Answer, Server

__all__ = [
    "Answer",
    "Environment",
    "Server",
    "ServerError",
    "environ_of",
    "install",
    "installed",
    "remove",
    "versions",
]
