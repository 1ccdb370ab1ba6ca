"""What waits for the disk cache: gathered, bounded, and written once, whatever the disk does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cloudai_fusefs.background import RESTART_SECONDS
from cloudai_fusefs.block_file import BlockSpan
from cloudai_fusefs.chunk_memory import Data
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.write_behind import (
    GATHER_SECONDS_MAX,
    REST_SECONDS,
    ROOM_SECONDS_MAX,
    WAITING_BYTES_MAX,
    WriteBehind,
)
from cloudai_model.chunks import digest_of
from cloudai_model.limits import CHUNK_BYTES_MAX, MIB

FULL = bytes(CHUNK_BYTES_MAX)
COUNT_OVER = WAITING_BYTES_MAX // CHUNK_BYTES_MAX + 1
"""So many full chunks are more than may wait."""


class DiskOnPaper:
    """Notes what a DiskChunkCache is told, and when; holds it back as long as the gate is shut."""

    def __init__(self) -> None:
        self.turns: list[tuple[float, str, list[bytes]]] = []
        self.gate = trio.Event()
        self.gate.set()
        self.failures: list[Exception] = []  # raised one per turn
        self.is_busy = False

    async def put_many(self, chunks: Mapping[bytes, Data]) -> None:
        await self._take("chunks", list(chunks))

    async def put_blocks(self, runs: Sequence[BlockSpan]) -> None:
        await self._take("blocks", [run.digest for run in runs])

    @property
    def written(self) -> list[bytes]:
        return [digest for _, _, digests in self.turns for digest in digests]

    async def _take(self, kind: str, digests: list[bytes]) -> None:
        assert not self.is_busy, "two turns at once"
        self.is_busy = True
        try:
            self.turns.append((trio.current_time(), kind, digests))
            await self.gate.wait()
            await trio.lowlevel.checkpoint()
            if self.failures:
                raise self.failures.pop(0)
        finally:
            self.is_busy = False


@asynccontextmanager
async def writing(disk: DiskOnPaper) -> AsyncIterator[WriteBehind]:
    """Leaving waits until all is written."""
    async with trio.open_nursery() as nursery:
        yield WriteBehind(cast(DiskChunkCache, disk), nursery)


def run_of(number: int, length_bytes: int = 10) -> BlockSpan:
    return BlockSpan(b"%d" % number, length_bytes, bytes(32), 0, bytes(length_bytes))


async def test_many_small_chunks_are_one_turn_of_the_disk(clock: MockClock) -> None:
    disk = DiskOnPaper()
    began = trio.current_time()
    async with writing(disk) as behind:
        for number in range(100):
            behind.add_chunk(b"%d" % number, b"data")
    (turn,) = disk.turns
    assert turn == (began + REST_SECONDS, "chunks", [b"%d" % number for number in range(100)])


async def test_disk_waits_for_readers_to_rest(clock: MockClock) -> None:
    disk = DiskOnPaper()
    async with writing(disk) as behind:
        for number in range(5):
            behind.add_chunk(b"%d" % number, b"data")
            await trio.sleep(REST_SECONDS / 2)
            assert disk.turns == []
    assert len(disk.turns) == 1


async def test_readers_that_never_rest_keep_the_disk_waiting_for_seconds_only(clock: MockClock) -> None:
    disk = DiskOnPaper()
    began = trio.current_time()
    async with writing(disk) as behind:
        number = 0
        while not disk.turns:
            behind.add_blocks(run_of(number))
            number += 1
            await trio.sleep(REST_SECONDS / 2)
            assert trio.current_time() <= began + GATHER_SECONDS_MAX + REST_SECONDS
    assert sum(len(digests) for _, _, digests in disk.turns) == number


async def test_one_more_than_may_wait_ends_the_rest(clock: MockClock) -> None:
    disk = DiskOnPaper()
    async with writing(disk) as behind:
        for number in range(COUNT_OVER - 1):
            behind.add_chunk(b"%d" % number, FULL)
        await trio.sleep(REST_SECONDS / 2)
        assert disk.turns == []
        behind.add_chunk(b"one more", FULL)
        at_seconds = trio.current_time()
    assert [at for at, _, _ in disk.turns] == [at_seconds]


async def test_pieces_that_come_do_not_wake_who_waits_for_a_rest(clock: MockClock) -> None:
    disk = DiskOnPaper()
    steps = StepCounter()
    async with writing(disk) as behind:
        behind.add_chunk(b"first", b"data")
        await trio.sleep(REST_SECONDS / 10)
        trio.lowlevel.add_instrument(steps)
        for number in range(50):
            behind.add_chunk(b"%d" % number, b"data")
            await trio.sleep(REST_SECONDS / 100)
        trio.lowlevel.remove_instrument(steps)
    assert steps.count < 10


class StepCounter(trio.abc.Instrument):
    """Of the tasks that keep running in the background."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += "keep_running" in task.name


