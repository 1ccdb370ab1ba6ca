"""What a workload is, and how many of something a scale leaves of it.

The work is done by `worker` in a process of its own; what is timed is `Job.work` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from cloudai_benchmarks.datasets import Dataset


class Access(StrEnum):
    """What a workload does to its dataset."""

    READS = "reads"
    WRITES = "writes"


class Phase(StrEnum):
    """In which state the client's caches are."""

    COLD = "cold"
    """Nothing of it is on the client: mounted anew, disk caches deleted."""
    AGAIN = "again"
    """The same work a second time, by another process on the same mount."""


class Job(Protocol):
    """One piece of work, made anew for each time that it is done. Making it touches no file."""

    def work(self) -> None:
        """What is timed. Raises OSError, WrongAnswer."""

    def check(self, source: Path) -> None:
        """Compares what the work got with the dataset at `source` on local disk. Raises WrongAnswer."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A row of the table for each phase."""

    name: str
    title: str
    """With the sizes as they are at this scale."""
    access: Access
    dataset: Dataset
    phases: tuple[Phase, ...]
    make_job: Callable[[Path, str], Job]
    """Of the dataset's directory and a seed, the same for all contenders in one round."""


def scale_count(count: int, scale: float, *, at_least: int = 1) -> int:
    """How many are left of them at this scale."""
    return max(at_least, round(count * scale))
