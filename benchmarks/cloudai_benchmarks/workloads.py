"""What a workload is, and how many of something a scale leaves of it.

The work is done by `worker` and `write_worker` in processes of their own; what is timed is `work` alone, and of a
job that writes also how long it takes until the server has everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias

from cloudai_benchmarks.arrival import Outcome
from cloudai_benchmarks.datasets import Dataset
from cloudai_benchmarks.write_place import WritePlace


class Access(StrEnum):
    """What a workload does to its dataset."""

    READS = "reads"
    WRITES = "writes"
    """Something else, that it is the original of."""


class Phase(StrEnum):
    """Of a workload that reads, in which state the client's caches are; of one that writes, until when."""

    COLD = "cold"
    """Nothing of it is on the client: mounted anew, disk caches deleted."""
    AGAIN = "again"
    """The same work a second time, by another process on the same mount."""
    RETURNS = "returns"
    """Until the program that writes is done."""
    STORED = "stored"
    """Until the server has everything."""


class Job(Protocol):
    """One piece of work, made anew for each time that it is done. Making it touches no file."""

    def work(self) -> None:
        """What is timed. Raises OSError, WrongAnswer."""

    def check(self, source: Path) -> None:
        """Compares what the work got with the dataset at `source` on local disk. Raises WrongAnswer."""


Figures: TypeAlias = Mapping[str, float]
"""What a job has to tell besides its time, by the names of `figures`."""


class WriteJob(Protocol):
    """One piece of work that writes. Each of `prepare`, `work` and `check` gets a job of its own, made of the same
    place, dataset and seed, in a process of its own. All raise OSError and BenchmarkError."""

    def prepare(self) -> list[Outcome]:
        """Writes what has to be there before; what is waited for until the server has it, by writer. Not timed."""

    def load(self) -> list[Outcome]:
        """Brings what is to be written into memory; what will be there after the work, by writer. Not timed."""

    def work(self) -> None:
        """What is timed."""

    def finish(self) -> Figures:
        """Called when the server has everything. Not timed."""

    def check(self, stored: list[Path]) -> None:
        """Compares what the server has of the place's directories. Raises WrongAnswer."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A row of the table for each phase."""

    access: ClassVar[Access]

    name: str
    title: str
    """With the sizes as they are at this scale."""
    dataset: Dataset
    phases: tuple[Phase, ...]


@dataclass(frozen=True, kw_only=True)
class ReadWorkload(Workload):
    access: ClassVar[Access] = Access.READS

    make_job: Callable[[Path, str], Job]
    """Of the dataset's directory and a seed, the same for all contenders in one round."""


@dataclass(frozen=True, kw_only=True)
class WriteWorkload(Workload):
    access: ClassVar[Access] = Access.WRITES

    make_job: Callable[[WritePlace, Path, str], WriteJob]
    """Of a place, the dataset on local disk, and a seed, the same for all contenders in one round."""
    writer_count: int = 1
    """Each has a mount of its own."""
    is_prepared: bool = False
    """Whether something has to be there before."""
    with_follower: bool = False
    """Whether somebody reads on another mount meanwhile."""
    written_bytes: int | None = None
    """What programs write, to compare it with what goes to the server; None where that says nothing."""
    file_count: int | None = None
    """How many files arrive, where it is how many of them in a second that counts."""
    needs_master: bool = False
    """Whether it calls a master of ours without a mount, so that nobody else can take part."""


def scale_count(count: int, scale: float, *, at_least: int = 1) -> int:
    """How many are left of them at this scale."""
    return max(at_least, round(count * scale))
