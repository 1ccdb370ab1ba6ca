"""One mount of a contender: a directory with the mount point and what its client keeps, and the processes behind it."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from cloudai_benchmarks import fuse_mounts
from cloudai_benchmarks.errors import BenchmarkError
from cloudai_benchmarks.processes import Server, family_of, run_command


class ClientMount(ABC):
    """Mounted and unmounted any number of times. All but `abort` raise BenchmarkError and OSError."""

    def __init__(self, directory: Path) -> None:
        self.mount_point = directory / "mnt"
        self.client_dir = directory / "client"
        """Caches and state of the client; deleted to make it cold."""
        self.mount_point.mkdir(parents=True, exist_ok=True)

    def mount(self) -> None:
        """Mounts with the caches that are there. Touches nothing but the root."""
        self.client_dir.mkdir(exist_ok=True)
        self.start_client()
        # sshfs is in the mount table before it has connected: its first answer would be timed with that.
        run_command("stat", self.mount_point, on_timeout=self.abort)

    def unmount(self) -> None:
        """Nothing is mounted afterwards, and the client's processes have ended."""
        try:
            self.end_client()
        finally:
            fuse_mounts.unmount_below(self.mount_point)

    def drop_caches(self) -> None:
        """Unmounts and deletes what the client kept on disk."""
        self.unmount()
        if self.client_dir.exists():
            shutil.rmtree(self.client_dir)

    def abort(self) -> None:
        """Frees whoever waits in the mount for ever. Never raises."""
        fuse_mounts.abort(self.mount_point)

    @abstractmethod
    def pids(self) -> list[int]:
        """The processes at the user's end; none while nothing is mounted."""

    @abstractmethod
    def start_client(self) -> None:
        """Mounts at mount_point; what the client keeps is below client_dir."""

    @abstractmethod
    def end_client(self) -> None:
        """Unmounts and ends its processes, also when nothing is mounted or the client is dead."""


class CommandMount(ClientMount):
    """A FUSE program that stays in the foreground."""

    def __init__(self, directory: Path, make_command: Callable[[ClientMount], Sequence[str | Path]]) -> None:
        """`make_command` is asked at each mount, when the server's port is known."""
        super().__init__(directory)
        self._log = directory / "mount.log"
        self._make_command = make_command
        self._client: Server | None = None

    def pids(self) -> list[int]:
        return family_of(self._client.pid) if self._client else []

    def start_client(self) -> None:
        self._client = Server(*self._make_command(self), log=self._log)
        self._client.wait_ready(lambda: fuse_mounts.is_mounted(self.mount_point))

    def end_client(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            with suppress(BenchmarkError):
                fuse_mounts.unmount(self.mount_point)
                client.wait_ended()
        finally:
            client.stop()
