"""What a worker observes of a connector from inside: log lines, and registrations with NIXL."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any


class LogTail(logging.Handler):
    """Keeps the warnings and errors that a call logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[str] = deque(maxlen=20)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's message."""
        self.lines.append(record.getMessage())

    def take(self) -> list[str]:
        """Return the lines since the last take."""
        lines = list(self.lines)
        self.lines.clear()
        return lines


class RegistrationCounter:
    """Counts the regions that are registered with NIXL, and times registering and deregistering.

    Attributes
    ----------
    alive : int
        Regions registered now.
    seconds : float
        Spent on registering and deregistering since the last ``take_seconds``.
    """

    def __init__(self) -> None:
        self.alive = 0
        self.seconds = 0.0
        self._counted: set[Any] = set()

    def count(self, agent_class: Any) -> None:
        """Count what agents of a class register from now on."""
        if agent_class in self._counted:
            return
        self._counted.add(agent_class)
        register, deregister = agent_class.register_memory, agent_class.deregister_memory

        def counting_register(agent: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            registration = register(agent, *args, **kwargs)
            self.seconds += time.perf_counter() - start
            self.alive += registration.descCount()
            return registration

        def counting_deregister(agent: Any, registration: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = deregister(agent, registration, *args, **kwargs)
            self.seconds += time.perf_counter() - start
            self.alive -= registration.descCount()
            return result

        agent_class.register_memory = counting_register
        agent_class.deregister_memory = counting_deregister

    def take_seconds(self) -> float:
        """Return the seconds since the last take."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
