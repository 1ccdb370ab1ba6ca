"""What a service manager says to a process in its environment, and the words of the answer: sd_notify(3).

Nothing is sent here: each end has the socket in a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ADDRESS_VARIABLE: Final = "NOTIFY_SOCKET"
VARIABLES: Final = frozenset({ADDRESS_VARIABLE, "WATCHDOG_USEC", "WATCHDOG_PID"})
"""They are for the one process that the manager started: not to be handed down."""

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
ALIVE: Final = "WATCHDOG=1"

_MICROSECONDS: Final = 1_000_000


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
