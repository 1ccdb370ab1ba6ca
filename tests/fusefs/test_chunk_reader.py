"""Reading through memory, disk and master, with a master whose answers the test holds back and damages."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cloudai_fusefs.chunk_flights import FAST_FETCH_SECONDS, FETCHES_IN_FLIGHT_MAX, SLOW_FETCH_SECONDS
from cloudai_fusefs.chunk_memory import Data
from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.file_content import FileContent
from cloudai_fusefs.wire_chunks import ChunkAnswer
from cloudai_fusefs.write_behind import ROOM_SECONDS_MAX, WAITING_BYTES_MAX
from cloudai_model.errors import ChunkDamaged, MasterUnavailable, NotFound
from cloudai_model.limits import CHUNK_BYTES_MAX, MIB
from fakes.files_only_master import FilesOnlyMaster
from support.content_readers import open_readers

PARTS = [b"alpha-", b"beta-", b"gamma-", b"delta"]
WHOLE = b"alpha-beta-gamma-delta"


@asynccontextmanager
async def reading(
    master: FilesOnlyMaster, cache_dir: Path, *, memory_bytes_max: int = 64 * MIB
) -> AsyncIterator[ChunkReader]:
    """A reader; leaving waits for its fetches and for what goes to the disk cache."""
    async with open_readers(master.client, cache_dir, memory_bytes_max=memory_bytes_max) as readers:
        yield readers.chunks


async def test_read_within_a_chunk_is_a_view_of_the_cached_bytes(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        first = await reader.read(content, 7, 3)
        second = await reader.read(content, 6, 4)
    assert isinstance(first, memoryview)
    assert isinstance(second, memoryview)
    assert (bytes(first), bytes(second)) == (b"eta", b"beta")
    assert first.obj is second.obj
    assert master.calls == {("run-1", 1, 1): 1}


async def test_read_over_chunks_joins_them_in_order(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        assert await reader.read(content, 3, 12) == b"ha-beta-gamm"


async def test_read_past_end_returns_short_bytes(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        assert await reader.read(content, 17, 4096) == b"delta"
        assert await reader.read(content, 22, 4096) == b""
        assert await reader.read(content, 1 << 40, 4096) == b""


async def test_read_of_the_empty_file_asks_nobody(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([])
    async with reading(master, tmp_path) as reader:
        assert await reader.read(content, 0, 4096) == b""
    assert not master.calls


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(min_value=0, max_value=30), length=st.integers(min_value=0, max_value=30))
async def test_any_range_is_that_of_the_file(tmp_path: Path, offset: int, length: int) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        assert await reader.read(content, offset, length) == WHOLE[offset : offset + length]


async def test_concurrent_readers_share_one_fetch(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    content = master.add_file(PARTS)
    answers: list[bytes] = []
    async with reading(master, tmp_path) as reader, trio.open_nursery() as readers:

        async def read_beta() -> None:
            answers.append(bytes(await reader.read(content, 6, 5)))

        for _ in range(10):
            readers.start_soon(read_beta)
        await wait_all_tasks_blocked()
        master.gate.set()
    assert answers == [b"beta-"] * 10
    assert master.calls == {("run-1", 1, 1): 1}
    assert (reader.counters.fetched_chunks, reader.counters.fetched_bytes) == (1, 5)


async def test_same_chunk_in_two_files_of_a_run_is_fetched_once(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    first = master.add_file(PARTS, node_id=1)
    second = master.add_file(PARTS, node_id=2)
    async with reading(master, tmp_path) as reader:
        await reader.read(first, 0, 22)
        assert await reader.read(second, 0, 22) == WHOLE
    assert master.calls.total() == 4
    assert reader.counters.memory_hits == 4


async def test_what_one_run_is_refused_is_not_the_answer_to_another(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    refused = master.add_file(PARTS, node_id=1, task_id="run-1")
    allowed = master.add_file(PARTS, node_id=2, task_id="run-2")
    async with reading(master, tmp_path) as reader, trio.open_nursery() as readers:

        async def meet_refusal() -> None:
            with pytest.raises(NotFound):
                await reader.read(refused, 0, 4)

        async def read_allowed() -> None:
            assert await reader.read(allowed, 0, 4) == b"alph"

        readers.start_soon(meet_refusal)
        await master.wait_called(1)
        readers.start_soon(read_allowed)
        await master.wait_called(2)
        master.refused_task_id = "run-1"
        master.gate.set()


async def test_error_of_a_file_is_not_that_of_others_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    gone = master.add_file(PARTS, node_id=1)
    there = master.add_file(PARTS, node_id=2)
    master.refused_node_ids = {1}
    answers: list[bytes] = []
    async with reading(master, tmp_path) as reader, trio.open_nursery() as readers:

        async def meet_refusal() -> None:
            with pytest.raises(NotFound):
                await reader.read(gone, 0, 22)

        async def read_whole() -> None:
            answers.append(bytes(await reader.read(there, 0, 22)))

        readers.start_soon(meet_refusal)
        await wait_all_tasks_blocked()
        for _ in range(3):
            readers.start_soon(read_whole)
        await wait_all_tasks_blocked()
        master.gate.set()
    assert answers == [WHOLE] * 3
    assert master.calls == {("run-1", node_id, index): 1 for node_id in (1, 2) for index in range(len(PARTS))}


async def test_outage_that_one_file_met_is_not_waited_out_again_by_others_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    contents = [master.add_file([b"alpha"], node_id=node_id) for node_id in (1, 2)]
    master.errors = [MasterUnavailable()]
    async with reading(master, tmp_path) as reader, trio.open_nursery() as readers:

        async def meet_outage(content: FileContent) -> None:
            with pytest.raises(MasterUnavailable):
                await reader.read(content, 0, 5)

        for content in contents:
            readers.start_soon(meet_outage, content)
            await wait_all_tasks_blocked()
        master.gate.set()
    assert master.calls == {("run-1", 1, 0): 1}


async def test_cancelled_reader_leaves_the_fetch_to_the_others(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader, trio.open_nursery() as readers:
        scope = trio.CancelScope()
        answers: list[bytes] = []

        async def read_until_cancelled() -> None:
            with scope:
                await reader.read(content, 0, 6)

        async def read_patiently() -> None:
            answers.append(bytes(await reader.read(content, 0, 6)))

        readers.start_soon(read_until_cancelled)
        await master.wait_called(1)
        readers.start_soon(read_patiently)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        master.gate.set()
    assert scope.cancelled_caught
    assert answers == [b"alpha-"]
    assert master.calls.total() == 1


async def test_fetch_of_a_reader_that_was_cancelled_still_arrives_in_the_cache(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        with trio.CancelScope() as scope:
            scope.cancel()
            await reader.read(content, 0, 22)
    assert scope.cancelled_caught
    async with reading(master, tmp_path) as reader:
        assert await reader.read(content, 0, 22) == WHOLE
    assert master.calls.total() == 4


@pytest.mark.parametrize("step_count", range(12))
async def test_read_cancelled_at_any_step_leaves_a_reader_that_works(tmp_path: Path, step_count: int) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    with trio.fail_after(5):
        async with reading(master, tmp_path) as reader:
            async with trio.open_nursery() as readers:
                readers.start_soon(reader.read, content, 0, 22)
                for _ in range(step_count):
                    await trio.lowlevel.checkpoint()
                readers.cancel_scope.cancel()
            assert await reader.read(content, 0, 22) == WHOLE
    assert master.calls.total() == 4


async def test_reader_outside_a_nursery_that_stops_is_told_so(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    content = master.add_file(PARTS)
    scope = trio.CancelScope()
    async with trio.open_nursery() as readers:

        async def meet_the_end(reader: ChunkReader) -> None:
            with pytest.raises(MasterUnavailable, match="stopping"):
                await reader.read(content, 0, 6)

        with scope:
            async with reading(master, tmp_path) as reader:
                readers.start_soon(meet_the_end, reader)
                await master.wait_called(1)
                scope.cancel()


async def test_failure_reaches_every_waiter_and_is_not_kept(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    master.errors = [MasterUnavailable("away")]
    content = master.add_file(PARTS)
    failures: list[str] = []
    async with reading(master, tmp_path) as reader:
        async with trio.open_nursery() as readers:

            async def meet_failure() -> None:
                with pytest.raises(MasterUnavailable) as caught:
                    await reader.read(content, 0, 6)
                failures.append(caught.value.detail)

            for _ in range(3):
                readers.start_soon(meet_failure)
            await wait_all_tasks_blocked()
            master.gate.set()
        assert await reader.read(content, 0, 6) == b"alpha-"
    assert failures == ["away"] * 3
    assert master.calls.total() == 2


async def test_what_was_read_once_comes_from_disk_after_a_remount(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        await reader.read(content, 0, 22)
    async with reading(FilesOnlyMaster(), tmp_path) as reader:
        assert await reader.read(content, 0, 22) == WHOLE
    assert (reader.counters.disk_hits, reader.counters.fetched_chunks) == (4, 0)


async def test_damaged_cache_file_is_fetched_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([b"precious"])
    async with reading(master, tmp_path) as reader:
        await reader.read(content, 0, 8)
    (path,) = [path for path in (tmp_path / "chunks").rglob("*") if path.is_file()]
    path.write_bytes(b"precioux")

    async with reading(master, tmp_path) as reader:
        assert await reader.read(content, 0, 8) == b"precious"

    assert path.read_bytes() == b"precious"
    assert master.calls.total() == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_chunk_damaged_on_the_way_is_fetched_once_more(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.damage_count = 1
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        assert await reader.read(content, 0, 6) == b"alpha-"
    assert (reader.counters.fetched_chunks, reader.counters.damaged_chunks) == (2, 1)


async def test_chunk_damaged_at_the_master_is_an_error_and_a_line_without_its_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    master = FilesOnlyMaster()
    master.damage_count = 2
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        with pytest.raises(ChunkDamaged) as caught:
            await reader.read(content, 6, 5)
        assert await reader.read(content, 0, 6) == b"alpha-"
    assert caught.value.fields["chunk_index"] == 1
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "chunk 1 of user-123/task/run/file is damaged at the master")
    ]
    assert reader.counters.damaged_chunks == 2


async def test_damage_that_the_master_reports_is_handled_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    master = FilesOnlyMaster()
    master.errors = [ChunkDamaged(), ChunkDamaged()]
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        with pytest.raises(ChunkDamaged):
            await reader.read(content, 0, 6)
    assert "chunk 0 of user-123/task/run/file" in caplog.text
    assert not list((tmp_path / "chunks").glob("*/*"))


async def test_damaged_chunk_is_never_cached(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    master = FilesOnlyMaster()
    master.damage_count = 2
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        with pytest.raises(ChunkDamaged):
            await reader.read(content, 0, 6)
        assert await reader.read(content, 0, 6) == b"alpha-"
    assert reader.counters.memory_hits == 0
    assert len(caplog.records) == 1


async def test_memory_stays_within_its_budget(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([bytes([number]) * MIB for number in range(6)])
    async with reading(master, tmp_path, memory_bytes_max=3 * MIB) as reader:
        for index in range(6):
            await reader.read(content, index * MIB, MIB)
            assert reader.memory_bytes <= 3 * MIB
        await reader.read(content, 5 * MIB, 10)
    assert reader.counters.memory_hits == 1


async def test_without_memory_the_disk_answers(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path, memory_bytes_max=0) as reader:
        await reader.read(content, 0, 6)
    async with reading(master, tmp_path, memory_bytes_max=0) as reader:
        await reader.read(content, 0, 6)
        await reader.read(content, 0, 6)
    assert (reader.counters.disk_hits, master.calls.total()) == (2, 1)


async def test_a_logs_short_chunks_are_fetched_a_few_at_a_time(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    lines = [b"line %d\n" % number for number in range(50)]
    content = master.add_file(lines)
    async with reading(master, tmp_path) as reader:
        assert await reader.read(content, 0, 4096) == b"".join(lines)
    assert 1 < master.in_flight_most <= FETCHES_IN_FLIGHT_MAX


async def test_prefetched_chunk_is_read_from_memory(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        reader.prefetch(content, 2)
        reader.prefetch(content, 2)
        assert await reader.read(content, 11, 6) == b"gamma-"
        reader.prefetch(content, 2)
    assert master.calls == {("run-1", 1, 2): 1}


async def test_prefetch_that_fails_is_the_later_readers_to_meet(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.errors = [MasterUnavailable("away")]
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        reader.prefetch(content, 0)
    async with reading(master, tmp_path) as reader:
        assert await reader.read(content, 0, 6) == b"alpha-"


async def test_prefetches_are_dropped_when_enough_are_in_flight_and_readers_pass_them(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    content = master.add_file([b"part %d" % number for number in range(20)])
    async with reading(master, tmp_path) as reader:
        for index in range(10):
            reader.prefetch(content, index)
        async with trio.open_nursery() as readers:
            readers.start_soon(reader.read, content, 6 * 9, 6)
            await master.wait_called(5)
            master.gate.set()
    assert sorted(index for _, _, index in master.calls) == [0, 1, 2, 3, 9]


async def test_prefetch_needs_memory_to_keep_what_it_brings(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path, memory_bytes_max=CHUNK_BYTES_MAX) as reader:
        reader.prefetch(content, 0)
    assert not master.calls


async def test_disk_that_hangs_does_not_hold_back_what_has_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    disk_hangs = trio.Event()

    async def put_when_the_disk_answers(
        self: DiskChunkCache, digest: bytes, data: bytes, block_digests: bytes
    ) -> None:
        await disk_hangs.wait()

    monkeypatch.setattr(DiskChunkCache, "put", put_when_the_disk_answers)
    with trio.fail_after(5):
        async with reading(master, tmp_path, memory_bytes_max=0) as reader:
            assert await reader.read(content, 0, 6) == b"alpha-"
            assert await reader.read(content, 0, 6) == b"alpha-"
            disk_hangs.set()
    assert master.calls.total() == 1


async def test_disk_that_hangs_for_ever_slows_readers_once_in_a_while(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = FilesOnlyMaster()
    count = 6 * FETCHES_IN_FLIGHT_MAX
    content = master.add_file([b"%03d" % number for number in range(count)])
    disk_answers = trio.Event()

    async def hang(*_: object) -> None:
        await disk_answers.wait()

    monkeypatch.setattr(DiskChunkCache, "put", hang)
    async with reading(master, tmp_path) as reader:
        began = trio.current_time()
        for number in range(count):
            assert await reader.read(content, 3 * number, 3) == b"%03d" % number
        # As many as may wait for the disk do so, and then one slot after the other is held up, but once.
        assert trio.current_time() - began <= ROOM_SECONDS_MAX + 1
        disk_answers.set()


async def test_nothing_is_brought_ahead_over_a_line_that_is_slow(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([b"%03d" % number for number in range(20)])
    read_chunk, seconds = master.read_chunk, SLOW_FETCH_SECONDS + 1

    async def read_slowly(*place: Any, **options: Any) -> ChunkAnswer:
        await trio.sleep(seconds)
        return await read_chunk(*place, **options)

    monkeypatch.setattr(master, "read_chunk", read_slowly)
    async with reading(master, tmp_path) as reader:
        assert reader.prefetch(content, 0)
        await reader.read(content, 0, 3)
        assert not reader.prefetch(content, 1)
        seconds = FAST_FETCH_SECONDS / 2
        await reader.read(content, 3, 3)
        assert reader.prefetch(content, 2)


async def test_flush_waits_for_chunks_that_are_on_their_way_to_the_disk(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([b"%03d" % number for number in range(20)])
    put = DiskChunkCache.put

    async def put_slowly(self: DiskChunkCache, digest: bytes, data: bytes, block_digests: bytes) -> None:
        await trio.sleep(0.3)
        await put(self, digest, data, block_digests)

    monkeypatch.setattr(DiskChunkCache, "put", put_slowly)
    async with open_readers(master.client, tmp_path) as readers:
        await readers.chunks.read(content, 0, 60)
        await readers.chunks.flush()
        await readers.chunks.flush()
        assert await readers.disk_cache.find_missing(content.manifest.chunks) == []


def found_in(reader: ChunkReader, content: FileContent, offset_bytes: int, length_bytes: int) -> bytes:
    """What is found without a wait; b"" where nothing is."""
    return bytes(reader.find(content, offset_bytes, length_bytes) or b"")


async def test_what_is_in_memory_is_found_without_a_wait(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        assert reader.find(content, 6, 5) is None
        await reader.read(content, 6, 5)
        assert found_in(reader, content, 7, 3) == b"eta"
        assert found_in(reader, content, 6, 5) == b"beta-"
    assert (reader.counters.memory_hits, reader.counters.memory_bytes) == (2, 8)
    assert master.calls.total() == 1


async def test_read_that_is_more_than_one_chunk_or_nothing_is_not_found(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        await reader.read(content, 0, 22)
        places = [(4, 4), (0, 22), (22, 5), (1 << 40, 5), (3, 0)]
        assert [reader.find(content, offset, length) for offset, length in places] == [None] * 5
        assert found_in(reader, content, 17, 4096) == b"delta"
    assert reader.counters.memory_hits == 1


async def test_what_is_on_its_way_is_not_found_and_near(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        assert not reader.is_near(content, 0)
        reader.prefetch(content, 0)
        await master.wait_called(1)
        assert reader.find(content, 0, 3) is None
        assert reader.is_near(content, 0)
        master.gate.set()
        assert await reader.read(content, 0, 3) == b"alp"
        assert found_in(reader, content, 0, 3) == b"alp"
        assert reader.is_near(content, 0)


async def test_full_chunk_that_was_passed_leaves_memory_and_not_the_disk(tmp_path: Path) -> None:
    full, short = bytes(CHUNK_BYTES_MAX), b"short"
    master = FilesOnlyMaster()
    content = master.add_file([full, short])
    async with reading(master, tmp_path) as reader:
        await reader.read(content, 0, CHUNK_BYTES_MAX + 5)
        for index in (0, 1):
            reader.note_passed(content, index)
        assert reader.find(content, 0, 10) is None
        assert found_in(reader, content, CHUNK_BYTES_MAX, 5) == short
        reader.note_passed(content, 0)
    async with reading(master, tmp_path) as reader:
        assert await reader.read(content, 0, 10) == bytes(10)
    assert master.calls == {("run-1", 1, 0): 1, ("run-1", 1, 1): 1}


async def test_master_is_asked_to_verify_when_a_chunk_arrived_damaged(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.damage_count = 1
    content = master.add_file(PARTS)
    async with reading(master, tmp_path) as reader:
        await reader.read(content, 0, 6)
        await reader.read(content, 6, 5)
    assert master.verified == [False, True, False]


@pytest.mark.parametrize("spoilt", [b"", b"alpha", b"alpha-x", b"beta-"])
async def test_chunk_of_another_length_is_damaged(tmp_path: Path, spoilt: bytes) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    master.files[1] = [spoilt]
    async with reading(master, tmp_path) as reader:
        with pytest.raises(ChunkDamaged):
            await reader.read(content, 0, 6)
    assert master.verified == [False, True]


async def test_what_was_written_here_is_read_back_without_a_master(tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(FilesOnlyMaster(), tmp_path) as reader:
        for part, chunk in zip(PARTS, content.manifest.chunks, strict=True):
            reader.keep_written(chunk.digest, part)
        assert await reader.read(content, 0, 22) == WHOLE
    async with reading(FilesOnlyMaster(), tmp_path) as reader:
        assert await reader.read(content, 0, 22) == WHOLE


async def test_writer_does_not_fill_memory_with_what_a_disk_that_hangs_does_not_take(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_hangs = trio.Event()
    kept: list[bytes] = []

    async def put_when_the_disk_answers(self: DiskChunkCache, chunks: Mapping[bytes, Data]) -> None:
        await disk_hangs.wait()
        kept.extend(chunks)

    monkeypatch.setattr(DiskChunkCache, "put_many", put_when_the_disk_answers)
    data = bytes(MIB)
    async with reading(FilesOnlyMaster(), tmp_path) as reader:
        for number in range(200):
            reader.keep_written(b"%d" % number, data)
            await trio.sleep(1)
        disk_hangs.set()
    assert WAITING_BYTES_MAX // MIB <= len(kept) <= WAITING_BYTES_MAX // MIB + 1


async def test_chunk_that_cannot_be_kept_for_a_reason_nobody_foresaw_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(self: DiskChunkCache, digest: bytes, data: bytes, block_digests: bytes) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(DiskChunkCache, "put", fail)
    master = FilesOnlyMaster()
    content = master.add_file(PARTS)
    async with reading(master, tmp_path, memory_bytes_max=0) as reader:
        for _ in range(2):
            assert await reader.read(content, 0, 6) == b"alpha-"
            await wait_all_tasks_blocked()
    assert master.calls.total() == 2
    assert "can't start new thread" in caplog.text
