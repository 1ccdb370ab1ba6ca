"""What the benchmark ran on, for whoever reads the numbers later."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cloudai_benchmarks.errors import BenchmarkError
from cloudai_benchmarks.processes import run_command
from cloudai_fusefs import mount


@dataclass(frozen=True, kw_only=True)
class Machine:
    time: str
    """UTC, at the begin."""
    cpu: str
    core_count: int
    memory_bytes: int
    kernel: str
    work_dir_kind: str
    """The kind of filesystem that holds data, servers and caches."""
    load: float
    """Processes that wanted to run, on average of the last minute before the begin."""
    versions: dict[str, str]
    """Of each program that takes part; "unknown" where it is missing."""


def describe_machine(work_dir: Path) -> Machine:
    return Machine(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=_cpu_name(),
        core_count=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        work_dir_kind=_said_by("findmnt", "-n", "-o", "FSTYPE", "-T", str(work_dir)),
        load=os.getloadavg()[0],
        versions={
            "cloudai": _source_version(),
            "python": platform.python_version(),
            "sshfs": _said_by("sshfs", "--version", line_with="SSHFS"),
            "sshd": _said_by("ssh", "-V"),
            "rclone": _said_by("rclone", "version"),
            "fuse": _said_by("fusermount3", "--version"),
        },
    )


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _source_version() -> str:
    """The commit of the sources that are measured, with a mark when files were changed since."""
    return _said_by(
        "git", "-C", str(Path(mount.__file__).parent), "describe", "--always", "--dirty", "--tags"
    )


def _said_by(*command: str, line_with: str = "") -> str:
    """The first line of what the command says that has these words in it."""
    try:
        said = run_command("sh", "-c", 'exec "$@" 2>&1', "sh", *command)
    except BenchmarkError:
        return "unknown"
    return next((line.strip() for line in said.splitlines() if line_with in line), "unknown")
