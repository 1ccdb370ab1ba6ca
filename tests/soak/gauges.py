"""What a process and a mount hold at one moment, and whether it has grown from one part of a soak to another."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from support.held import held_by
from support.mount_process import MountProcess

MIB: Final = 1024 * 1024

RESIDENT_GROWTH_BYTES_MAX: Final = 16 * MIB
"""From the second quarter to the last: what the allocator keeps, and no more with each round."""


class Sample(NamedTuple):
    """Taken when every program has closed and removed what it made, and all of it is durable."""

    resident_bytes: int
    descriptors: int
    threads: int
    handles: int = 0
    referenced_inodes: int = 0
    known_inodes: int = 0


def sample_process(pid: int) -> Sample:
    """Of any process. Raises FileNotFoundError when it has ended."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return Sample(
        resident_bytes=int(status["VmRSS"].split()[0]) * 1024,
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
    )


def sample_mount(mount: MountProcess) -> Sample:
    held = held_by(mount)
    return sample_process(mount.pid)._replace(
        handles=held.files + held.directories,
        referenced_inodes=held.referenced_inodes,
        known_inodes=held.known_inodes,
    )


def describe(sample: Sample) -> str:
    return (
        f"{sample.resident_bytes / MIB:7.1f} MiB {sample.descriptors:4} descriptors {sample.threads:4} threads "
        f"{sample.handles:3} handles {sample.referenced_inodes:5} referenced {sample.known_inodes:5} known"
    )


def compare_quarters(samples: Sequence[Sample]) -> tuple[Sample, Sample]:
    """The medians of the second quarter and of the last; the first is for warming up. Needs four samples."""
    quarter = len(samples) // 4
    early, late = (
        Sample(*(round(statistics.median(values)) for values in zip(*part, strict=True)))
        for part in (samples[quarter : 2 * quarter], samples[-quarter:])
    )
    return early, late


def find_growth(samples: Sequence[Sample]) -> list[str]:
    """What is greater in the last quarter than in the second, one line each."""
    early, late = compare_quarters(samples)
    bounds = {
        "resident_bytes": RESIDENT_GROWTH_BYTES_MAX,
        "descriptors": 8,  # connections and streams that come and go
        "threads": 8,
        "handles": 0,
        "referenced_inodes": 2,  # a task and its `latest`, as news of the last removal go
        "known_inodes": 2,
    }
    found = []
    for field, bound in bounds.items():
        before, after = getattr(early, field), getattr(late, field)
        if after > before + bound:
            found.append(f"{field}: {before} in the second quarter, {after} in the last")
    return found
