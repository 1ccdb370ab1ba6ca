"""Tells a service manager how the master is: sd_notify(3), for a master that runs as a service of systemd.

Says nothing where nobody asked. A manager that does not take the words is no reason to end a master.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress

from cloudai_model.service_manager import ALIVE, READY, STOPPING, find_service_manager


class ServiceNotifier:
    """The words of one process to whoever started it."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._manager = find_service_manager(environment, os.getpid())

    def tell_ready(self) -> None:
        self._tell(READY)

    def tell_stopping(self) -> None:
        self._tell(STOPPING)

    async def tell_alive(self) -> None:
        """For as long as the loop runs; a manager that hears nothing more ends the process. Returns where none
        listens.
        """
        while self._manager.alive_seconds:
            self._tell(ALIVE)
            await asyncio.sleep(self._manager.alive_seconds)

    def _tell(self, word: str) -> None:
        if not self._manager.address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(self._manager.address)
            sender.send(word.encode())
