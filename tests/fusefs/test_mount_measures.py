"""The counts behind `cloudai status` and the metrics, after reads and writes whose numbers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from cloudai_fusefs import mount_measures
from cloudai_fusefs.mount_control import MountCounters
from cloudai_fusefs.wire_chunks import ChunkAnswer
from cloudai_model.chunks import digest_of
from cloudai_model.errors import NoSpace
from cloudai_model.limits import KIB
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import commit, commit_one, file_commit, manifest_commit, put

LARGE = bytes(range(256)) * 4 * 300  # 300 KiB: one chunk, and no small file


@pytest.fixture
async def large(client: FakeMasterClient, run: types.Run) -> types.Node:
    await put(client, run, LARGE)
    return await commit_one(client, run, manifest_commit(b"large", [LARGE]))


def of_reads(counters: MountCounters) -> dict[str, int]:
    """What is not 0 of the reads."""
    words = (
        "memory_hits",
        "memory_misses",
        "memory_read_bytes",
        "disk_hits",
        "disk_misses",
        "disk_read_bytes",
    )
    found = {word: getattr(counters, word) for word in words}
    return {word: number for word, number in found.items() if number}


async def read_once(file_system: FileSystemHarness, path: bytes) -> None:
    handle = await file_system.open(path, 0)
    assert len(await file_system.files.read(handle, 0, len(LARGE))) == len(LARGE)
    file_system.close_handle(handle)


async def test_first_read_misses_both_caches_and_the_second_is_answered_from_memory(
    file_system: FileSystemHarness, large: types.Node
) -> None:
    await read_once(file_system, b"large")
    first = await file_system.control.counters()
    await read_once(file_system, b"large")
    second = await file_system.control.counters()
    assert of_reads(first) == {"memory_misses": 1, "disk_misses": 1}
    assert (first.fetched_bytes, first.fetched_chunks) == (len(LARGE), 1)
    assert of_reads(second) == {
        "memory_misses": 1,
        "disk_misses": 1,
        "memory_hits": 1,
        "memory_read_bytes": len(LARGE),
    }
    assert second.fetched_bytes == first.fetched_bytes
    assert len(LARGE) <= second.memory_bytes <= second.memory_bytes_max


async def test_read_after_a_remount_is_answered_from_disk(
    client: FakeMasterClient, run: types.Run, large: types.Node, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path) as file_system:
        await file_system.control.warmup([file_system.tree.path], lambda _: None)
    async with open_file_system(client, run, tmp_path) as file_system:
        await read_once(file_system, b"large")
        counters = await file_system.control.counters()
    assert of_reads(counters) == {"memory_misses": 1, "disk_hits": 1, "disk_read_bytes": len(LARGE)}
    assert counters.fetched_bytes == 0
    assert counters.cache_bytes >= len(LARGE)


async def test_random_reads_count_their_ranges(
    client: FakeMasterClient, run: types.Run, file_system: FileSystemHarness
) -> None:
    chunk = bytes(range(256)) * 4 * KIB  # 1 MiB: long enough for ranges
    await put(client, run, chunk)
    await commit_one(client, run, manifest_commit(b"table", [chunk]))
    handle = await file_system.open(b"table", 0)
    for _ in range(2):
        assert await file_system.files.read(handle, 512 * KIB, 4096) == chunk[512 * KIB :][:4096]
    counters = await file_system.control.counters()
    assert (counters.fetched_ranges, counters.fetched_chunks) == (1, 0)
    assert of_reads(counters) == {
        "memory_misses": 1,
        "disk_misses": 1,
        "memory_hits": 1,
        "memory_read_bytes": 4096,
    }
    file_system.close_handle(handle)


async def test_what_is_open_and_followed_is_counted(
    client: FakeMasterClient, run: types.Run, large: types.Node, file_system: FileSystemHarness
) -> None:
    before = await file_system.control.counters()
    handle = await file_system.open(b"large", 0)
    counters = await file_system.control.counters()
    assert (before.watch_count, before.open_count) == (1, 0)  # the user alone
    assert (counters.watch_count, counters.open_count, counters.connected) == (2, 1, True)
    file_system.close_handle(handle)


async def test_backlog_is_counted_as_status_shows_it(
    file_system: FileSystemHarness, master: FakeMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount_measures, "NODES_AT_ONCE", 2)
    await file_system.find(b"")
    await file_system.namespace.list(file_system.tree.root)
    master.go_away()
    for number in range(5):
        await file_system.write_file(b"%d" % number, b"x" * 1000)
    counters, status = await file_system.control.counters(), file_system.control.status()
    assert (
        (counters.pending_count, counters.staged_bytes)
        == (len(status.pending), status.staged_bytes)
        == (5, 5000)
    )
    master.come_back()
    await file_system.make_all_durable()
    counters = await file_system.control.counters()
    assert (counters.pending_count, counters.staged_bytes) == (0, 0)
    assert counters.sent_bytes == 5000


async def test_what_needs_a_person_is_counted(
    client: FakeMasterClient, file_system: FileSystemHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(request: names.CommitNodesRequest) -> names.CommitNodesResponse:
        raise NoSpace

    monkeypatch.setattr(client, "commit_nodes", refuse)
    await file_system.write_file(b"file", b"x")
    with pytest.raises(NoSpace):
        await file_system.make_all_durable()
    assert (await file_system.control.counters()).failed_count == 1


async def test_small_files_read_together_are_a_batch(
    client: FakeMasterClient, run: types.Run, file_system: FileSystemHarness
) -> None:
    await commit(client, run, *(file_commit(b"%d" % number, b"x%d" % number) for number in range(8)))
    for number in range(8):
        assert await file_system.read_file(b"%d" % number) == b"x%d" % number
    counters = await file_system.control.counters()
    assert counters.fetched_batches >= 1
    assert counters.fetched_chunks == 8


async def test_damaged_answers_are_counted(
    client: FakeMasterClient,
    large: types.Node,
    file_system: FileSystemHarness,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_chunk = client.read_chunk

    async def damage_once(*args: int | str, **kwargs: bool) -> ChunkAnswer:
        monkeypatch.setattr(client, "read_chunk", read_chunk)
        damaged = memoryview(b"X" * len(LARGE))
        return ChunkAnswer(damaged, digest_of(damaged))

    monkeypatch.setattr(client, "read_chunk", damage_once)
    await read_once(file_system, b"large")
    assert (await file_system.control.counters()).damaged_chunks == 1


async def test_inspection_tells_of_master_and_token(
    file_system: FileSystemHarness, master: FakeMaster, client: FakeMasterClient
) -> None:
    inspection = await file_system.control.inspect()
    assert (inspection.master_failure, inspection.token_user) == ("", "user-123")
    assert inspection.token_expires_at_ns > 0
    client.is_revoked = True
    inspection = await file_system.control.inspect()
    assert inspection.failure_reason == "UNAUTHENTICATED"
    master.go_away()
    inspection = await file_system.control.inspect()
    assert inspection.failure_reason == "MASTER_UNAVAILABLE"
    assert inspection.master_failure


async def test_inspection_tells_how_far_the_masters_clock_is_from_ours(
    client: FakeMasterClient, file_system: FileSystemHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspection = await file_system.control.inspect()
    assert inspection.master_ahead_seconds is not None
    assert abs(inspection.master_ahead_seconds) < 5
    get_capabilities = client.get_capabilities

    async def be_an_hour_behind() -> names.GetCapabilitiesResponse:
        answer = await get_capabilities()
        answer.now_ns -= 3600 * 10**9
        return answer

    monkeypatch.setattr(client, "get_capabilities", be_an_hour_behind)
    inspection = await file_system.control.inspect()
    assert inspection.master_ahead_seconds is not None
    assert -3605 < inspection.master_ahead_seconds < -3595


async def test_inspection_waits_for_a_silent_master_for_seconds_only(
    client: FakeMasterClient, file_system: FileSystemHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def say_nothing() -> names.GetCapabilitiesResponse:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(client, "get_capabilities", say_nothing)
    monkeypatch.setattr("cloudai_fusefs.running_mount.INSPECTION_SECONDS_MAX", 0.05)
    inspection = await file_system.control.inspect()
    assert inspection.failure_reason == "MASTER_UNAVAILABLE"
