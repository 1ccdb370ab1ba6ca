"""What a benchmark run does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloudai_benchmarks.contenders.cloudai import CloudAI
from cloudai_benchmarks.contenders.contender import Contender
from cloudai_benchmarks.workloads import Workload, WriteWorkload


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of it repeats exactly with the same seed, but for what the machine does meanwhile."""

    workloads: Sequence[Workload]
    round_count: int
    scale: float
    upload_bytes: int
    """At scale 1, of what is uploaded beside a writer whose latency is measured."""
    seed: str
    job_seconds_max: float
    """Of one job and its check; of one that writes of each of its steps. Then it has failed."""
    idle_seconds: float
    """How long the daemon is watched doing nothing."""

    def job_count(self, contenders: Sequence[Contender]) -> int:
        """How many measurements there will be."""
        return self.round_count * sum(
            len(workload.phases)
            for workload in self.workloads
            for contender in contenders
            if takes_part(contender, workload)
        )


def takes_part(contender: Contender, workload: Workload) -> bool:
    """Whether the workload can be done there at all."""
    needs_master = isinstance(workload, WriteWorkload) and workload.needs_master
    return isinstance(contender, CloudAI) or not needs_master
