"""The disk itself: the limit. Its reads come from the page cache, which nobody drops; what is written to it has
arrived when it is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cloudai_benchmarks.contenders.contender import Contender, Source, WrittenDirectories
from cloudai_benchmarks.datasets import Dataset
from cloudai_benchmarks.processes import do_each
from cloudai_benchmarks.write_place import WritePlace


class Local(Contender):
    """Always warm."""

    def __init__(self, name: str, source: Source) -> None:
        super().__init__(name)
        self._source = source
        self._written = WrittenDirectories(source, name)

    def start(self, datasets: Sequence[Dataset]) -> None:
        """They are here already."""

    def mount(self) -> None:
        """Nothing to mount."""

    def unmount(self) -> None:
        """Nothing is mounted."""

    def drop_client_caches(self) -> None:
        """The page cache stays."""

    def path_of(self, dataset: Dataset) -> Path:
        return self._source.path_of(dataset)

    def served_files(self, dataset: Dataset) -> Iterable[Path]:
        return self._source.files_of(dataset)

    def begin_writing(self, *, writer_count: int, with_follower: bool) -> WritePlace:
        self._written.choose(writer_count)
        for path in self._written.paths:
            path.mkdir(parents=True)
        return WritePlace(
            directories=self._written.paths,
            arrivals=self._written.arrivals(),
            followed=self._written.paths[0] if with_follower else None,
        )

    @contextmanager
    def stored(self) -> Iterator[Sequence[Path]]:
        yield self._written.paths

    def sent_bytes(self) -> int | None:
        """There is nobody to send to."""
        return None

    def end_writing(self) -> list[str]:
        return do_each(self._written.remove)

    def client_pids(self) -> list[int]:
        return []

    def server_pids(self) -> list[int]:
        return []

    def abort(self) -> None:
        """Nobody waits here for a process."""

    def stop(self) -> list[str]:
        return []
