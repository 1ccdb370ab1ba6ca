"""The disk itself: the limit. Its reads come from the page cache, which nobody drops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cloudai_benchmarks.contenders.contender import Contender, Source
from cloudai_benchmarks.datasets import Dataset


class Local(Contender):
    """Always warm."""

    def __init__(self, name: str, source: Source) -> None:
        super().__init__(name)
        self._source = source

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

    def client_pids(self) -> list[int]:
        return []

    def server_pids(self) -> list[int]:
        return []

    def abort(self) -> None:
        """Nobody waits here for a process."""

    def stop(self) -> list[str]:
        return []
