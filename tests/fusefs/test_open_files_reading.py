"""How a file is read: whole chunks, ranges of them, or with its neighbours; counted in calls to the master."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.node import Node
from cloudai_fusefs.open_files import LostName
from cloudai_fusefs.read_counters import ReadCounters
from cloudai_fusefs.retrying_master_client import LAST_CHANCE_SECONDS
from cloudai_model.chunks import digest_of
from cloudai_model.errors import ChunkDamaged, MasterUnavailable, NotFound
from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, KIB, MIB
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import HEARTBEAT_SECONDS, FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import (
    USER,
    append,
    commit,
    commit_one,
    directory_commit,
    file_commit,
    manifest_commit,
    put,
    seal,
)

LARGE = random.Random(1).randbytes(3 * CHUNK_BYTES_MAX + 12_345)
CHUNKS = [LARGE[start : start + CHUNK_BYTES_MAX] for start in range(0, len(LARGE), CHUNK_BYTES_MAX)]

KERNEL_BYTES = 128 * KIB
"""As the kernel reads ahead."""


@pytest.fixture
async def reader(
    client: FakeMasterClient, run: types.Run, master: FakeMaster, tmp_path: Path
) -> AsyncIterator[FileSystemHarness]:
    """A mount of a run that has `large`, of four chunks."""
    await put(client, run, *CHUNKS)
    await commit_one(client, run, manifest_commit(b"large", CHUNKS))
    async with open_file_system(client, run, tmp_path / "reader", timeo_seconds=10) as opened:
        await opened.find(b"large")
        await trio.sleep(1)
        master.call_count.clear()
        yield opened


async def add_small_files(
    client: FakeMasterClient, run: types.Run, count: int, *, directory: bytes = b"d"
) -> list[bytes]:
    """Their paths, in order; the content of each is its path, ten times."""
    paths = [directory + b"/%04d" % number for number in range(count)]
    await commit(client, run, directory_commit(directory), *(file_commit(path, path * 10) for path in paths))
    return paths


def reads_of(master: FakeMaster) -> dict[str, int]:
    """How often which reading call was made."""
    calls = ("get_manifest", "read_chunk", "read_files")
    return {name: master.call_count[name] for name in calls if master.call_count[name]}


def counters_of(file_system: FileSystemHarness) -> ReadCounters:
    return file_system.reader.counters


async def pass_time() -> None:
    """Until what waits for the disk is there, and news has come."""
    await trio.sleep(10)


async def test_opening_a_file_moves_nothing(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    reader.close_handle(await reader.open(b"large", os.O_RDONLY))
    assert reads_of(master) == {}


async def test_one_read_in_the_middle_moves_the_blocks_around_it(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    handle = await reader.open(b"large", os.O_RDONLY)
    assert await reader.read_at(handle, 5 * MIB + 10, 4 * KIB) == LARGE[5 * MIB + 10 :][: 4 * KIB]
    assert reads_of(master) == {"get_manifest": 1, "read_chunk": 1}
    assert counters_of(reader).fetched_bytes == BLOCK_BYTES
    reader.close_handle(handle)


async def test_random_reads_move_far_less_than_the_file(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    handle = await reader.open(b"large", os.O_RDONLY)
    order = random.Random(3)
    for _ in range(12):
        offset = order.randrange(len(LARGE))
        assert await reader.read_at(handle, offset, 4 * KIB) == LARGE[offset : offset + 4 * KIB]
    assert counters_of(reader).fetched_bytes <= 24 * BLOCK_BYTES
    reader.close_handle(handle)


async def test_many_random_reads_end_with_the_whole_chunks(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    handle = await reader.open(b"large", os.O_RDONLY)
    order = random.Random(4)
    for _ in range(300):
        offset = order.randrange(len(LARGE))
        assert await reader.read_at(handle, offset, 4 * KIB) == LARGE[offset : offset + 4 * KIB]
    assert counters_of(reader).fetched_bytes <= 2 * len(LARGE)
    assert reads_of(master)["read_chunk"] <= 4 * 8
    reader.close_handle(handle)


async def test_sequential_reading_moves_whole_chunks_once(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    handle = await reader.open(b"large", os.O_RDONLY)
    for offset in range(0, len(LARGE), KERNEL_BYTES):
        found = await reader.read_at(handle, offset, KERNEL_BYTES)
        assert found == LARGE[offset : offset + KERNEL_BYTES]
    counters = counters_of(reader)
    assert (counters.fetched_chunks, counters.fetched_ranges) == (4, 1)
    assert reader.reader.memory_bytes < len(LARGE) - CHUNK_BYTES_MAX  # the first two chunks are behind it
    assert reads_of(master) == {"get_manifest": 1, "read_chunk": 5}
    reader.close_handle(handle)


async def test_sequential_reading_in_small_steps_moves_little_more_than_the_file(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    handle = await reader.open(b"large", os.O_RDONLY)
    for offset in range(0, len(LARGE), 16 * KIB):
        assert await reader.read_at(handle, offset, 16 * KIB) == LARGE[offset : offset + 16 * KIB]
    assert counters_of(reader).fetched_bytes <= len(LARGE) + CHUNK_BYTES_MAX
    assert reads_of(master)["read_chunk"] <= 4 + 8
    reader.close_handle(handle)


async def test_passed_chunks_make_room_and_are_read_again_from_disk(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    for _ in range(2):
        handle = await reader.open(b"large", os.O_RDONLY)
        assert await reader.read(handle) == LARGE
        reader.close_handle(handle)
        await pass_time()
    assert counters_of(reader).fetched_chunks == 4


async def test_each_handle_has_its_own_pattern(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    sequential, jumping = [await reader.open(b"large", os.O_RDONLY) for _ in range(2)]
    for offset in range(0, MIB, KERNEL_BYTES):
        await reader.read_at(sequential, offset, KERNEL_BYTES)
    await pass_time()
    fetched_bytes = counters_of(reader).fetched_bytes
    far = 3 * CHUNK_BYTES_MAX + 10
    assert await reader.read_at(jumping, far, 100) == LARGE[far : far + 100]
    assert counters_of(reader).fetched_bytes - fetched_bytes <= BLOCK_BYTES
    for handle in (sequential, jumping):
        reader.close_handle(handle)


async def test_small_files_read_in_order_take_few_calls(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    paths = await add_small_files(client, run, 200)
    await pass_time()
    master.call_count.clear()
    for path in paths:
        assert await reader.read_file(path) == path * 10
    assert reads_of(master) == {"read_chunk": 1, "read_files": master.call_count["read_files"]}
    assert master.call_count["read_files"] <= 10


async def test_small_file_is_opened_and_read_with_one_call(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    (path,) = await add_small_files(client, run, 1)
    await pass_time()
    master.call_count.clear()
    for _ in range(2):
        assert await reader.read_file(path) == path * 10
    assert reads_of(master) == {"read_chunk": 1}


async def test_small_files_read_in_no_order_are_read_alone(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    paths = await add_small_files(client, run, 100)
    await pass_time()
    master.call_count.clear()
    for path in paths[::-20]:
        assert await reader.read_file(path) == path * 10
    assert reads_of(master) == {"read_chunk": 5}


async def test_directories_of_small_files_read_one_after_another_take_few_calls(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    directories = [b"d%d" % number for number in range(5)]
    paths = [
        path
        for directory in directories
        for path in await add_small_files(client, run, 40, directory=directory)
    ]
    await pass_time()
    master.call_count.clear()
    for path in paths:
        assert await reader.read_file(path) == path * 10
    assert sum(reads_of(master).values()) <= 20


async def test_reading_the_same_small_file_on_is_no_news_to_its_neighbours(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    paths = await add_small_files(client, run, 20)
    await pass_time()
    master.call_count.clear()
    handle = await reader.open(paths[3], os.O_RDONLY)
    for offset in range(0, 60, 10):
        await reader.read_at(handle, offset, 10)
    reader.close_handle(handle)
    assert reads_of(master) == {"read_chunk": 1}


async def test_small_files_of_a_sealed_run_are_read_without_a_master_after_a_remount(
    clock: MockClock,
    reader: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
) -> None:
    paths = await add_small_files(client, run, 50)
    await seal(client, run)
    async with open_file_system(client, run, tmp_path / "later", timeo_seconds=10) as first:
        for path in paths:
            await first.read_file(path)
        await pass_time()
    async with open_file_system(client, run, tmp_path / "later", timeo_seconds=10) as second:
        master.go_away()
        for path in paths:
            assert await second.read_file(path) == path * 10
        assert counters_of(second).fetched_bytes == 0
        master.come_back()


async def test_random_reads_of_a_sealed_run_are_repeated_without_a_master_after_a_remount(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
) -> None:
    await put(client, run, *CHUNKS)
    await commit_one(client, run, manifest_commit(b"large", CHUNKS))
    await seal(client, run)
    order = random.Random(6)
    places = [order.randrange(len(LARGE)) for _ in range(40)]
    for is_away in (False, True):
        async with open_file_system(client, run, tmp_path / "later", timeo_seconds=10) as mount:
            if is_away:
                master.go_away()
            handle = await mount.open(b"large", os.O_RDONLY)
            for place in places:
                assert await mount.read_at(handle, place, 4 * KIB) == LARGE[place : place + 4 * KIB]
            mount.close_handle(handle)
            await pass_time()
            assert (counters_of(mount).fetched_bytes == 0) is is_away
    master.come_back()


async def test_file_of_several_chunks_among_small_ones_is_left_out(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    paths = await add_small_files(client, run, 10)
    await put(client, run, b"one", b"two")
    await commit_one(client, run, manifest_commit(b"d/0004x", [b"one", b"two"]))
    await pass_time()
    for path in sorted([*paths, b"d/0004x"]):
        assert await reader.read_file(path) == (b"onetwo" if path == b"d/0004x" else path * 10)


async def test_small_file_that_changes_between_the_news_and_the_call_is_read_as_it_is(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    paths = await add_small_files(client, run, 10)
    await pass_time()
    node = await reader.find(paths[5])
    master.latency_seconds = 0.3

    async def change() -> None:
        await commit_one(client, run, file_commit(paths[5], b"changed", node=node.node_id, place=False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        for path in paths[:5]:
            assert await reader.read_file(path) == path * 10
    await pass_time()
    assert await reader.read_file(paths[5]) == b"changed"


async def test_file_that_is_written_here_is_not_fetched(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    handle = await reader.create(b"here")
    await reader.write(handle, 0, LARGE[: 2 * MIB])
    assert await reader.read_at(handle, MIB, 4 * KIB) == LARGE[MIB:][: 4 * KIB]
    assert reads_of(master) == {}
    reader.close_handle(handle)


async def test_overwritten_file_is_read_from_both_places(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    handle = await reader.open(b"large")
    await reader.write(handle, 5 * MIB, b"written here")
    found = await reader.read_at(handle, 5 * MIB - 10, 32)
    assert found == LARGE[5 * MIB - 10 : 5 * MIB] + b"written here" + LARGE[5 * MIB + 12 : 5 * MIB + 22]
    reader.close_handle(handle)


async def test_log_is_read_on_when_its_short_chunks_are_merged(
    clock: MockClock, reader: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    # As `tail -f` does: one handle, over generations of which the last has fewer chunks by far.
    lines = [b"%06d " % number * 1500 for number in range(60)]
    whole = b"".join(lines)
    node = await commit_one(client, run, file_commit(b"log", b""))
    handle = None
    read_bytes = 0
    for line in lines:
        node = await append(client, run, node, line)
        await trio.sleep(1)
        if handle is None:
            handle = await reader.open(b"log", os.O_RDONLY)
        while part := await reader.read_at(handle, read_bytes, KERNEL_BYTES):
            assert part == whole[read_bytes : read_bytes + len(part)]
            read_bytes += len(part)
    assert read_bytes == len(whole)
    assert handle is not None
    end = b"the end"
    await put(client, run, whole + end)
    await commit_one(client, run, manifest_commit(b"log", [whole + end], node=node.node_id, place=False))
    await trio.sleep(1)

    assert await reader.read_at(handle, read_bytes, KERNEL_BYTES) == end
    assert await reader.read_at(handle, 0, KERNEL_BYTES) == whole[:KERNEL_BYTES]
    reader.close_handle(handle)


async def test_what_is_in_memory_is_read_while_the_master_is_away_and_the_rest_fails_in_time(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    handle = await reader.open(b"large", os.O_RDONLY)
    await reader.read_at(handle, 5 * MIB, 100)
    master.go_away()
    began = trio.current_time()
    assert await reader.read_at(handle, 5 * MIB + 50, 100) == LARGE[5 * MIB + 50 :][:100]
    assert trio.current_time() == began
    with pytest.raises(MasterUnavailable):
        await reader.read_at(handle, 9 * MIB, 100)
    assert trio.current_time() - began <= 11
    master.come_back()
    await pass_time()
    assert await reader.read_at(handle, 9 * MIB, 100) == LARGE[9 * MIB :][:100]
    reader.close_handle(handle)


async def test_master_that_answers_late_costs_the_reader_timeo(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    handle = await reader.open(b"large", os.O_RDONLY)
    await reader.read_at(handle, 0, 10)
    master.latency_seconds = 60
    began = trio.current_time()
    for offset in (5 * MIB, 9 * MIB):
        with pytest.raises(MasterUnavailable):
            await reader.read_at(handle, offset, 4 * KIB)
    assert trio.current_time() - began <= 2 * 10 + 1
    master.latency_seconds = 0
    # What was asked for then has come meanwhile.
    await trio.sleep(60)
    assert await reader.read_at(handle, 5 * MIB, 4 * KIB) == LARGE[5 * MIB :][: 4 * KIB]
    reader.close_handle(handle)


async def test_master_that_says_nothing_costs_its_readers_timeo_once(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster
) -> None:
    """R6. A read waits at most `timeo`; the kernel asks again for a page that it did not get, and that is one read."""
    handle = await reader.open(b"large", os.O_RDONLY)
    master.latency_seconds = master.news_latency_seconds = 600
    await trio.sleep(2 * HEARTBEAT_SECONDS)
    began = trio.current_time()
    for offset in (5 * MIB, 5 * MIB, 9 * MIB):
        with pytest.raises(MasterUnavailable):
            await reader.read_at(handle, offset, 4 * KIB)
    assert trio.current_time() - began <= 10 + 2 * LAST_CHANCE_SECONDS
    reader.close_handle(handle)


@pytest.mark.parametrize("offset_bytes", [CHUNK_BYTES_MAX + 10, CHUNK_BYTES_MAX + 2 * MIB])
async def test_random_read_of_a_damaged_chunk_fails_and_names_it(
    clock: MockClock,
    reader: FileSystemHarness,
    master: FakeMaster,
    caplog: pytest.LogCaptureFixture,
    offset_bytes: int,
) -> None:
    key = (USER, digest_of(CHUNKS[1]))
    damaged = bytearray(CHUNKS[1])
    damaged[offset_bytes % CHUNK_BYTES_MAX] ^= 1
    master.store.chunks[key] = bytes(damaged)
    handle = await reader.open(b"large", os.O_RDONLY)
    with pytest.raises(ChunkDamaged):
        await reader.read_at(handle, offset_bytes, 4 * KIB)
    assert await reader.read_at(handle, 9 * MIB, 4 * KIB) == LARGE[9 * MIB :][: 4 * KIB]
    reader.close_handle(handle)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("cloudai_fusefs")]
    assert any("chunk 1 of" in line and "/large is damaged at the master" in line for line in said)


async def test_random_read_of_a_chunk_that_is_gone_at_the_master_fails_and_names_it(
    clock: MockClock, reader: FileSystemHarness, master: FakeMaster, caplog: pytest.LogCaptureFixture
) -> None:
    del master.store.chunks[USER, digest_of(CHUNKS[1])]
    handle = await reader.open(b"large", os.O_RDONLY)
    with pytest.raises(ChunkDamaged):
        await reader.read_at(handle, CHUNK_BYTES_MAX + 10, 4 * KIB)
    reader.close_handle(handle)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("cloudai_fusefs")]
    assert any("chunk 1 of" in line and "/large is damaged at the master" in line for line in said)


async def test_damaged_small_file_costs_its_neighbours_nothing(
    clock: MockClock,
    reader: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    paths = await add_small_files(client, run, 30)
    await pass_time()
    key = (USER, digest_of(paths[10] * 10))
    master.store.chunks[key] = b"X" + master.store.chunks[key][1:]
    for path in paths:
        if path == paths[10]:
            with pytest.raises(ChunkDamaged):
                await reader.read_file(path)
        else:
            assert await reader.read_file(path) == path * 10


async def test_size_that_was_of_something_taken_back_does_not_keep_the_content_from_its_readers(
    clock: MockClock, reader: FileSystemHarness
) -> None:
    node = await reader.find(b"large")
    node.set_size(5000)

    content = await reader.files.load_content(node)

    assert content.manifest.size_bytes == len(LARGE)


async def test_file_that_is_replaced_before_it_is_opened_is_read_as_it_was(reader: FileSystemHarness) -> None:
    await reader.write_file(b"model", b"old")
    await reader.write_file(b"aside", b"new")
    replaced = await reader.find(b"model")
    replaced.lookup_count = 1  # the kernel has looked the name up, and is about to open what it stood for

    await reader.rename(b"aside", b"model")

    handle = (await reader.files.open(replaced, os.O_RDONLY)).handle
    assert await reader.read(handle) == b"old"
    reader.close_handle(handle)
    assert replaced.staged is not None
    replaced.lookup_count = 0
    reader.files.note_forgotten(replaced)
    assert replaced.staged is None


async def test_published_file_that_is_removed_before_it_is_opened_is_not_opened(
    clock: MockClock, reader: FileSystemHarness
) -> None:
    removed = await reader.find(b"large")
    removed.lookup_count = 1

    await reader.unlink(b"large")

    with pytest.raises(LostName):
        await reader.files.open(removed, os.O_RDONLY)


async def test_published_file_that_is_removed_while_its_manifest_is_asked_for_is_not_opened(
    clock: MockClock, reader: FileSystemHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = await reader.find(b"large")
    removed.lookup_count = 1

    async def lose(node: Node) -> None:
        await reader.unlink(b"large")
        raise NotFound("the node")

    monkeypatch.setattr(reader.files, "load_content", lose)

    with pytest.raises(LostName):
        await reader.files.open(removed, os.O_RDWR)
