"""The work that is compared, written out once more: what is dropped, or made less, is so in two places, on purpose."""

from __future__ import annotations

import os

import pytest

from cloudai_benchmarks.contenders.selection import default_names
from cloudai_benchmarks.registry import make_workloads
from cloudai_benchmarks.workloads import WriteWorkload


def test_all_of_this_is_measured() -> None:
    rows = {
        name: (workload.title, *(phase.value for phase in workload.phases))
        for name, workload in make_workloads(1.0).items()
    }

    assert rows == {
        "first-byte": ("first byte of 1,024 MiB", "cold"),
        "random-1k": ("1,000 random 4 KiB of 1,024 MiB", "cold"),
        "random-10k": ("10,000 random 4 KiB of 1,024 MiB", "cold"),
        "sequential": ("sequential 1,024 MiB", "cold", "again"),
        "streams": ("8 files of 256 MiB at once", "cold"),
        "list-10k": ("ls -lR of 10,000 files", "cold", "again"),
        "list-100k": ("ls -lR of 100,000 files", "cold", "again"),
        "small-files": ("read 2,000 files of 16 KiB", "cold"),
        "safetensors": ("3 of 20 tensors, mapped, of 1,023 MiB", "cold"),
        "missing-names": ("stat of 10,000 names that do not exist", "cold", "again"),
        "write-1g": ("write 1,024 MiB, fsync", "returns", "stored"),
        "cp-1g": ("cp of 1,024 MiB", "returns", "stored"),
        "cp-2000": ("cp -r of 2,000 files of 16 KiB", "returns", "stored"),
        "checkpoint": ("next checkpoint of 1,023 MiB, 10 % changed", "returns", "stored"),
        "log-lines": ("10,000 log lines of 100 bytes, one write each", "returns", "stored"),
        "log-follow": ("10,000 log lines, 500 a second, read elsewhere", "stored"),
        "rm-2000": ("rm -r of 2,000 files", "returns", "stored"),
        "git-clone": ("git clone of 3,000 files", "returns", "stored"),
        "write-latency": ("2,048 MiB uploaded beside writes of 4 KiB", "stored"),
        "writers-1": ("3,200 files of 1 KiB by 1 mount at once", "stored"),
        "writers-4": ("3,200 files of 1 KiB by 4 mounts at once", "stored"),
        "writers-16": ("3,200 files of 1 KiB by 16 mounts at once", "stored"),
        "commits-1": ("8,000 files committed by 1 client without a mount", "stored"),
        "commits-4": ("8,000 files committed by 4 clients without a mount", "stored"),
        "commits-16": ("8,000 files committed by 16 clients without a mount", "stored"),
        "mount-again": ("mount and ls of a run of 10,000 files, no backlog", "returns"),
        "mount-backlog": (
            "mount and ls of a run of 10,000 files, all of them a backlog",
            "returns",
            "stored",
        ),
    }


def test_these_have_the_rate_at_which_files_arrive() -> None:
    rated = {
        name: (workload.writer_count, workload.file_count)
        for name, workload in make_workloads(1.0).items()
        if isinstance(workload, WriteWorkload) and workload.file_count
    }

    assert rated == {
        "writers-1": (1, 3200),
        "writers-4": (4, 3200),
        "writers-16": (16, 3200),
        "commits-1": (1, 8000),  # clients without a mount, beside the only writer's
        "commits-4": (1, 8000),
        "commits-16": (1, 8000),
    }


@pytest.mark.parametrize(
    ("user_id", "names"),
    [
        (0, ("local", "cloudai", "cloudai-user", "sshfs", "rclone")),
        (1000, ("local", "cloudai", "sshfs", "rclone")),
    ],
)
def test_these_take_part(monkeypatch: pytest.MonkeyPatch, user_id: int, names: tuple[str, ...]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user_id)

    assert default_names() == names
