"""All workloads there are, in the order of the report."""

from __future__ import annotations

from cloudai_benchmarks.read_workloads import make_read_workloads
from cloudai_benchmarks.workloads import Workload


def make_workloads(scale: float) -> dict[str, Workload]:
    """By name."""
    return {workload.name: workload for workload in make_read_workloads(scale)}
