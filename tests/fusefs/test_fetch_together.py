"""Several small files in one call: what arrives whole is read from memory, and each of the others by itself."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cloudai_fusefs import write_behind
from cloudai_fusefs.chunk_flights import FETCHES_IN_FLIGHT_MAX
from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.file_content import FileContent
from cloudai_model.errors import ChunkDamaged, CloudAIError, MasterUnavailable, NotFound
from cloudai_model.limits import KIB, MIB
from fakes.files_only_master import FilesOnlyMaster, SpoilFiles
from support.content_readers import open_readers

COUNT = 6


@asynccontextmanager
async def reading(
    master: FilesOnlyMaster, cache_dir: Path, *, memory_bytes_max: int = 64 * MIB
) -> AsyncIterator[ChunkReader]:
    """A reader; leaving waits for its fetches and for what goes to the disk cache."""
    async with open_readers(master.client, cache_dir, memory_bytes_max=memory_bytes_max) as readers:
        yield readers.chunks


def data_of(node_id: int) -> bytes:
    return b"the bytes of file %d " % node_id * (1 + node_id)


def add_files(master: FilesOnlyMaster, count: int = COUNT) -> list[FileContent]:
    """Files of one chunk each, with node ids from 1."""
    return [master.add_file([data_of(node_id)], node_id=node_id) for node_id in range(1, count + 1)]


async def read_all(reader: ChunkReader, contents: list[FileContent]) -> list[bytes | type[CloudAIError]]:
    """What each reader gets, all reading at once."""
    answers: dict[int, bytes | type[CloudAIError]] = {}

    async def read(place: int, content: FileContent) -> None:
        try:
            answers[place] = bytes(await reader.read(content, 0, MIB))
        except CloudAIError as error:
            answers[place] = type(error)

    async with trio.open_nursery() as readers:
        for place, content in enumerate(contents):
            readers.start_soon(read, place, content)
    return [answers[place] for place in range(len(contents))]


def alone(master: FilesOnlyMaster) -> list[int]:
    """The node ids that were asked for by themselves, each call."""
    return sorted(node_id for _, node_id, _ in master.calls.elements())


ALL = [data_of(node_id) for node_id in range(1, COUNT + 1)]


async def test_files_come_in_one_call_and_are_read_from_memory(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        await wait_all_tasks_blocked()
        assert [bytes(reader.find(content, 0, MIB) or b"") for content in contents] == ALL
        assert await read_all(reader, contents) == ALL
    assert master.batch_calls == [[1, 2, 3, 4, 5, 6]]
    assert alone(master) == []
    counters = reader.counters
    assert (counters.fetched_batches, counters.fetched_chunks) == (1, COUNT)
    assert counters.fetched_bytes == sum(map(len, ALL))


async def test_reader_waits_for_the_call_that_brings_its_file(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    contents = add_files(master)
    answers: list[object] = []
    async with reading(master, tmp_path) as reader, trio.open_nursery() as nursery:
        reader.fetch_together(contents)

        async def read() -> None:
            answers.extend(await read_all(reader, contents * 2))

        nursery.start_soon(read)
        await master.wait_called(1)
        await wait_all_tasks_blocked()
        assert answers == []
        master.gate.set()
    assert answers == ALL * 2
    assert (len(master.batch_calls), alone(master)) == (1, [])


async def test_files_are_on_disk_afterwards(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
    nobody = FilesOnlyMaster()
    async with reading(nobody, tmp_path) as reader:
        reader.fetch_together(contents)
        assert await read_all(reader, contents) == ALL
    assert (nobody.batch_calls, alone(nobody)) == ([], [])
    assert reader.counters.disk_hits == COUNT


async def test_only_what_the_disk_lacks_is_asked_for(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents[1:3])
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        assert await read_all(reader, contents) == ALL
    assert master.batch_calls == [[2, 3], [1, 4, 5, 6]]


async def test_what_is_here_or_on_its_way_is_not_asked_for(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        await reader.read(contents[0], 0, 1)
        master.gate = trio.Event()
        reader.fetch_together(contents[2:4])
        reader.prefetch(contents[4], 0)
        await wait_all_tasks_blocked()
        reader.fetch_together(contents)
        reader.fetch_together(contents)
        reader.fetch_together([])
        await wait_all_tasks_blocked()
        master.gate.set()
        assert await read_all(reader, contents) == ALL
    assert master.batch_calls == [[3, 4], [2, 6]]
    assert alone(master) == [1, 5]


async def test_same_bytes_in_two_files_come_once(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    contents = [master.add_file([b"same"], node_id=node_id) for node_id in (1, 2, 3)]
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        assert await read_all(reader, contents) == [b"same"] * 3
    assert (master.batch_calls, alone(master)) == ([[1]], [])


def lose_the_second(answers: list[bytes | None]) -> list[bytes | None]:
    return [answers[0], None, *answers[2:]]


def change_a_byte(answers: list[bytes | None]) -> list[bytes | None]:
    return [answers[0], b"X" + (answers[1] or b"")[1:], *answers[2:]]


def cut_a_byte(answers: list[bytes | None]) -> list[bytes | None]:
    return [answers[0], (answers[1] or b"")[:-1], *answers[2:]]


def send_nothing_of_it(answers: list[bytes | None]) -> list[bytes | None]:
    return [answers[0], b"", *answers[2:]]


def send_the_first_twice(answers: list[bytes | None]) -> list[bytes | None]:
    return [answers[0], answers[0], *answers[2:]]


@pytest.mark.parametrize(
    "spoil", [lose_the_second, change_a_byte, cut_a_byte, send_nothing_of_it, send_the_first_twice]
)
async def test_file_that_does_not_arrive_whole_is_fetched_alone(
    clock: MockClock, tmp_path: Path, spoil: SpoilFiles
) -> None:
    master = FilesOnlyMaster()
    master.spoil_files = spoil
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        assert await read_all(reader, contents) == ALL
    assert alone(master) == [2]


async def test_answers_in_another_order_bring_nothing_wrong(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.spoil_files = lambda answers: answers[::-1]
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        assert await read_all(reader, contents) == ALL
    assert alone(master) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("count", [0, 1, 4])
async def test_what_a_full_answer_leaves_out_is_fetched_alone(
    clock: MockClock, tmp_path: Path, count: int
) -> None:
    master = FilesOnlyMaster()
    master.spoil_files = lambda answers: answers[:count]
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        assert await read_all(reader, contents) == ALL
    assert alone(master) == [*range(count + 1, COUNT + 1)]


async def test_answer_that_is_longer_than_the_question_is_read_as_far_as_it_goes(
    clock: MockClock, tmp_path: Path
) -> None:
    master = FilesOnlyMaster()
    master.spoil_files = lambda answers: [*answers, b"more", None]
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        assert await read_all(reader, contents) == ALL
    assert alone(master) == []


async def test_superseded_and_damaged_files_are_errors_of_their_own_readers(
    clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    master = FilesOnlyMaster()
    contents = add_files(master)
    superseded = contents[1]
    master.files[4] = [b"damaged at the master"]

    def lose_superseded(answers: list[bytes | None]) -> list[bytes | None]:
        master.refused_node_ids = {superseded.node_id}
        return [answers[0], None, *answers[2:]]

    master.spoil_files = lose_superseded
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        answers = await read_all(reader, contents)
    assert answers == [ALL[0], NotFound, ALL[2], ChunkDamaged, ALL[4], ALL[5]]
    assert alone(master) == [2, 4, 4]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_call_that_is_refused_leaves_each_file_to_itself(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.batch_errors = [NotFound()]
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        assert await read_all(reader, contents) == ALL
    assert alone(master) == [1, 2, 3, 4, 5, 6]


async def test_call_that_is_refused_brings_no_calls_for_files_that_nobody_waits_for(
    clock: MockClock, tmp_path: Path
) -> None:
    master = FilesOnlyMaster()
    master.batch_errors = [NotFound()]
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        assert await read_all(reader, contents[:1]) == ALL[:1]
        await trio.sleep(5)
    assert alone(master) == [1]


async def test_outage_is_waited_out_once_and_not_for_each_file(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    master.batch_errors = [MasterUnavailable("away")]
    contents = add_files(master)
    answers: list[object] = []

    async def read() -> None:
        answers.extend(await read_all(reader, contents))

    async with reading(master, tmp_path) as reader, trio.open_nursery() as nursery:
        reader.fetch_together(contents)
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        master.gate.set()
    assert answers == [MasterUnavailable] * len(contents)
    assert alone(master) == []


async def test_run_that_is_refused_costs_another_nothing(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    refused = [master.add_file([data_of(number)], node_id=number, task_id="run-1") for number in (1, 2)]
    allowed = [
        master.add_file([data_of(number)], node_id=number + 10, task_id="run-2") for number in (1, 2, 3)
    ]
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(refused)
        reader.fetch_together(allowed)
        await master.wait_called(2)
        master.refused_task_id = "run-1"
        master.gate.set()
        answers = await read_all(reader, refused)
        assert await read_all(reader, allowed) == ALL[:3]
    # The bytes may have come for the other run by then.
    assert all(answer is NotFound or answer in ALL[:2] for answer in answers)
    assert len(master.batch_calls) == 2


async def test_error_that_nobody_foresaw_leaves_each_file_to_itself(
    clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: DiskChunkCache, chunks: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(DiskChunkCache, "get_many", fail)
    master = FilesOnlyMaster()
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        assert await read_all(reader, contents) == ALL
    assert "can't start new thread" in caplog.text


async def test_cancelled_reader_leaves_the_call_to_the_others(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    contents = add_files(master)
    async with reading(master, tmp_path) as reader:
        reader.fetch_together(contents)
        with trio.move_on_after(1) as scope:
            await reader.read(contents[0], 0, 1)
        assert scope.cancelled_caught
        master.gate.set()
        assert await read_all(reader, contents) == ALL
    assert (len(master.batch_calls), alone(master)) == (1, [])


async def test_reader_outside_a_nursery_that_stops_is_told_so(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    contents = add_files(master)
    scope = trio.CancelScope()
    async with trio.open_nursery() as readers:

        async def meet_the_end(reader: ChunkReader, content: FileContent) -> None:
            with pytest.raises(MasterUnavailable, match="stopping"):
                await reader.read(content, 0, 6)

        with scope:
            async with reading(master, tmp_path) as reader:
                reader.fetch_together(contents)
                for content in contents:
                    readers.start_soon(meet_the_end, reader, content)
                await master.wait_called(1)
                await wait_all_tasks_blocked()
                scope.cancel()


@pytest.mark.parametrize("step_count", range(20))
async def test_mount_that_stops_at_any_step_leaves_nobody_waiting(
    clock: MockClock, tmp_path: Path, step_count: int
) -> None:
    master = FilesOnlyMaster()
    master.spoil_files = lose_the_second
    contents = add_files(master)
    with trio.fail_after(5):
        async with trio.open_nursery() as readers:
            with trio.CancelScope() as scope:
                async with reading(master, tmp_path) as reader:
                    reader.fetch_together(contents)
                    for content in contents:
                        readers.start_soon(read_all, reader, [content])
                    for _ in range(step_count):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
                    await trio.lowlevel.checkpoint()


async def test_calls_in_flight_are_bounded_with_the_other_fetches(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    master.gate = trio.Event()
    contents = add_files(master, 60)
    async with reading(master, tmp_path) as reader:
        for place in range(0, 60, 3):
            reader.fetch_together(contents[place : place + 3])
        await wait_all_tasks_blocked()
        assert master.in_flight == FETCHES_IN_FLIGHT_MAX
        master.gate.set()
        assert await read_all(reader, contents) == [data_of(node_id) for node_id in range(1, 61)]
    assert (len(master.batch_calls), alone(master)) == (20, [])


async def test_reader_of_a_longer_file_that_shares_bytes_is_not_forgotten(
    clock: MockClock, tmp_path: Path
) -> None:
    # Its first chunk is still on its way when the call ends without the second.
    master = FilesOnlyMaster()
    small = master.add_file([data_of(2)], node_id=2)
    longer = master.add_file([data_of(1), data_of(2)], node_id=3)
    master.batch_errors = [NotFound()]
    master.gate = trio.Event()
    async with reading(master, tmp_path) as reader, trio.open_nursery() as nursery:
        reader.fetch_together([small])
        await master.wait_called(1)
        answers: list[object] = []

        async def read() -> None:
            answers.extend(await read_all(reader, [longer]))

        nursery.start_soon(read)
        await master.wait_called(2)
        master.gate.set()
    assert answers == [data_of(1) + data_of(2)]


async def test_slow_disk_bounds_what_is_fetched(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_hangs = trio.Event()

    async def put_when_the_disk_answers(self: DiskChunkCache, chunks: object) -> None:
        await disk_hangs.wait()

    monkeypatch.setattr(write_behind, "WAITING_BYTES_MAX", len(data_of(1)))
    monkeypatch.setattr(DiskChunkCache, "put_many", put_when_the_disk_answers)
    master = FilesOnlyMaster()
    contents = add_files(master, 60)
    async with reading(master, tmp_path) as reader:
        for place in range(0, 60, 3):
            reader.fetch_together(contents[place : place + 3])
        await trio.sleep(write_behind.ROOM_SECONDS_MAX / 2)
        assert len(master.batch_calls) == FETCHES_IN_FLIGHT_MAX
        disk_hangs.set()
    assert (len(master.batch_calls), alone(master)) == (20, [])


async def test_without_memory_reads_are_right(clock: MockClock, tmp_path: Path) -> None:
    master = FilesOnlyMaster()
    contents = add_files(master)
    async with reading(master, tmp_path, memory_bytes_max=0) as reader:
        reader.fetch_together(contents)
        await trio.sleep(5)
        assert await read_all(reader, contents) == ALL
    assert alone(master) == []


PLANS = st.lists(st.sampled_from(["whole", "lost", "changed", "cut"]), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=PLANS, end=st.integers(0, 14), split=st.integers(0, 12), memory_kib=st.sampled_from([0, 1, 2, 64])
)
async def test_whatever_comes_of_an_answer_each_file_is_read_right(
    tmp_path: Path, plan: list[str], end: int, split: int, memory_kib: int
) -> None:
    def spoil(answers: list[bytes | None]) -> list[bytes | None]:
        made: list[bytes | None] = []
        for node_id, data in zip(master.batch_calls[-1], answers, strict=True):
            what = plan[node_id - 1]
            changed = {"lost": None, "changed": b"X" + (data or b"")[1:], "cut": (data or b"")[:-1]}
            made.append(changed.get(what, data))
        return made[:end]

    master = FilesOnlyMaster()
    master.spoil_files = spoil
    contents = add_files(master, len(plan))
    with (
        tempfile.TemporaryDirectory(dir=tmp_path, ignore_cleanup_errors=True) as cache_dir,
        trio.CancelScope() as scope,
    ):
        async with reading(master, Path(cache_dir), memory_bytes_max=memory_kib * KIB) as reader:
            reader.fetch_together(contents[:split])
            reader.fetch_together(contents[split:])
            answers = await read_all(reader, contents)
            assert reader.memory_bytes <= memory_kib * KIB
            scope.cancel()  # what is yet to be written is not waited for
    assert answers == [data_of(node_id) for node_id in range(1, len(plan) + 1)]
