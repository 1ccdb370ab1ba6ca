"""What the runner asks of every filesystem that is compared."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cloudai_benchmarks import fuse_mounts
from cloudai_benchmarks.datasets import Dataset
from cloudai_benchmarks.processes import do_each, run_command


class Source:
    """The datasets as plain directories: what local disk, sshd and `rclone serve` read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path_of(self, dataset: Dataset) -> Path:
        return self.directory / dataset.name

    def files_of(self, dataset: Dataset) -> Iterator[Path]:
        return files_below(self.path_of(dataset))


def files_below(directory: Path) -> Iterator[Path]:
    """All regular files, in no order."""
    for parent, _, names in os.walk(directory):
        for name in names:
            yield Path(parent, name)


class Contender(ABC):
    """One filesystem with its servers.

    Order of calls: start, then any number of drop_client_caches or mount, each followed by unmount, then
    stop, which is also right after a call that failed. All but `stop` and `abort` raise BenchmarkError and
    OSError; every wait in them has a bound.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def start(self, datasets: Sequence[Dataset]) -> None:
        """Starts the servers and gives them the datasets; nothing is mounted afterwards."""

    @abstractmethod
    def mount(self) -> None:
        """Mounts with the caches that are there. Touches nothing but the root."""

    @abstractmethod
    def unmount(self) -> None:
        """Nothing is mounted afterwards, and the client's processes have ended."""

    @abstractmethod
    def drop_client_caches(self) -> None:
        """Leaves a new mount without anything in memory or on disk at the client."""

    @abstractmethod
    def path_of(self, dataset: Dataset) -> Path:
        """The dataset's directory while it is mounted."""

    @abstractmethod
    def served_files(self, dataset: Dataset) -> Iterable[Path]:
        """The files on the server's disk that hold the dataset."""

    @abstractmethod
    def client_pids(self) -> list[int]:
        """The processes at the user's end."""

    @abstractmethod
    def server_pids(self) -> list[int]:
        """The processes at the other."""

    @abstractmethod
    def abort(self) -> None:
        """Frees whoever waits in the mount for ever. Never raises."""

    @abstractmethod
    def stop(self) -> list[str]:
        """Unmounts and ends everything; what would not go, as lines. Never raises."""


class FuseContender(Contender):
    """A filesystem that is mounted, with everything of the client below one directory."""

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name)
        self.directory = directory
        self.mount_point = directory / "mnt"
        self.client_dir = directory / "client"
        """Caches and state of the client; deleted to make it cold."""
        self.mount_point.mkdir(parents=True)

    def drop_client_caches(self) -> None:
        self.unmount()
        if self.client_dir.exists():
            shutil.rmtree(self.client_dir)
        self.mount()

    def mount(self) -> None:
        self.client_dir.mkdir(exist_ok=True)
        self.start_client()
        # sshfs is in the mount table before it has connected: its first answer would be timed with that.
        run_command("stat", self.mount_point, on_timeout=self.abort)

    def unmount(self) -> None:
        try:
            self.end_client()
        finally:
            fuse_mounts.unmount_below(self.mount_point)

    def abort(self) -> None:
        fuse_mounts.abort(self.mount_point)

    def stop(self) -> list[str]:
        return do_each(self.unmount, self.stop_servers)

    @abstractmethod
    def start_client(self) -> None:
        """Mounts at mount_point; what the client keeps is below client_dir."""

    @abstractmethod
    def end_client(self) -> None:
        """Unmounts and ends its processes, also when nothing is mounted or the client is dead."""

    @abstractmethod
    def stop_servers(self) -> None:
        """Also right when they never started."""


class PlainContender(FuseContender):
    """One whose server reads the datasets where they are."""

    def __init__(self, name: str, directory: Path, source: Source) -> None:
        super().__init__(name, directory)
        self.source = source

    def path_of(self, dataset: Dataset) -> Path:
        return self.mount_point / dataset.name

    def served_files(self, dataset: Dataset) -> Iterable[Path]:
        return self.source.files_of(dataset)
