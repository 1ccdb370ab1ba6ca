"""Bringing files into the disk cache: what is fetched, how often, and what is said of what cannot be had."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cloudai_fusefs.disk_cache import DISK_THREADS_MAX, DiskChunkCache
from cloudai_fusefs.mount_control import WarmupProgress, WarmupReport
from cloudai_fusefs.warmup import FETCHES_IN_FLIGHT_MAX, ITEMS_AT_ONCE
from cloudai_fusefs.wire_chunks import ChunkAnswer
from cloudai_model.errors import CloudAIError, MasterUnavailable, NoSpace, NotFound
from cloudai_model.limits import KIB, MIB, READ_FILES_MAX
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import (
    commit,
    commit_one,
    directory_commit,
    file_commit,
    manifest_commit,
    put,
    seal,
)

LARGE_CHUNKS = [random.Random(seed).randbytes(300 * KIB) for seed in range(3)]
LARGE = b"".join(LARGE_CHUNKS)


async def commit_large(
    client: FakeMasterClient, run: types.Run, path: bytes, chunks: Sequence[bytes] = tuple(LARGE_CHUNKS)
) -> types.Node:
    await put(client, run, *chunks)
    return await commit_one(client, run, manifest_commit(path, chunks))


async def commit_small(client: FakeMasterClient, run: types.Run, count: int, prefix: bytes = b"") -> None:
    await commit(
        client,
        run,
        *(file_commit(b"%s%04d" % (prefix, number), b"content %d" % number) for number in range(count)),
    )


async def warm_up(file_system: FileSystemHarness, *paths: str) -> WarmupReport:
    return await file_system.control.warmup(paths or [file_system.tree.path], lambda _: None)


async def warm_up_in_a_new_mount(client: FakeMasterClient, run: types.Run, directory: Path) -> WarmupReport:
    """The same, of a mount that ends with it; its disk cache stays in the directory."""
    async with open_file_system(client, run, directory) as file_system:
        return await warm_up(file_system)


def fetch_count(master: FakeMaster) -> int:
    return master.call_count["read_chunk"] + master.call_count["read_files"]


async def test_what_was_warmed_up_is_read_while_the_master_is_away(
    client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    await commit_large(client, run, b"model.bin")
    await commit(client, run, directory_commit(b"logs"), file_commit(b"logs/log", b"line\n"))
    await seal(client, run)
    async with open_file_system(client, run, tmp_path) as file_system:
        report = await warm_up(file_system)
        master.go_away()
        assert await file_system.read_file(b"model.bin") == LARGE
        assert await file_system.read_file(b"logs/log") == b"line\n"
    assert report == WarmupReport(
        files=2,
        size_bytes=len(LARGE) + 5,
        fetched_bytes=len(LARGE) + 5,
        skipped_files=0,
        failed_files=0,
        failed=[],
    )


async def test_tree_that_was_looked_into_while_its_run_was_open_is_kept_as_well(
    client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    await commit_large(client, run, b"model.bin")
    async with open_file_system(client, run, tmp_path) as file_system:
        await file_system.find(b"model.bin")
        await seal(client, run)
        with trio.fail_after(5):
            while not file_system.tree.is_sealed:
                await trio.sleep(0.01)
        await warm_up(file_system)
    async with open_file_system(client, run, tmp_path) as file_system:
        master.go_away()
        assert await file_system.read_file(b"model.bin") == LARGE


async def test_what_is_cached_is_not_fetched_again(
    client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    await commit_large(client, run, b"model.bin")
    await commit_small(client, run, 5)
    await warm_up_in_a_new_mount(client, run, tmp_path)
    fetched_count = fetch_count(master)
    report = await warm_up_in_a_new_mount(client, run, tmp_path)
    assert fetch_count(master) == fetched_count
    assert (report.files, report.fetched_bytes) == (6, 0)


async def test_what_is_missing_alone_is_fetched(
    client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    await commit_large(client, run, b"model.bin")
    async with open_file_system(client, run, tmp_path) as file_system:
        await warm_up(file_system)
        stored = [path for path in (tmp_path / "cache/chunks").rglob("*") if path.is_file()]
        stored[0].unlink()
        stored[1].write_bytes(b"cut short")
        report = await warm_up(file_system)
        assert report.fetched_bytes == 600 * KIB
        master.go_away()
        assert await file_system.read_file(b"model.bin") == LARGE
    assert master.call_count["read_chunk"] == 5


async def test_small_files_come_many_in_a_call(
    client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    await commit_small(client, run, READ_FILES_MAX + 10)
    async with open_file_system(client, run, tmp_path) as file_system:
        report = await warm_up(file_system)
    assert report.failed_files == 0
    assert (master.call_count["read_files"], master.call_count["read_chunk"]) == (2, 0)
    assert file_system.reader.counters.fetched_batches == 2


async def test_small_files_that_one_answer_does_not_hold_come_all_the_same(
    client: FakeMasterClient,
    master: FakeMaster,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await commit_small(client, run, 10)
    read_files = client.read_files

    async def read_some(task_id: str, files: Sequence[tuple[int, int]]) -> list[bytes | None]:
        return (await read_files(task_id, files))[:4]

    monkeypatch.setattr(client, "read_files", read_some)
    async with open_file_system(client, run, tmp_path) as file_system:
        report = await warm_up(file_system)
        master.go_away()
        assert await file_system.read_file(b"0009") == b"content 9"
    assert (report.fetched_bytes, master.call_count["read_files"]) == (90, 3)


async def test_small_file_that_does_not_come_with_the_others_comes_alone(
    client: FakeMasterClient,
    master: FakeMaster,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await commit_small(client, run, 3)
    read_files = client.read_files

    async def read_badly(task_id: str, files: Sequence[tuple[int, int]]) -> list[bytes | None]:
        first, _, third = await read_files(task_id, files)
        assert first is not None
        return [b"X" + first[1:], None, third]

    monkeypatch.setattr(client, "read_files", read_badly)
    report = await warm_up_in_a_new_mount(client, run, tmp_path)
    assert (report.fetched_bytes, report.failed_files) == (27, 0)
    assert master.call_count["read_chunk"] == 2


async def test_memory_is_left_to_readers(client: FakeMasterClient, run: types.Run, tmp_path: Path) -> None:
    await commit_large(client, run, b"model.bin")
    await commit_small(client, run, 20)
    async with open_file_system(client, run, tmp_path) as file_system:
        await warm_up(file_system)
        assert file_system.reader.memory_bytes == 0


async def test_chunk_of_two_files_is_fetched_and_counted_once(
    client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    await commit_large(client, run, b"first")
    await commit_large(client, run, b"second")
    report = await warm_up_in_a_new_mount(client, run, tmp_path)
    assert (report.files, report.size_bytes, master.call_count["read_chunk"]) == (2, len(LARGE), 3)


async def test_paths_are_files_directories_and_levels_above_runs(
    client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    await commit(
        client, run, directory_commit(b"d"), file_commit(b"d/one", b"1"), file_commit(b"d/two", b"22")
    )
    await commit(client, run, file_commit(b"three", b"333"))
    place = f"{run.user}/{run.task}/{run.name}"
    for paths, files in (
        ([f"{place}/d/two"], 1),
        ([f"{place}/d"], 2),
        ([f"{place}/d", f"{place}/d/one", f"{place}/three"], 3),
        ([f"{run.user}/{run.task}"], 3),
        ([""], 3),
    ):
        async with open_file_system(client, run, tmp_path) as file_system:
            assert (await warm_up(file_system, *paths)).files == files


async def test_path_that_is_not_there_is_named(file_system: FileSystemHarness) -> None:
    path = f"{file_system.tree.path}/no/such"
    with pytest.raises(NotFound) as caught:
        await warm_up(file_system, path)
    assert caught.value.fields == {"path": path}


async def test_more_than_the_cache_keeps_is_refused_and_nothing_is_fetched(
    client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    await commit_large(client, run, b"model.bin")
    async with open_file_system(client, run, tmp_path, cache_bytes_max=900 * KIB) as file_system:
        with pytest.raises(NoSpace, match="these are 1 files of 1 MiB, and the cache keeps at most 1 MiB of"):
            await warm_up(file_system)
    assert fetch_count(master) == 0


async def test_small_files_count_as_what_they_take_of_the_disk(
    client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    await commit_small(client, run, 20)
    async with open_file_system(client, run, tmp_path, cache_bytes_max=80 * KIB) as file_system:
        with pytest.raises(NoSpace):
            await warm_up(file_system)


async def test_what_is_warmed_up_outlives_what_was_cached_before(
    client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    await commit_large(client, run, b"old")
    new_chunks = [random.Random(seed).randbytes(300 * KIB) for seed in range(10, 13)]
    await commit_large(client, run, b"new", new_chunks)
    async with open_file_system(client, run, tmp_path, cache_bytes_max=1100 * KIB) as file_system:
        place = file_system.tree.path
        await warm_up(file_system, f"{place}/old")
        for path in (tmp_path / "cache/chunks").rglob("*"):
            os.utime(path, (1000, 1000))  # long before
        report = await warm_up(file_system, f"{place}/new")
        assert report.failed_files == 0
        master.go_away()
        assert await file_system.read_file(b"new") == b"".join(new_chunks)


async def test_damaged_file_is_named_and_the_others_come(
    client: FakeMasterClient,
    master: FakeMaster,
    run: types.Run,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await commit_large(client, run, b"damaged", [LARGE_CHUNKS[0], LARGE_CHUNKS[1]])
    master.damage_chunks()
    await commit_large(client, run, b"intact", [LARGE_CHUNKS[2]])
    async with open_file_system(client, run, tmp_path) as file_system:
        report = await warm_up(file_system)
        master.go_away()
        assert await file_system.read_file(b"intact") == LARGE_CHUNKS[2]
    (failed,) = report.failed
    assert failed.path == f"{run.user}/{run.task}/{run.name}/damaged"
    assert failed.reason.startswith("a stored chunk is damaged")
    assert (report.files, report.failed_files, report.fetched_bytes) == (2, 1, 300 * KIB)
    assert "is damaged at the master" in caplog.text


async def test_master_that_goes_away_ends_it_within_timeo_and_the_next_goes_on(
    clock: MockClock,
    client: FakeMasterClient,
    master: FakeMaster,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunks = [random.Random(seed).randbytes(300 * KIB) for seed in range(20)]
    await commit_large(client, run, b"model.bin", chunks)
    read_chunk = client.read_chunk

    async def read_until_it_goes(*args: int | str, **kwargs: bool) -> ChunkAnswer:
        if master.call_count["read_chunk"] >= 5:
            master.go_away()
        return await read_chunk(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "read_chunk", read_until_it_goes)
    async with open_file_system(client, run, tmp_path, timeo_seconds=10) as file_system:
        with trio.fail_after(30):
            report = await warm_up(file_system)
        (failed,) = report.failed
        assert failed.reason.startswith("the master did not answer")
        assert 0 < report.fetched_bytes < 20 * 300 * KIB
        monkeypatch.setattr(client, "read_chunk", read_chunk)
        master.come_back()
        again = await warm_up(file_system)
    assert again.failed_files == 0
    assert report.fetched_bytes + again.fetched_bytes == 20 * 300 * KIB


async def test_master_that_is_away_from_the_beginning_is_an_error(
    clock: MockClock, client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    await commit_large(client, run, b"model.bin")
    async with open_file_system(client, run, tmp_path, timeo_seconds=0.1) as file_system:
        await file_system.find(b"model.bin")
        master.go_away()
        with pytest.raises(MasterUnavailable):
            await warm_up(file_system)


async def test_file_that_changes_meanwhile_is_fetched_as_it_is_then(
    client: FakeMasterClient,
    master: FakeMaster,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = await commit_large(client, run, b"log", [b"old" * 100_000])
    new_chunks = [b"new" * 100_000, b"end"]
    read_chunk = client.read_chunk
    async with open_file_system(client, run, tmp_path) as file_system:

        async def read_while_it_changes(*args: int | str, **kwargs: bool) -> ChunkAnswer:
            monkeypatch.setattr(client, "read_chunk", read_chunk)
            await put(client, run, *new_chunks)
            await commit_one(client, run, manifest_commit(b"log", new_chunks, node=node.node_id, place=False))
            while file_system.tree.nodes[node.node_id].generation == node.generation:
                await trio.sleep(0.01)
            return await read_chunk(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(client, "read_chunk", read_while_it_changes)
        with trio.fail_after(5):
            report = await warm_up(file_system)
        assert (report.failed_files, report.skipped_files) == (0, 0)
        master.go_away()
        assert await file_system.read_file(b"log") == b"".join(new_chunks)


async def test_file_that_goes_meanwhile_is_no_failure(
    client: FakeMasterClient,
    master: FakeMaster,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await commit_large(client, run, b"model.bin")
    read_chunk = client.read_chunk
    async with open_file_system(client, run, tmp_path) as file_system:

        async def remove_first(*args: int | str, **kwargs: bool) -> ChunkAnswer:
            monkeypatch.setattr(client, "read_chunk", read_chunk)
            await file_system.unlink(b"model.bin")
            raise NotFound

        monkeypatch.setattr(client, "read_chunk", remove_first)
        report = await warm_up(file_system)
    assert (report.failed_files, report.skipped_files) == (0, 0)


async def test_file_that_is_being_written_here_is_left_out_and_counted(
    client: FakeMasterClient, file_system: FileSystemHarness
) -> None:
    handle = await file_system.create(b"growing")
    await file_system.write(handle, 0, b"x" * 1000)
    report = await warm_up(file_system)
    assert (report.files, report.skipped_files, report.failed_files) == (1, 1, 0)
    file_system.close_handle(handle)


async def test_disk_that_keeps_nothing_is_reported(
    client: FakeMasterClient, run: types.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(self: DiskChunkCache, digest: bytes, data: bytes, block_digests: bytes) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(DiskChunkCache, "put", lose)
    await commit_large(client, run, b"model.bin")
    report = await warm_up_in_a_new_mount(client, run, tmp_path)
    assert [file.reason for file in report.failed] == [
        "the disk cache did not keep it; the mount's log may say why"
    ]


async def test_few_are_in_flight_and_readers_pass_them(
    client: FakeMasterClient,
    master: FakeMaster,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await commit_large(
        client, run, b"warmed", [random.Random(seed).randbytes(300 * KIB) for seed in range(10)]
    )
    wanted = await commit_large(client, run, b"wanted", [b"wanted" * 100_000])
    gate = trio.Event()
    waiting = 0
    read_chunk = client.read_chunk

    async def read_at_the_gate(task_id: str, node_id: int, *args: int, **kwargs: bool) -> ChunkAnswer:
        nonlocal waiting
        if node_id != wanted.node_id:
            waiting += 1
            await gate.wait()
        return await read_chunk(task_id, node_id, *args, **kwargs)

    monkeypatch.setattr(client, "read_chunk", read_at_the_gate)
    async with open_file_system(client, run, tmp_path) as file_system, trio.open_nursery() as warming:
        place = file_system.tree.path
        # Two at once: the bound is the mount's.
        warming.start_soon(warm_up, file_system, f"{place}/warmed")
        warming.start_soon(warm_up, file_system, f"{place}/warmed")
        with trio.fail_after(5):
            while waiting < FETCHES_IN_FLIGHT_MAX:
                await trio.sleep(0.01)
            await wait_all_tasks_blocked()
            assert await file_system.read_file(b"wanted") == b"wanted" * 100_000
        assert waiting == FETCHES_IN_FLIGHT_MAX < DISK_THREADS_MAX
        gate.set()


async def test_cancelled_warmup_leaves_what_has_come_and_the_next_goes_on(
    client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    chunks = [random.Random(seed).randbytes(300 * KIB) for seed in range(20)]
    await commit_large(client, run, b"model.bin", chunks)
    async with open_file_system(client, run, tmp_path) as file_system:
        with trio.CancelScope() as scope:

            def stop_half_way(progress: WarmupProgress) -> None:
                if progress.done_bytes >= progress.size_bytes // 2:
                    scope.cancel()

            await file_system.control.warmup([file_system.tree.path], stop_half_way)
        assert scope.cancelled_caught
        asked_count = master.call_count["read_chunk"]
        assert asked_count < 20
        report = await warm_up(file_system)
    assert report.failed_files == 0
    assert report.fetched_bytes <= (20 - 10) * 300 * KIB
    # At most those that were on their way are asked for twice.
    assert master.call_count["read_chunk"] <= 20 + FETCHES_IN_FLIGHT_MAX


async def test_progress_grows_to_the_whole(client: FakeMasterClient, run: types.Run, tmp_path: Path) -> None:
    await commit_large(client, run, b"model.bin")
    await commit_small(client, run, 5)
    told: list[WarmupProgress] = []
    async with open_file_system(client, run, tmp_path) as file_system:
        await warm_up(file_system, f"{file_system.tree.path}/0000")
        await file_system.control.warmup([file_system.tree.path], told.append)
    whole = len(LARGE) + 45
    assert told[0] == WarmupProgress(files=6, size_bytes=whole, done_files=1, done_bytes=9)
    assert told[-1] == WarmupProgress(
        files=6, size_bytes=whole, done_files=6, done_bytes=whole, fetched_bytes=whole - 9
    )
    assert [progress.done_bytes for progress in told] == sorted(progress.done_bytes for progress in told)


async def test_more_files_than_one_turn_are_all_brought(
    client: FakeMasterClient, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    for part in range(3):
        await commit_small(client, run, ITEMS_AT_ONCE // 2, prefix=b"%d-" % part)
    report = await warm_up_in_a_new_mount(client, run, tmp_path)
    assert (report.files, report.failed_files) == (ITEMS_AT_ONCE // 2 * 3, 0)


async def test_error_of_a_manifest_is_the_files_alone(
    client: FakeMasterClient, run: types.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = await commit_large(client, run, b"refused")
    await commit_small(client, run, 1)
    get_manifest = client.get_manifest

    async def refuse(task_id: str, node_id: int, generation: int) -> list[types.Chunk]:
        if node_id == refused.node_id:
            raise CloudAIError("not this one")
        return await get_manifest(task_id, node_id, generation)

    monkeypatch.setattr(client, "get_manifest", refuse)
    report = await warm_up_in_a_new_mount(client, run, tmp_path)
    assert [(file.path[-7:], file.reason) for file in report.failed] == [
        ("refused", "the operation failed: not this one")
    ]
    assert report.fetched_bytes == 9


def test_warmups_leave_a_disk_thread_and_stay_small() -> None:
    assert 0 < FETCHES_IN_FLIGHT_MAX < DISK_THREADS_MAX
    assert FETCHES_IN_FLIGHT_MAX * 4 * MIB <= 16 * MIB
