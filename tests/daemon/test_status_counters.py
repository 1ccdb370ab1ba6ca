"""What `cloudai status` says of reads: where they were answered from, and what that took."""

from __future__ import annotations

import json

from cloudai_daemon.commands.status import describe_counters
from cloudai_fusefs.mount_control import MountCounters
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
