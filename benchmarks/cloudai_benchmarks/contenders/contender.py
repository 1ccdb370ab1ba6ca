"""What the runner asks of every filesystem that is compared."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from cloudai_benchmarks import fuse_mounts
from cloudai_benchmarks.arrival import Arrival
from cloudai_benchmarks.contenders.mounts import ClientMount
from cloudai_benchmarks.datasets import Dataset
from cloudai_benchmarks.processes import do_each
from cloudai_benchmarks.write_place import WritePlace


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

    Order of calls: start, then any number of drop_client_caches or mount, each followed by unmount, or of
    begin_writing, each followed by end_writing; then stop, which is also right after a call that failed. All
    but `stop`, `abort` and `end_writing` raise BenchmarkError and OSError; every wait in them has a bound.
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
    def begin_writing(self, *, writer_count: int, with_follower: bool) -> WritePlace:
        """Mounts anew, without any cache, once for each writer and once for a follower."""

    @abstractmethod
    def stored(self) -> AbstractContextManager[Sequence[Path]]:
        """The writers' directories as the server has them, whatever their own mounts know."""

    @abstractmethod
    def sent_bytes(self) -> int | None:
        """What the writers' mounts have sent to the server so far; None where nobody counts it."""

    @abstractmethod
    def end_writing(self) -> list[str]:
        """Unmounts, and takes away what was written; what would not go, as lines. Never raises."""

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
        directory.mkdir(parents=True)
        self._reading: ClientMount | None = None
        self._writing: list[ClientMount] = []

    @property
    def mount_point(self) -> Path:
        return self._reading_mount().mount_point

    def drop_client_caches(self) -> None:
        self._reading_mount().drop_caches()
        self.mount()

    def mount(self) -> None:
        self._reading_mount().mount()

    def unmount(self) -> None:
        try:
            self._reading_mount().unmount()
        finally:
            fuse_mounts.unmount_below(self.directory)

    def client_pids(self) -> list[int]:
        mounts = [self._reading_mount(), *self._writing]
        return [pid for mount in mounts for pid in mount.pids()]

    def abort(self) -> None:
        fuse_mounts.abort(self.directory)

    def stop(self) -> list[str]:
        return do_each(self.unmount, self.stop_servers)

    def begin_writing(self, *, writer_count: int, with_follower: bool) -> WritePlace:
        count = writer_count + with_follower
        self.prepare_server(writer_count)
        for number in range(count):
            mount = self.make_writing_mount(self.directory / f"writing-{number:02}")
            self._writing.append(mount)
            mount.mount()
        return self.make_place(self._writing[:writer_count], self._writing[writer_count:])

    def end_writing(self) -> list[str]:
        mounts, self._writing = self._writing, []
        steps: list[Callable[[], None]] = [mount.drop_caches for mount in mounts]
        return do_each(*steps, self.discard_written)

    @abstractmethod
    def make_reading_mount(self, directory: Path) -> ClientMount:
        """Of the server that has the datasets."""

    @abstractmethod
    def prepare_server(self, writer_count: int) -> None:
        """The server takes what is written from now on."""

    @abstractmethod
    def make_writing_mount(self, directory: Path) -> ClientMount:
        """Of the server that was prepared. Called after prepare_server."""

    @abstractmethod
    def make_place(self, writers: Sequence[ClientMount], followers: Sequence[ClientMount]) -> WritePlace:
        """Makes the directories that are not there yet. Everything is mounted."""

    @abstractmethod
    def discard_written(self) -> None:
        """Nothing is mounted; also right when prepare_server failed."""

    @abstractmethod
    def stop_servers(self) -> None:
        """Also right when they never started."""

    def _reading_mount(self) -> ClientMount:
        if self._reading is None:
            self._reading = self.make_reading_mount(self.directory)
        return self._reading


class WrittenDirectories:
    """The writers' directories on the server's own disk, where what it serves is plain files.

    Each time others: a server remembers names that were taken away behind its back (rclone for five minutes).
    """

    def __init__(self, source: Source, contender: str) -> None:
        self._source = source
        self._name = f"written-{contender}"
        self._count = 0
        self.relative_paths: list[Path] = []
        """To what is served."""

    @property
    def paths(self) -> list[Path]:
        return [self._source.directory / path for path in self.relative_paths]

    def choose(self, count: int) -> None:
        """Their names; nothing is made."""
        self._count += 1
        self.relative_paths = [
            Path(f"{self._name}-{self._count:04}", f"{number:02}") for number in range(count)
        ]

    def arrivals(self) -> list[Arrival]:
        return [Arrival.in_directory(path) for path in self.paths]

    def remove(self) -> None:
        """Also right when they were never made."""
        parents = {path.parent for path in self.paths}
        self.relative_paths = []
        for parent in parents:
            if parent.exists():
                shutil.rmtree(parent)


class PlainContender(FuseContender):
    """One whose server reads the datasets where they are, and writes beside them."""

    def __init__(self, name: str, directory: Path, source: Source) -> None:
        super().__init__(name, directory)
        self.source = source
        self.written = WrittenDirectories(source, name)

    def path_of(self, dataset: Dataset) -> Path:
        return self.mount_point / dataset.name

    def served_files(self, dataset: Dataset) -> Iterable[Path]:
        return self.source.files_of(dataset)

    def make_writing_mount(self, directory: Path) -> ClientMount:
        return self.make_reading_mount(directory)

    def prepare_server(self, writer_count: int) -> None:
        self.written.choose(writer_count)

    def make_place(self, writers: Sequence[ClientMount], followers: Sequence[ClientMount]) -> WritePlace:
        below = self.written.relative_paths
        directories = [mount.mount_point / path for mount, path in zip(writers, below, strict=True)]
        for directory in directories:
            # On the mount: a server may not see what is made behind its back.
            directory.mkdir(parents=True)
        return WritePlace(
            directories=directories,
            arrivals=self.written.arrivals(),
            followed=followers[0].mount_point / below[0] if followers else None,
        )

    @contextmanager
    def stored(self) -> Iterator[Sequence[Path]]:
        yield self.written.paths

    def discard_written(self) -> None:
        self.written.remove()
