"""All workloads there are, in the order of the report."""

from __future__ import annotations

from cloudai_benchmarks.read_workloads import make_read_workloads
from cloudai_benchmarks.shapes import UPLOAD_BYTES_DEFAULT, make_shapes
from cloudai_benchmarks.workloads import Workload
from cloudai_benchmarks.write_workloads import make_write_workloads


def make_workloads(scale: float, *, upload_bytes: int = UPLOAD_BYTES_DEFAULT) -> dict[str, Workload]:
    """By name. `upload_bytes` is what is uploaded beside a writer whose latency is measured, at scale 1."""
    shapes = make_shapes(scale, upload_bytes)
    workloads = [*make_read_workloads(shapes), *make_write_workloads(shapes)]
    return {workload.name: workload for workload in workloads}