async def test_more_than_may_wait_is_written_at_once(clock: MockClock) -> None:
    disk = DiskOnPaper()
    began = trio.current_time()
    async with writing(disk) as behind:
        for number in range(COUNT_OVER):
            behind.add_chunk(b"%d" % number, FULL)
    assert [at for at, _, _ in disk.turns] == [began]


async def test_who_brings_more_than_may_wait_waits_for_the_disk(clock: MockClock) -> None:
    disk = DiskOnPaper()
    disk.gate = trio.Event()
    async with writing(disk) as behind:
        await behind.wait_for_room()
        for number in range(COUNT_OVER):
            behind.add_chunk(b"%d" % number, FULL)
        with trio.move_on_after(ROOM_SECONDS_MAX / 2) as scope:
            await behind.wait_for_room()
        assert scope.cancelled_caught
        before_seconds = trio.current_time()
        await behind.wait_for_room()  # the disk hangs, and readers go on
        assert trio.current_time() - before_seconds == pytest.approx(ROOM_SECONDS_MAX)
        assert not behind.has_room
        disk.gate.set()
        with trio.fail_after(1):
            await behind.wait_for_room()


async def test_all_who_wait_for_room_get_it(clock: MockClock) -> None:
    disk = DiskOnPaper()
    disk.gate = trio.Event()
    async with writing(disk) as behind, trio.open_nursery() as waiters:
        for number in range(COUNT_OVER):
            behind.add_chunk(b"%d" % number, FULL)
        for _ in range(5):
            waiters.start_soon(behind.wait_for_room)
        await wait_all_tasks_blocked()
        disk.gate.set()


async def test_waiter_for_room_that_is_cancelled_takes_nothing_with_it(clock: MockClock) -> None:
    disk = DiskOnPaper()
    disk.gate = trio.Event()
    async with writing(disk) as behind:
        for number in range(COUNT_OVER):
            behind.add_chunk(b"%d" % number, FULL)
        async with trio.open_nursery() as waiters:
            waiters.start_soon(behind.wait_for_room)
            await wait_all_tasks_blocked()
            waiters.cancel_scope.cancel()
        disk.gate.set()
        await behind.wait_for_room()
    assert len(disk.written) == COUNT_OVER


async def test_chunk_that_comes_twice_is_written_once_and_counted_once(clock: MockClock) -> None:
    disk = DiskOnPaper()
    disk.gate = trio.Event()
    async with writing(disk) as behind:
        for _ in range(COUNT_OVER):
            behind.add_chunk(b"same", FULL)
        with trio.fail_after(1):
            await behind.wait_for_room()
        disk.gate.set()
    assert disk.written == [b"same"]


async def test_whole_chunks_come_before_blocks_of_the_same_turn(clock: MockClock) -> None:
    disk = DiskOnPaper()
    async with writing(disk) as behind:
        behind.add_blocks(run_of(1))
        behind.add_chunk(b"1", bytes(10))
    assert [kind for _, kind, _ in disk.turns] == ["chunks", "blocks"]


async def test_what_comes_during_a_turn_is_written_in_the_next(clock: MockClock) -> None:
    disk = DiskOnPaper()
    disk.gate = trio.Event()
    async with writing(disk) as behind:
        behind.add_chunk(b"1", b"data")
        await trio.sleep(REST_SECONDS * 2)
        behind.add_chunk(b"2", b"data")
        behind.add_blocks(run_of(3))
        await trio.sleep(60)
        assert disk.written == [b"1"]
        disk.gate.set()
    assert disk.written == [b"1", b"2", b"3"]


