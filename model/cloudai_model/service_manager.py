"""What a service manager says to a process in its environment, and the words of the answer: sd_notify(3), and of what
is logged to its journal: sd-daemon(3).

Nothing is sent here: each end has the socket in a module of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

ADDRESS_VARIABLE: Final = "NOTIFY_SOCKET"
VARIABLES: Final = frozenset({ADDRESS_VARIABLE, "WATCHDOG_USEC", "WATCHDOG_PID"})
"""They are for the one process that the manager started: not to be handed down."""

JOURNAL_VARIABLE: Final = "JOURNAL_STREAM"

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
ALIVE: Final = "WATCHDOG=1"

_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
"""Of syslog(3), the gravest first."""
_PRIORITY_LEAST: Final = 7

_MICROSECONDS: Final = 1_000_000

_STDERR: Final = 2


@dataclass(frozen=True, kw_only=True)
class ServiceManager:
    """Somebody who wants to hear how a service is."""

    address: str = ""
    """Of its datagram socket, as socket.connect takes it; "": there is nobody."""
    alive_seconds: float = 0.0
    """How often it is to be told that the service lives: twice as often as it must. 0: never."""


def find_service_manager(environment: Mapping[str, str], pid: int) -> ServiceManager:
    """Whoever started the process `pid` with this environment, and wants to hear of it."""
    name = environment.get(ADDRESS_VARIABLE, "")
    if not name.startswith(("/", "@")):
        return ServiceManager()
    # An abstract socket's name is written with @ in the place of its NUL.
    address = "\0" + name[1:] if name.startswith("@") else name
    watched_pid = environment.get("WATCHDOG_PID", "") or str(pid)
    microseconds = environment.get("WATCHDOG_USEC", "")
    if watched_pid != str(pid) or not microseconds.isascii() or not microseconds.isdecimal():
        return ServiceManager(address=address)
    return ServiceManager(address=address, alive_seconds=int(microseconds) / _MICROSECONDS / 2)


def extend_timeout(seconds: float) -> str:
    """Asks for that much time from now on, whatever the service's own limit is."""
    return f"EXTEND_TIMEOUT_USEC={round(seconds * _MICROSECONDS)}"


class JournalFormatter(logging.Formatter):
    """Lines for the journal, which knows the time by itself: how grave, by whom, what."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Each line of a trace is an entry of its own."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), _PRIORITY_LEAST)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def stderr_log() -> logging.Handler:
    """Standard error, as a person reads it or as the journal takes it; where there is none, lines go nowhere."""
    handler = logging.StreamHandler()
    with suppress(OSError):  # closed by whoever started the process
        stream = os.fstat(_STDERR)
        if os.environ.get(JOURNAL_VARIABLE) == f"{stream.st_dev}:{stream.st_ino}":
            handler.setFormatter(JournalFormatter())
    return handler
