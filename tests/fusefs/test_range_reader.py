"""Ranges of chunks: only what is wanted moves, all of it verified, whoever else reads and whatever is damaged."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cloudai_fusefs import write_behind
from cloudai_fusefs.block_file import RANGED_CHUNK_BYTES_MIN, BlockSpan, block_count
from cloudai_fusefs.chunk_memory import ENTRY_BYTES, Key
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.file_content import FileContent
from cloudai_fusefs.range_reader import RANGES_IN_FLIGHT_MAX, WHOLE_AFTER_RANGES
from cloudai_fusefs.wire_chunks import ChunkAnswer, ChunkData
from cloudai_fusefs.write_behind import WriteBehind
from cloudai_model.chunks import block_digests_of, digest_of
from cloudai_model.errors import ChunkDamaged, MasterUnavailable, NotFound
from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, DIGEST_BYTES, KIB, MIB
from fakes.files_only_master import FilesOnlyMaster, RangeCall, SpoilRange
from support.content_readers import ContentReaders, held_bytes, open_readers

CHUNK_BYTES = 20 * BLOCK_BYTES + 100
"""With a last block that is short; large enough for ranges."""

LAST_BLOCK = 20


def chunk_of(seed: int, length_bytes: int = CHUNK_BYTES) -> bytes:
    return random.Random(seed).randbytes(length_bytes)


CHUNKS = [chunk_of(1), chunk_of(2)]
WHOLE = b"".join(CHUNKS)


def ranged(first_block: int, after_block: int, *, index: int = 0, digests: bool = False) -> RangeCall:
    length_bytes = min(after_block * BLOCK_BYTES, CHUNK_BYTES) - first_block * BLOCK_BYTES
    return RangeCall(index, first_block * BLOCK_BYTES, length_bytes, digests)


def kept_blocks(readers: ContentReaders, chunk: bytes) -> list[int]:
    """The blocks of the chunk in memory by themselves."""
    count = -(-len(chunk) // BLOCK_BYTES)
    return [block for block in range(count) if (digest_of(chunk), block) in readers.memory]


def files_of(cache_dir: Path) -> list[Path]:
    return [path for path in (cache_dir / "chunks").rglob("*") if path.is_file()]


# What moves.


async def test_read_moves_the_block_around_it(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        found = await readers.ranges.read(content, 3 * BLOCK_BYTES + 7, 4096)
    assert found == WHOLE[3 * BLOCK_BYTES + 7 : 3 * BLOCK_BYTES + 7 + 4096]
    assert master.range_calls == [ranged(3, 4, digests=True)]
    assert not master.calls
    counters = readers.chunks.counters
    assert (counters.fetched_ranges, counters.fetched_bytes, counters.fetched_chunks) == (1, BLOCK_BYTES, 0)


async def test_last_block_is_short(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        assert await readers.ranges.read(content, 2 * CHUNK_BYTES - 50, 4096) == WHOLE[-50:]
        assert await readers.ranges.read(content, 2 * CHUNK_BYTES, 4096) == b""
    assert master.range_calls == [RangeCall(1, LAST_BLOCK * BLOCK_BYTES, 100, True)]


async def test_read_over_blocks_and_chunks_is_joined(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    start = CHUNK_BYTES - BLOCK_BYTES
    async with open_readers(master.client, tmp_path) as readers:
        assert await readers.ranges.read(content, start, 2 * BLOCK_BYTES) == WHOLE[start:][: 2 * BLOCK_BYTES]
    assert master.range_calls == [
        ranged(19, LAST_BLOCK + 1, digests=True),
        ranged(0, 1, index=1, digests=True),
    ]


async def test_block_that_was_read_is_in_memory(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        for offset in (0, 5000, BLOCK_BYTES - 10):
            assert await readers.ranges.read(content, offset, 10) == WHOLE[offset : offset + 10]
        await readers.ranges.read(content, BLOCK_BYTES - 5, 10)
        assert await readers.ranges.read(content, BLOCK_BYTES - 50, 100) == WHOLE[BLOCK_BYTES - 50 :][:100]
    assert master.range_calls == [ranged(0, 1, digests=True), ranged(0, 2)]
    assert readers.chunks.counters.memory_hits == 3


async def test_digests_are_asked_for_once(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        for block in (0, 7, 13):
            await readers.ranges.read(content, block * BLOCK_BYTES, 10)
    assert [call.with_block_digests for call in master.range_calls] == [True, False, False]


async def test_ranges_grow_and_then_the_chunk_comes_whole(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([chunk_of(3, CHUNK_BYTES_MAX)])
    async with open_readers(master.client, tmp_path) as readers:
        for block in (3, 60, 20, 31, 41, 47, 57, 9, 50):
            found = await readers.ranges.read(content, block * BLOCK_BYTES + 5, 100)
            assert found == master.files[1][0][block * BLOCK_BYTES + 5 :][:100]
    blocks = [
        (call.offset_bytes // BLOCK_BYTES, call.length_bytes // BLOCK_BYTES) for call in master.range_calls
    ]
    assert blocks == [(3, 1), (60, 1), (20, 1), (31, 1), (40, 2), (44, 4), (56, 8), (9, 1)]
    assert len(blocks) == WHOLE_AFTER_RANGES + 1
    assert master.calls == {("run-1", 1, 0): 1}


async def test_who_reads_a_block_more_does_not_wait_for_the_whole_chunk(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([chunk_of(3, CHUNK_BYTES_MAX)])
    gate = trio.Event()
    read_chunk = master.read_chunk

    async def read_at_the_gate(*place: Any, **options: Any) -> ChunkAnswer:
        await gate.wait()
        return await read_chunk(*place, **options)

    monkeypatch.setattr(master, "read_chunk", read_at_the_gate)
    async with open_readers(master.client, tmp_path) as readers:
        for block in (3, 60, 20, 31, 41, 47, 57):
            await readers.ranges.read(content, block * BLOCK_BYTES, 100)
        assert not readers.chunks.is_near(content, 0)
        with trio.fail_after(1):
            found = await readers.ranges.read(content, 9 * BLOCK_BYTES, 100)
        assert found == master.files[1][0][9 * BLOCK_BYTES :][:100]
        assert readers.chunks.is_near(content, 0)
        gate.set()


async def test_block_on_the_disk_is_not_asked_for_again_however_wide_ranges_have_become(
    clock: MockClock, tmp_path: Path
) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([chunk_of(3, CHUNK_BYTES_MAX)])
    blocks = (3, 60, 20, 31, 41)
    async with open_readers(master.client, tmp_path) as readers:
        for block in blocks:
            await readers.ranges.read(content, block * BLOCK_BYTES, 100)
        await trio.sleep(5)  # until what was fetched is on the disk
        for block in range(block_count(CHUNK_BYTES_MAX)):
            readers.memory.drop((content.manifest.chunks[0].digest, block))
        asked = len(master.range_calls)
        for block in blocks:
            found = await readers.ranges.read(content, block * BLOCK_BYTES, 100)
            assert found == master.files[1][0][block * BLOCK_BYTES :][:100]
    assert len(master.range_calls) == asked
    assert readers.chunks.counters.disk_hits == len(blocks)


async def test_disk_that_hangs_for_ever_bounds_what_waits_for_it(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([chunk_of(seed, RANGED_CHUNK_BYTES_MIN) for seed in range(40)])
    disk_answers = trio.Event()
    waiting_bytes = 0

    async def hang(self: DiskChunkCache, spans: Sequence[BlockSpan]) -> None:
        await disk_answers.wait()

    def note_added(self: WriteBehind, span: BlockSpan) -> None:
        nonlocal waiting_bytes
        waiting_bytes += len(span.data)
        add_blocks(self, span)

    add_blocks = WriteBehind.add_blocks
    monkeypatch.setattr(write_behind, "WAITING_BYTES_MAX", MIB)
    monkeypatch.setattr(DiskChunkCache, "put_blocks", hang)
    monkeypatch.setattr(WriteBehind, "add_blocks", note_added)
    async with open_readers(master.client, tmp_path) as readers:
        for index in range(40):
            await readers.ranges.read(content, content.manifest.start_of(index), 10)
            await trio.sleep(10)  # longer than anybody waits for the disk
        assert MIB <= waiting_bytes <= MIB + BLOCK_BYTES
        disk_answers.set()
    assert len(master.range_calls) == 40


async def test_ranges_of_a_chunk_move_no_more_than_it_twice(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([chunk_of(3, CHUNK_BYTES_MAX)])
    order = random.Random(5)
    async with open_readers(master.client, tmp_path) as readers:
        for _ in range(500):
            offset = order.randrange(CHUNK_BYTES_MAX)
            await readers.ranges.read(content, offset, order.randrange(1, 256 * KIB))
    assert readers.chunks.counters.fetched_bytes <= 2 * CHUNK_BYTES_MAX


async def test_short_chunk_is_fetched_whole(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([b"short", chunk_of(3, RANGED_CHUNK_BYTES_MIN - 1)])
    async with open_readers(master.client, tmp_path) as readers:
        assert await readers.ranges.read(content, 3, 4) == b"rt" + master.files[1][1][:2]
    assert master.range_calls == []
    assert master.calls.total() == 2


async def test_chunk_in_memory_is_not_asked_for_in_ranges(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        await readers.chunks.read(content, 0, 10)
        assert await readers.ranges.read(content, 5 * BLOCK_BYTES, 10) == WHOLE[5 * BLOCK_BYTES :][:10]
    assert master.range_calls == []


# Many at once.


async def test_readers_of_one_block_share_a_call(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    content = master.add_file(CHUNKS)
    answers: list[bytes] = []
    async with open_readers(master.client, tmp_path) as readers, trio.open_nursery() as nursery:

        async def read(offset: int) -> None:
            answers.append(bytes(await readers.ranges.read(content, offset, 3)))

        for offset in range(4):
            nursery.start_soon(read, offset)
        await wait_all_tasks_blocked()
        master.gate.set()
    assert sorted(answers) == sorted(WHOLE[offset : offset + 3] for offset in range(4))
    assert master.range_calls == [ranged(0, 1, digests=True)]


async def test_range_and_whole_chunk_at_once_are_both_right(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    content = master.add_file(CHUNKS)
    answers: dict[str, bytes] = {}
    async with open_readers(master.client, tmp_path) as readers, trio.open_nursery() as nursery:

        async def read_range(name: str) -> None:
            answers[name] = bytes(await readers.ranges.read(content, 5 * BLOCK_BYTES, 100))

        async def read_whole() -> None:
            answers["whole"] = bytes(await readers.chunks.read(content, 0, CHUNK_BYTES))

        nursery.start_soon(read_range, "before")
        await master.wait_called(1)
        nursery.start_soon(read_whole)
        await master.wait_called(2)
        nursery.start_soon(read_range, "after")  # waits for the chunk
        await wait_all_tasks_blocked()
        master.gate.set()
    expected = WHOLE[5 * BLOCK_BYTES :][:100]
    assert answers == {"before": expected, "whole": CHUNKS[0], "after": expected}
    assert (len(master.range_calls), master.calls.total()) == (1, 1)


async def test_what_one_run_is_refused_is_not_the_answer_to_another(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    refused = master.add_file(CHUNKS, node_id=1, task_id="run-1")
    allowed = master.add_file(CHUNKS, node_id=2, task_id="run-2")
    async with open_readers(master.client, tmp_path) as readers, trio.open_nursery() as nursery:

        async def meet_refusal() -> None:
            with pytest.raises(NotFound):
                await readers.ranges.read(refused, 0, 4)

        async def read_allowed() -> None:
            assert await readers.ranges.read(allowed, 0, 4) == WHOLE[:4]

        nursery.start_soon(meet_refusal)
        await master.wait_called(1)
        nursery.start_soon(read_allowed)
        await master.wait_called(2)
        master.refused_task_id = "run-1"
        master.gate.set()


async def test_error_of_a_file_is_not_that_of_another_with_the_same_bytes(
    clock: MockClock, tmp_path: Path
) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    gone = master.add_file(CHUNKS, node_id=1)
    there = master.add_file(CHUNKS, node_id=2)
    master.range_errors = [NotFound(node_id=1)]
    async with open_readers(master.client, tmp_path) as readers, trio.open_nursery() as nursery:

        async def meet_refusal() -> None:
            with pytest.raises(NotFound):
                await readers.ranges.read(gone, 0, 4)

        async def read_what_is_there() -> None:
            assert await readers.ranges.read(there, 0, 4) == WHOLE[:4]

        nursery.start_soon(meet_refusal)
        await master.wait_called(1)
        nursery.start_soon(read_what_is_there)
        await wait_all_tasks_blocked()
        master.gate.set()
    assert len(master.range_calls) == 2


async def test_cancelled_reader_leaves_the_range_to_the_others(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    content = master.add_file(CHUNKS)
    scope = trio.CancelScope()
    answers: list[bytes] = []
    async with open_readers(master.client, tmp_path) as readers, trio.open_nursery() as nursery:

        async def read_until_cancelled() -> None:
            with scope:
                await readers.ranges.read(content, 0, 6)

        async def read_patiently() -> None:
            answers.append(bytes(await readers.ranges.read(content, 0, 6)))

        nursery.start_soon(read_until_cancelled)
        await master.wait_called(1)
        nursery.start_soon(read_patiently)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        master.gate.set()
    assert scope.cancelled_caught
    assert answers == [WHOLE[:6]]
    assert len(master.range_calls) == 1


async def test_range_whose_readers_are_all_gone_still_arrives_in_the_cache(
    clock: MockClock, tmp_path: Path
) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    master.gate = trio.Event()
    async with open_readers(master.client, tmp_path) as readers:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readers.ranges.read, content, 0, 10)
            await wait_all_tasks_blocked()
            assert master.range_calls
            nursery.cancel_scope.cancel()
        master.gate.set()
    async with open_readers(FilesOnlyMaster().client, tmp_path) as readers:
        assert await readers.ranges.read(content, 0, 10) == WHOLE[:10]


@pytest.mark.parametrize("step_count", range(16))
async def test_read_cancelled_at_any_step_leaves_a_reader_that_works(
    clock: MockClock, tmp_path: Path, step_count: int
) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    start = CHUNK_BYTES - 100
    with trio.fail_after(5):
        async with open_readers(master.client, tmp_path) as readers:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(readers.ranges.read, content, start, 200)
                for _ in range(step_count):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert await readers.ranges.read(content, start, 200) == WHOLE[start:][:200]
    assert len(master.range_calls) == 2


async def test_failure_reaches_every_waiter_and_is_not_kept(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    master.range_errors = [MasterUnavailable("away")]
    content = master.add_file(CHUNKS)
    failures: list[str] = []
    async with open_readers(master.client, tmp_path) as readers:
        async with trio.open_nursery() as nursery:

            async def meet_failure() -> None:
                with pytest.raises(MasterUnavailable) as caught:
                    await readers.ranges.read(content, 0, 6)
                failures.append(caught.value.detail)

            for _ in range(3):
                nursery.start_soon(meet_failure)
            await wait_all_tasks_blocked()
            master.gate.set()
        assert failures == ["away"] * 3
        assert await readers.ranges.read(content, 0, 6) == WHOLE[:6]
    assert len(master.range_calls) == 2


async def test_reader_outside_a_nursery_that_stops_is_told_so(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    content = master.add_file(CHUNKS)
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:

        async def meet_the_end(readers: ContentReaders) -> None:
            with pytest.raises(MasterUnavailable, match="stopping"):
                await readers.ranges.read(content, 0, 6)

        with scope:
            async with open_readers(master.client, tmp_path) as readers:
                nursery.start_soon(meet_the_end, readers)
                await master.wait_called(1)
                scope.cancel()


async def test_ranges_in_flight_are_bounded(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    contents = [
        master.add_file([chunk_of(seed, RANGED_CHUNK_BYTES_MIN)], node_id=1 + seed) for seed in range(60)
    ]
    async with open_readers(master.client, tmp_path) as readers, trio.open_nursery() as nursery:
        for content in contents:
            nursery.start_soon(readers.ranges.read, content, 0, 10)
        await wait_all_tasks_blocked()
        assert master.in_flight == RANGES_IN_FLIGHT_MAX
        master.gate.set()
    assert len(master.range_calls) == 60


# Damage.


def change_a_byte(answer: ChunkData) -> ChunkData:
    data = bytearray(answer.data)
    data[len(data) // 2] ^= 1
    return ChunkData(memoryview(bytes(data)), answer.block_digests)


def cut_a_byte(answer: ChunkData) -> ChunkData:
    return ChunkData(answer.data[:-1], answer.block_digests)


def add_a_byte(answer: ChunkData) -> ChunkData:
    return ChunkData(memoryview(bytes(answer.data) + b"x"), answer.block_digests)


def empty(answer: ChunkData) -> ChunkData:
    return ChunkData(memoryview(b""), answer.block_digests)


def change_digests(answer: ChunkData) -> ChunkData:
    return ChunkData(answer.data, bytes(len(answer.block_digests)))


def cut_digests(answer: ChunkData) -> ChunkData:
    # Enough for this range, and for no later one.
    return ChunkData(answer.data, answer.block_digests[: 8 * DIGEST_BYTES])


def drop_digests(answer: ChunkData) -> ChunkData:
    return ChunkData(answer.data)


def send_another_block(answer: ChunkData) -> ChunkData:
    other = CHUNKS[0][9 * BLOCK_BYTES : 9 * BLOCK_BYTES + len(answer.data)]
    return ChunkData(memoryview(other), answer.block_digests)


@pytest.mark.parametrize(
    "spoil",
    [
        change_a_byte,
        cut_a_byte,
        add_a_byte,
        empty,
        change_digests,
        cut_digests,
        drop_digests,
        send_another_block,
    ],
)
async def test_spoilt_range_is_made_good_by_the_whole_chunk(
    clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: SpoilRange
) -> None:
    master = FilesOnlyMaster()
    master.spoil_range = spoil
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        assert await readers.ranges.read(content, 5 * BLOCK_BYTES, 100) == WHOLE[5 * BLOCK_BYTES :][:100]
        assert await readers.ranges.read(content, 15 * BLOCK_BYTES, 100) == WHOLE[15 * BLOCK_BYTES :][:100]
    assert len(master.range_calls) == 1
    assert master.calls == {("run-1", 1, 0): 1}
    assert readers.chunks.counters.damaged_chunks == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    # Nothing of the spoilt answer is left.
    async with open_readers(FilesOnlyMaster().client, tmp_path) as readers:
        assert await readers.chunks.read(content, 0, CHUNK_BYTES) == CHUNKS[0]


async def test_range_spoilt_later_is_made_good_too(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        await readers.ranges.read(content, 0, 100)
        master.spoil_range = change_a_byte
        assert await readers.ranges.read(content, 5 * BLOCK_BYTES, 100) == WHOLE[5 * BLOCK_BYTES :][:100]
    assert master.calls.total() == 1


def change_last_digest(answer: ChunkData) -> ChunkData:
    return ChunkData(answer.data, answer.block_digests[:-DIGEST_BYTES] + bytes(DIGEST_BYTES))


async def test_digests_that_turn_out_wrong_are_asked_for_again(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.spoil_range = change_last_digest
    content = master.add_file(CHUNKS)
    last_place = LAST_BLOCK * BLOCK_BYTES
    async with open_readers(master.client, tmp_path) as readers:
        assert await readers.ranges.read(content, 0, 100) == WHOLE[:100]
        master.spoil_range = None
        assert await readers.ranges.read(content, last_place, 50) == WHOLE[last_place:][:50]
        assert master.calls.total() == 1
        await trio.sleep(10)
        for path in files_of(tmp_path):
            path.unlink()
        readers.memory.drop(digest_of(CHUNKS[0]))
        readers.memory.drop((digest_of(CHUNKS[0]), LAST_BLOCK))
        assert await readers.ranges.read(content, last_place, 50) == WHOLE[last_place:][:50]
    assert [call.with_block_digests for call in master.range_calls] == [True, False, True]
    assert master.calls.total() == 1


async def test_range_of_a_chunk_damaged_at_the_master_is_an_error_and_a_line(
    clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    master = FilesOnlyMaster()
    master.spoil_range = change_a_byte
    master.damage_count = 2
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        with pytest.raises(ChunkDamaged) as caught:
            await readers.ranges.read(content, CHUNK_BYTES + 5, 100)
        master.spoil_range = None
        assert await readers.ranges.read(content, 5, 100) == WHOLE[5:105]
    assert caught.value.fields["chunk_index"] == 1
    assert master.verified == [False, True]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "chunk 1 of user-123/task/run/file is damaged at the master")
    ]


async def test_damage_that_the_master_finds_itself_is_handled_alike(
    clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # So it does for a range when the chunk's file is gone, or when it makes the digests of its blocks.
    master = FilesOnlyMaster()
    master.range_errors = [ChunkDamaged()]
    master.errors = []
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        assert await readers.ranges.read(content, 5, 100) == WHOLE[5:105]
        master.range_errors = [ChunkDamaged()]
        master.damage_count = 2
        with pytest.raises(ChunkDamaged):
            await readers.ranges.read(content, CHUNK_BYTES + 5, 100)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "chunk 1 of user-123/task/run/file is damaged at the master")
    ]


async def test_master_that_lies_about_a_chunk_spoils_the_reads_of_no_other(
    clock: MockClock, tmp_path: Path
) -> None:
    lying, honest = FilesOnlyMaster(), FilesOnlyMaster()
    content = lying.add_file(CHUNKS)
    assert honest.add_file(CHUNKS) == content
    lie = chunk_of(99)
    lying.spoil_range = lambda answer: ChunkData(memoryview(lie)[:BLOCK_BYTES], block_digests_of(lie))
    async with open_readers(lying.client, tmp_path, scope="lying.example/user-123") as readers:
        assert await readers.ranges.read(content, 0, 100) == lie[:100]

    async with open_readers(honest.client, tmp_path, scope="honest.example/user-123") as readers:
        assert await readers.ranges.read(content, 0, 100) == WHOLE[:100]


async def test_no_spoilt_byte_is_ever_kept(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.spoil_range = change_a_byte
    master.damage_count = 2
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        with pytest.raises(ChunkDamaged):
            await readers.ranges.read(content, 5, 100)
        assert kept_blocks(readers, CHUNKS[0]) == []
    assert files_of(tmp_path) == []


# The disk cache.


async def test_ranges_are_read_from_disk_after_a_remount(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    places = [3 * BLOCK_BYTES + 9, CHUNK_BYTES - 60, CHUNK_BYTES + 4 * BLOCK_BYTES]
    async with open_readers(master.client, tmp_path) as readers:
        for place in places:
            await readers.ranges.read(content, place, 50)
    async with open_readers(FilesOnlyMaster().client, tmp_path) as readers:
        for place in places:
            assert await readers.ranges.read(content, place, 50) == WHOLE[place : place + 50]
    assert readers.chunks.counters.disk_hits == 3


async def test_range_of_a_whole_chunk_on_disk_asks_nobody(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        await readers.chunks.read(content, 0, 10)
    async with open_readers(FilesOnlyMaster().client, tmp_path) as readers:
        for block in range(LAST_BLOCK):
            found = await readers.ranges.read(content, block * BLOCK_BYTES, 10)
            assert found == WHOLE[block * BLOCK_BYTES :][:10]


@pytest.mark.parametrize("damage", ["data", "digests", "truncated", "empty"])
async def test_damaged_blocks_file_is_fetched_again(clock: MockClock, tmp_path: Path, damage: str) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        for block in (3, 7):
            await readers.ranges.read(content, block * BLOCK_BYTES, 10)
    (path,) = files_of(tmp_path)
    assert path.suffix == ".blocks"
    stored = bytearray(path.read_bytes())
    stored[{"data": 3 * BLOCK_BYTES + 1, "digests": CHUNK_BYTES + 7 * DIGEST_BYTES}.get(damage, -1)] ^= 1
    path.write_bytes(stored[: {"truncated": CHUNK_BYTES, "empty": 0}.get(damage, len(stored))])

    async with open_readers(master.client, tmp_path) as readers:
        for block in (3, 7):
            found = await readers.ranges.read(content, block * BLOCK_BYTES, 10)
            assert found == WHOLE[block * BLOCK_BYTES :][:10]

    # Only the range, and nothing that the master sent is taken for damaged.
    assert readers.chunks.counters.damaged_chunks == 0
    assert not master.calls
    async with open_readers(FilesOnlyMaster().client, tmp_path) as readers:
        for block in (3, 7):
            found = await readers.ranges.read(content, block * BLOCK_BYTES, 10)
            assert found == WHOLE[block * BLOCK_BYTES :][:10]


async def test_damaged_whole_chunk_on_disk_costs_a_range(
    clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        await readers.chunks.read(content, 0, 10)
    (path,) = files_of(tmp_path)
    stored = bytearray(path.read_bytes())
    stored[3 * BLOCK_BYTES] ^= 1
    path.write_bytes(stored)
    async with open_readers(master.client, tmp_path) as readers:
        assert await readers.ranges.read(content, 3 * BLOCK_BYTES, 10) == WHOLE[3 * BLOCK_BYTES :][:10]
    assert len(master.range_calls) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_disk_that_fails_costs_the_reader_nothing(
    clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "chunks").write_text("in the way")
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    async with open_readers(master.client, tmp_path) as readers:
        for block in (3, 3, 7):
            found = await readers.ranges.read(content, block * BLOCK_BYTES, 10)
            assert found == WHOLE[block * BLOCK_BYTES :][:10]
    assert len(master.range_calls) == 2
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


# Memory.


async def test_without_memory_reads_are_right(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file(CHUNKS)
    order = random.Random(1)
    async with open_readers(master.client, tmp_path, memory_bytes_max=0) as readers:
        for _ in range(50):
            offset = order.randrange(len(WHOLE))
            length = order.randrange(1, 256 * KIB)
            found = await readers.ranges.read(content, offset, length)
            assert found == WHOLE[offset : offset + length]
            if order.randrange(10) == 0:
                await trio.sleep(10)
    assert readers.memory.used_bytes == 0


async def fill_from(readers: ContentReaders, content: FileContent, count: int) -> None:
    """A read in each of the first so many chunks, of another block each."""
    for index in range(count):
        start = content.manifest.start_of(index)
        await readers.ranges.read(content, start + (index % LAST_BLOCK) * BLOCK_BYTES, 100)


def kept_in_memory(readers: ContentReaders, content: FileContent) -> int:
    """What the memory keeps of the file, each buffer once, whatever part of it counts."""
    held: dict[int, int] = {}
    for length_bytes, digest in content.manifest.chunks:
        blocks = range(-(-length_bytes // BLOCK_BYTES))
        keys: list[Key] = [digest, *((digest, block) for block in blocks)]
        for key in keys:
            if key in readers.memory:
                data = readers.memory.get(key)
                assert data is not None
                held[id(data.obj if isinstance(data, memoryview) else data)] = held_bytes(data)
    return sum(held.values())


@pytest.mark.parametrize("is_cached", [False, True], ids=["from the master", "from whole chunks on disk"])
async def test_blocks_in_memory_keep_no_more_than_they_count(
    clock: MockClock, tmp_path: Path, is_cached: bool
) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([chunk_of(seed) for seed in range(40)])
    if is_cached:
        async with open_readers(master.client, tmp_path) as readers:
            await readers.chunks.read(content, 0, content.manifest.size_bytes)
    budget_bytes = 20 * (BLOCK_BYTES + ENTRY_BYTES)
    async with open_readers(master.client, tmp_path, memory_bytes_max=budget_bytes) as readers:
        await fill_from(readers, content, 40)
        assert readers.memory.used_bytes <= budget_bytes
        assert BLOCK_BYTES < kept_in_memory(readers, content) <= budget_bytes + 20 * 4 * KIB


async def test_blocks_of_wide_ranges_keep_no_more_than_they_count(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    content = master.add_file([chunk_of(seed) for seed in range(40)])
    budget_bytes = 20 * (BLOCK_BYTES + ENTRY_BYTES)
    async with open_readers(master.client, tmp_path, memory_bytes_max=budget_bytes) as readers:
        for index in range(40):
            start = content.manifest.start_of(index)
            await readers.ranges.read(content, start + 100, 4 * BLOCK_BYTES - 200)
            # One block of each answer is used again, the others go.
            for earlier in range(index):
                readers.memory.get((content.manifest.chunks[earlier].digest, 0))
        assert kept_in_memory(readers, content) <= budget_bytes + 20 * 4 * KIB


async def test_slow_disk_bounds_what_waits_for_it(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = FilesOnlyMaster()
    contents = [
        master.add_file([chunk_of(seed, RANGED_CHUNK_BYTES_MIN)], node_id=seed + 1) for seed in range(80)
    ]
    disk_hangs = trio.Event()

    async def put_when_the_disk_answers(self: DiskChunkCache, runs: object) -> None:
        await disk_hangs.wait()

    monkeypatch.setattr(write_behind, "WAITING_BYTES_MAX", 4 * MIB)
    monkeypatch.setattr(DiskChunkCache, "put_blocks", put_when_the_disk_answers)
    async with open_readers(master.client, tmp_path) as readers, trio.open_nursery() as nursery:
        for content in contents:
            nursery.start_soon(readers.ranges.read, content, 1000, 256 * KIB)
        await wait_all_tasks_blocked()
        in_slots_bytes = RANGES_IN_FLIGHT_MAX * 5 * BLOCK_BYTES
        assert 4 * MIB < readers.chunks.counters.fetched_bytes <= 4 * MIB + in_slots_bytes
        disk_hangs.set()
    assert len(master.range_calls) == 80
