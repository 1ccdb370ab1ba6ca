"""What sshfs and rclone have in common: a server on a port of the loopback, and a program that mounts it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from cloudai_benchmarks.contenders.contender import PlainContender, Source
from cloudai_benchmarks.contenders.mounts import ClientMount, CommandMount
from cloudai_benchmarks.contenders.ports import find_free_port, is_listening
from cloudai_benchmarks.processes import Server, family_of


class ServedContender(PlainContender):
    """Subclasses say the two commands."""

    def __init__(self, name: str, directory: Path, source: Source) -> None:
        super().__init__(name, directory, source)
        self.port = 0
        self._server: Server | None = None

    def start(self, datasets: object) -> None:
        self.port = find_free_port()
        self._server = Server(*self.server_command(), log=self.directory / "server.log")
        self._server.wait_ready(lambda: is_listening(self.port))

    def stop_servers(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def make_reading_mount(self, directory: Path) -> ClientMount:
        return CommandMount(directory, self.mount_command)

    def server_pids(self) -> list[int]:
        return family_of(self._server.pid) if self._server else []

    @abstractmethod
    def server_command(self) -> Sequence[str | Path]:
        """Serves the source on the port. Called once, before it starts: makes keys and files of its own."""

    @abstractmethod
    def mount_command(self, mount: ClientMount) -> Sequence[str | Path]:
        """Mounts what is served, in the foreground."""
