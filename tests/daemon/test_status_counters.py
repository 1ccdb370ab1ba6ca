"""What `cloudai status` says: of files that are not durable, and of reads, where they were answered from."""

from __future__ import annotations

import json
import re

import pytest

from cloudai_daemon.commands.status import describe_counters, print_pending_files
from cloudai_daemon.control_server import report_status
from cloudai_fusefs.mount_control import FileState, FileStatus, MountCounters, MountStatus
from support.fake_mount import FakeMount, RunCloudai

MIB = 1024 * 1024


def test_counters_are_lines_for_a_person() -> None:
    counters = MountCounters(
        watch_count=3,
        open_count=1,
        memory_hits=9,
        memory_misses=1,
        disk_hits=1,
        disk_misses=2,
        fetched_bytes=3 * MIB,
        fetched_chunks=4,
        fetched_ranges=5,
        fetched_batches=6,
        sent_bytes=100,
        memory_bytes=2 * MIB,
        memory_bytes_max=256 * MIB,
        cache_bytes=MIB // 2,
        cache_bytes_max=20 * 1024 * MIB,
    )
    assert describe_counters(counters) == [
        "memory   2.0 MiB of 256.0 MiB, 9 hits (90 %), 1 misses",
        "cache    512.0 KiB of 20.0 GiB, 1 hits (33 %), 2 misses",
        "fetched  3.0 MiB: 4 chunks, 5 ranges, 6 batches",
        "sent     100 B",
        "follows  3 users and open runs, 1 files open",
    ]


def test_damage_is_said_and_no_share_of_nothing() -> None:
    lines = describe_counters(MountCounters(damaged_chunks=2))
    assert lines[0] == "memory   0 B of 0 B, 0 hits, 0 misses"
    assert lines[2] == "fetched  0 B: 0 chunks, 0 ranges, 0 batches, 2 damaged"


def test_status_of_a_mount_has_them_and_that_of_a_path_has_not(
    cloudai: RunCloudai, fake_mount: FakeMount
) -> None:
    (fake_mount.mount_point / "below").mkdir()
    assert "  memory   0 B of 1.0 KiB, 7 hits (100 %), 0 misses" in cloudai("status").stdout
    assert "memory" not in cloudai("status", fake_mount.mount_point / "below").stdout


def test_json_has_them_all(cloudai: RunCloudai, fake_mount: FakeMount) -> None:
    (answer,) = json.loads(cloudai("status", "--json").stdout)
    assert answer["counters"]["memory_hits"] == 7
    assert set(answer["counters"]) == set(MountCounters.__dataclass_fields__)


def test_states_of_files_are_lines_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    def pending(path: str, state: FileState, uploaded_bytes: int, reason: str = "") -> FileStatus:
        return FileStatus(
            path=path, state=state, size_bytes=100 * MIB, uploaded_bytes=uploaded_bytes, reason=reason
        )

    status = MountStatus(
        source="127.0.0.1:7443",
        user="user-123",
        connected=True,
        staged_bytes=300 * MIB,
        pending=[
            pending("user-123/a", FileState.FAILED, 0, "quota exceeded"),
            pending("user-123/b", FileState.UPLOADING, 63 * MIB),
            pending("user-123/c", FileState.STAGED, 0),
        ],
    )

    print_pending_files(report_status(status, MountCounters()))

    assert [line.split("  ") for line in map(squeeze, capsys.readouterr().out.splitlines())] == [
        ["failed", "0 B of 100.0 MiB", "user-123/a", "quota exceeded"],
        ["uploading 63 %", "63.0 MiB of 100.0 MiB", "user-123/b"],
        ["staged", "0 B of 100.0 MiB", "user-123/c"],
    ]


def squeeze(line: str) -> str:
    """Columns apart by two spaces, however wide they are."""
    return re.sub(r"  +", "  ", line.strip())
