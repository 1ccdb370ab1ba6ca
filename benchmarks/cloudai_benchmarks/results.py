"""What was measured, and what follows from it: medians, spreads, ratios. No I/O."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, order=True)
class Row:
    """One line of the table."""

    workload: str
    phase: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One job, done once. Either `seconds` or `error` is there."""

    workload: str
    phase: str
    contender: str
    round: int
    seconds: float | None = None
    error: str | None = None
    client_cpu_seconds: float = 0.0
    """Of the processes at the user's end, from before the job until after its check; in steps of 10 ms."""
    server_cpu_seconds: float = 0.0
    client_resident_bytes_peak: int = 0
    """The most that the client ever had in memory on this mount."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What else was measured, by the names of `figures`."""

    @property
    def row(self) -> Row:
        return Row(workload=self.workload, phase=self.phase)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of one contender in one row, over all rounds."""

    seconds: tuple[float, ...]
    """Of those that succeeded, in the order of the rounds."""
    errors: tuple[str, ...]

    @property
    def median_seconds(self) -> float | None:
        """None when any round failed: what is left would be a choice of the good ones."""
        if self.errors or not self.seconds:
            return None
        return statistics.median(self.seconds)

    @property
    def round_count(self) -> int:
        return len(self.seconds) + len(self.errors)


class Results:
    """All measurements of one benchmark run."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        self.measurements = tuple(measurements)

    def rows(self) -> list[Row]:
        """In the order in which they were first measured."""
        return list(dict.fromkeys(measurement.row for measurement in self.measurements))

    def summarize(self, row: Row, contender: str) -> Summary | None:
        """None when the contender was never asked."""
        found = [each for each in self.measurements if each.row == row and each.contender == contender]
        if not found:
            return None
        return Summary(
            seconds=tuple(each.seconds for each in found if each.seconds is not None),
            errors=tuple(each.error for each in found if each.error is not None),
        )

    def figure_names(self, workload: str) -> list[str]:
        """In the order in which they were first measured."""
        found = [name for each in self.measurements if each.workload == workload for name in each.figures]
        return list(dict.fromkeys(found))

    def figure_values(self, workload: str, contender: str, name: str) -> list[float]:
        """In the order of the rounds; of those that failed there is none."""
        return [
            each.figures[name]
            for each in self.measurements
            if (each.workload, each.contender) == (workload, contender) and name in each.figures
        ]

    def ratio(self, row: Row, contender: str, peer: str) -> float | None:
        """The contender's median time relative to the peer's; None when either failed or was not asked."""
        ours, theirs = self._median(row, contender), self._median(row, peer)
        if ours is None or not theirs:
            return None
        return ours / theirs

    def failures(self) -> list[Measurement]:
        return [each for each in self.measurements if each.error is not None]

    def _median(self, row: Row, contender: str) -> float | None:
        summary = self.summarize(row, contender)
        return summary.median_seconds if summary else None


@dataclass(frozen=True, kw_only=True)
class DaemonCosts:
    """Of one mount daemon that did all workloads once, one after another, and then nothing."""

    contender: str
    resident_bytes: int
    resident_bytes_peak: int
    budget_bytes: int | None
    """What the daemon is configured to keep in memory, where it says so."""
    idle_seconds: float
    idle_cpu_seconds: float
    errors: Sequence[str] = ()
    """Of workloads that failed meanwhile."""
