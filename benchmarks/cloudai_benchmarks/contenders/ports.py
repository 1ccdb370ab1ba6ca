"""Ports of the loopback for servers that cannot choose one and say which."""

from __future__ import annotations

import socket
from typing import Final

_CONNECT_SECONDS_MAX: Final = 1.0


def find_free_port() -> int:
    """One that nobody listens on now; another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_SECONDS_MAX):
            return True
    except OSError:
        return False
