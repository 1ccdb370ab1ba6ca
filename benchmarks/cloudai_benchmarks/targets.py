"""What is to be reached, as time relative to the other's in the same run, medians."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloudai_benchmarks.results import Row

TARGETS: Final[Mapping[Row, Mapping[str, float]]] = {
    Row(workload="random-1k", phase="cold"): {"sshfs": 1.0, "rclone": 0.1},
    Row(workload="random-10k", phase="cold"): {"sshfs": 0.5},
    Row(workload="sequential", phase="cold"): {"sshfs": 0.40, "rclone": 0.75},
    Row(workload="sequential", phase="again"): {"sshfs": 0.07, "rclone": 0.2, "local": 1.6},
    Row(workload="streams", phase="cold"): {"sshfs": 0.4, "rclone": 0.8},
    Row(workload="list-10k", phase="cold"): {"sshfs": 0.6, "rclone": 0.2},
    Row(workload="list-10k", phase="again"): {"sshfs": 1.2, "rclone": 0.2},
    Row(workload="small-files", phase="cold"): {"sshfs": 0.5, "rclone": 0.05},
    Row(workload="write-1g", phase="stored"): {"sshfs": 0.75, "rclone": 0.35},
    Row(workload="cp-1g", phase="returns"): {"sshfs": 0.6},
    Row(workload="cp-2000", phase="returns"): {"local": 12.0},
    Row(workload="cp-2000", phase="stored"): {"sshfs": 0.25, "rclone": 0.02},
    Row(workload="checkpoint", phase="stored"): {"sshfs": 0.6, "rclone": 0.25},
    Row(workload="log-lines", phase="stored"): {"sshfs": 1.5},
    Row(workload="rm-2000", phase="stored"): {"sshfs": 2.0, "rclone": 0.1},
    Row(workload="git-clone", phase="stored"): {"sshfs": 1.0},
}
"""By row and peer: the highest ratio that is good enough."""

MEMORY_OVER_BUDGET_BYTES_MAX: Final = 150 * 1024**2
"""Of the mount daemon after all of it, above what it is configured to keep."""

IDLE_CPU_SHARE_MAX: Final = 0.002
"""Of one core, while the daemon has nothing to do: in ten seconds two steps of the clock that counts, which is as
little as can be told from none."""