async def test_idle_queue_has_no_task(clock: MockClock) -> None:
    disk = DiskOnPaper()
    async with trio.open_nursery() as nursery:
        behind = WriteBehind(cast(DiskChunkCache, disk), nursery)
        assert not nursery.child_tasks
        for number in range(2):
            behind.add_chunk(b"%d" % number, b"data")
            assert len(nursery.child_tasks) == 1
            await trio.sleep(REST_SECONDS * 2)
            assert not nursery.child_tasks
    assert len(disk.turns) == 2


async def test_flush_waits_for_the_disk_and_not_for_readers_to_rest(clock: MockClock) -> None:
    disk = DiskOnPaper()
    began = trio.current_time()
    async with writing(disk) as behind:
        behind.add_chunk(b"1", b"data")
        behind.add_blocks(run_of(2))
        await wait_all_tasks_blocked()  # it waits for them
        await behind.flush()
        assert disk.written == [b"1", b"2"]
        behind.add_chunk(b"3", b"data")
        await behind.flush()
        assert disk.written == [b"1", b"2", b"3"]
        await behind.flush()
    assert trio.current_time() == began


async def test_flush_of_a_disk_that_hangs_can_be_cancelled(clock: MockClock) -> None:
    disk = DiskOnPaper()
    disk.gate = trio.Event()
    async with writing(disk) as behind:
        behind.add_chunk(b"1", b"data")
        with trio.move_on_after(1) as scope:
            await behind.flush()
        assert scope.cancelled_caught
        disk.gate.set()
    assert disk.written == [b"1"]


async def test_turn_that_fails_unexpectedly_keeps_nobody_waiting(
    clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    disk = DiskOnPaper()
    disk.failures = [RuntimeError("can't start new thread")]
    async with writing(disk) as behind:
        for number in range(COUNT_OVER):
            behind.add_chunk(b"%d" % number, FULL)
        with trio.fail_after(RESTART_SECONDS * 2):
            await behind.wait_for_room()
        behind.add_chunk(b"later", b"data")
        # One task at a time, whether it rests from its failure or works.
        await trio.sleep(RESTART_SECONDS * 2)
    assert disk.written[-1] == b"later"
    assert "writing to the disk cache failed unexpectedly" in caplog.text


async def test_mount_that_stops_takes_its_queue_along(clock: MockClock) -> None:
    disk = DiskOnPaper()
    disk.gate = trio.Event()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            behind = WriteBehind(cast(DiskChunkCache, disk), nursery)
            behind.add_chunk(b"1", FULL)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("chunk"), st.integers(1, CHUNK_BYTES_MAX)),
        st.tuples(st.just("blocks"), st.integers(1, MIB)),
        st.tuples(st.just("many"), st.integers(1, COUNT_OVER)),
        st.tuples(st.just("wait"), st.just(0)),
        st.tuples(st.just("sleep"), st.integers(0, 6)),
        st.tuples(st.just("disk"), st.integers(0, 1)),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_everything_is_written_once_in_its_order_and_what_waits_is_bounded(
    steps: list[tuple[str, int]],
) -> None:
    async def play() -> None:
        disk = DiskOnPaper()
        chunks: list[bytes] = []
        runs: list[bytes] = []
        view = memoryview(FULL)
        async with writing(disk) as behind:
            for number, (what, amount) in enumerate(steps):
                digest = digest_of(b"%d" % number)
                if what == "chunk":
                    behind.add_chunk(digest, view[:amount])
                    chunks.append(digest)
                elif what == "blocks":
                    behind.add_blocks(BlockSpan(digest, amount, bytes(32), 0, view[:amount]))
                    runs.append(digest)
                elif what == "many":
                    for place in range(amount):
                        behind.add_chunk(digest + bytes([place]), view)
                        chunks.append(digest + bytes([place]))
                elif what == "wait" and disk.gate.is_set():
                    await behind.wait_for_room()
                elif what == "sleep":
                    await trio.sleep(amount * REST_SECONDS / 3)
                elif amount:
                    disk.gate.set()
                elif disk.gate.is_set():
                    disk.gate = trio.Event()
            disk.gate.set()
            # However much came: there is room again once the disk has caught up.
            await behind.wait_for_room()
        assert [digest for _, kind, some in disk.turns if kind == "chunks" for digest in some] == chunks
        assert [digest for _, kind, some in disk.turns if kind == "blocks" for digest in some] == runs

    trio.run(play, clock=MockClock(autojump_threshold=0))
