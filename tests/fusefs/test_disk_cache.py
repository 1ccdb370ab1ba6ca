"""The chunk cache on a real disk: verified reads, limits, neighbours, failures."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs import cache_sweep, chunk_files, patient_disk
from cloudai_fusefs.block_file import BlockSpan, block_count, present_blocks
from cloudai_fusefs.cache_file import scope_name
from cloudai_fusefs.chunk_files import ChunkFiles
from cloudai_fusefs.disk_cache import ABSENCE_SECONDS_MAX, DiskChunkCache
from cloudai_model.chunks import Chunk, block_digests_of, digest_of
from cloudai_model.limits import BLOCK_BYTES
from support.direct_writes import note_direct_writes

ROOMY = 1 << 30
SCOPE = "master.example:7443/user-123"
BLOCKS = f".{scope_name(SCOPE)}.blocks"
BLOCK = 4096

RANGED = b"".join(b"%08d" % place for place in range(10 * BLOCK_BYTES // 8)) + b"short block"
"""A chunk of eleven blocks."""


def chunk_of(number: int) -> tuple[bytes, bytes]:
    """(digest, data) of one block."""
    data = number.to_bytes(4, "big") * (BLOCK // 4)
    return digest_of(data), data


def path_of(cache_dir: Path, digest: bytes) -> Path:
    return cache_dir / "chunks" / digest.hex()[:2] / digest.hex()


def files_of(cache_dir: Path) -> list[Path]:
    return sorted(path for path in (cache_dir / "chunks").rglob("*") if path.is_file())


def make_cache(cache_dir: Path, nursery: trio.Nursery, *, bytes_max: int = ROOMY) -> DiskChunkCache:
    return DiskChunkCache(cache_dir, scope=SCOPE, bytes_max=bytes_max, nursery=nursery, free_bytes_min=0)


async def fill_cache(cache_dir: Path, count: int) -> list[bytes]:
    """Chunks 0..count-1, each last used a day before the next one. Their digests, oldest first."""
    digests = []
    async with trio.open_nursery() as nursery:
        cache = make_cache(cache_dir, nursery)
        for number in range(count):
            digest, data = chunk_of(number)
            await cache.put(digest, data)
            used_at = time.time() - 86400 * (count - number)
            os.utime(path_of(cache_dir, digest), (used_at, used_at))
            digests.append(digest)
    return digests


async def test_chunk_that_was_put_is_got(tmp_path: Path, nursery: trio.Nursery) -> None:
    digest, data = chunk_of(1)
    cache = make_cache(tmp_path, nursery)
    await cache.put(digest, memoryview(data))
    assert await cache.get(digest, len(data)) == data


async def test_whole_chunk_is_written_past_the_page_cache(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_direct = note_direct_writes(monkeypatch)

    await make_cache(tmp_path, nursery).put(digest_of(RANGED), RANGED)

    assert any(is_direct)  # but for the digests of its blocks


async def test_chunk_outlives_the_process_and_is_seen_by_a_neighbour(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    digest, data = chunk_of(1)
    await make_cache(tmp_path, nursery).put(digest, data)
    assert await make_cache(tmp_path, nursery).get(digest, len(data)) == data


async def test_chunk_that_is_not_cached_is_none(tmp_path: Path, nursery: trio.Nursery) -> None:
    assert await make_cache(tmp_path, nursery).get(chunk_of(1)[0], BLOCK) is None


async def test_files_and_directories_are_the_owners_alone(tmp_path: Path, nursery: trio.Nursery) -> None:
    digest, data = chunk_of(1)
    cache_dir = tmp_path / "cache"
    await make_cache(cache_dir, nursery).put(digest, data)
    path = path_of(cache_dir, digest)
    modes = [place.stat().st_mode & 0o777 for place in (path, path.parent, path.parent.parent, cache_dir)]
    assert modes == [0o600, 0o700, 0o700, 0o700]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: b"",
    ],
    ids=["short", "long", "changed", "empty"],
)
async def test_damaged_file_is_dropped_and_logged_without_its_bytes(
    tmp_path: Path,
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    digest, data = digest_of(b"secret content"), b"secret content"
    cache = make_cache(tmp_path, nursery)
    await cache.put(digest, data)
    path_of(tmp_path, digest).write_bytes(damage(data))

    assert await cache.get(digest, len(data)) is None

    assert files_of(tmp_path) == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert digest.hex() in caplog.text
    assert "secret" not in caplog.text


async def test_least_recently_used_chunks_go_down_to_nine_tenths(tmp_path: Path) -> None:
    digests = await fill_cache(tmp_path, 20)
    async with trio.open_nursery() as nursery:
        make_cache(tmp_path, nursery, bytes_max=10 * BLOCK)
    assert files_of(tmp_path) == sorted(path_of(tmp_path, digest) for digest in digests[-9:])


async def test_put_over_the_limit_evicts(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        cache = make_cache(tmp_path, nursery, bytes_max=10 * BLOCK)
        for number in range(30):
            await cache.put(*chunk_of(number))
    async with trio.open_nursery() as nursery:
        make_cache(tmp_path, nursery, bytes_max=10 * BLOCK)
    assert len(files_of(tmp_path)) in (9, 10)


async def test_chunks_of_one_second_go_only_as_far_as_needed(tmp_path: Path) -> None:
    digests = await fill_cache(tmp_path, 20)
    for digest in digests:
        os.utime(path_of(tmp_path, digest), (1_000_000_000, 1_000_000_000))
    async with trio.open_nursery() as nursery:
        make_cache(tmp_path, nursery, bytes_max=10 * BLOCK)
    assert len(files_of(tmp_path)) == 9


async def test_read_makes_a_chunk_recently_used(tmp_path: Path) -> None:
    digests = await fill_cache(tmp_path, 20)
    async with trio.open_nursery() as nursery:
        assert await make_cache(tmp_path, nursery).get(digests[0], BLOCK) is not None
    async with trio.open_nursery() as nursery:
        make_cache(tmp_path, nursery, bytes_max=10 * BLOCK)
    assert path_of(tmp_path, digests[0]).exists()


async def test_what_a_killed_process_was_writing_is_removed_after_an_hour(tmp_path: Path) -> None:
    await fill_cache(tmp_path, 1)
    shard = files_of(tmp_path)[0].parent
    old, young = shard / ".incoming-0011", shard / ".incoming-0022"
    for path in (old, young):
        path.write_bytes(b"part")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    async with trio.open_nursery() as nursery:
        make_cache(tmp_path, nursery)
    assert (old.exists(), young.exists()) == (False, True)


async def test_nothing_is_cached_when_the_disk_has_too_little_free(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    digest, data = chunk_of(1)
    cache = DiskChunkCache(tmp_path, scope=SCOPE, bytes_max=ROOMY, nursery=nursery, free_bytes_min=1 << 60)
    await cache.put(digest, data)
    assert await cache.get(digest, BLOCK) is None


async def test_cached_chunks_yield_when_the_disk_has_too_little_free(tmp_path: Path) -> None:
    await fill_cache(tmp_path, 5)
    async with trio.open_nursery() as nursery:
        DiskChunkCache(tmp_path, scope=SCOPE, bytes_max=ROOMY, nursery=nursery, free_bytes_min=1 << 60)
    assert files_of(tmp_path) == []


async def test_chunk_over_the_limit_is_not_cached(tmp_path: Path, nursery: trio.Nursery) -> None:
    await make_cache(tmp_path, nursery, bytes_max=BLOCK - 1).put(*chunk_of(1))
    assert not (tmp_path / "chunks").exists()


async def test_full_disk_is_logged_once_and_leaves_no_temporary_file(
    tmp_path: Path,
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse_write(handle: int, data: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = make_cache(tmp_path, nursery)
    monkeypatch.setattr(os, "pwrite", refuse_write)
    for number in range(3):
        await cache.put(*chunk_of(number))

    assert files_of(tmp_path) == []
    assert len(caplog.records) == 1
    assert "is full: nothing more is cached until there is room" in caplog.text


async def test_cache_directory_that_is_a_file_costs_the_reader_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "chunks").write_text("in the way")
    async with trio.open_nursery() as nursery:
        cache = make_cache(tmp_path, nursery)
        await cache.put(*chunk_of(1))
        assert await cache.get(chunk_of(1)[0], BLOCK) is None
    assert len(caplog.records) == 1


async def test_files_that_vanish_under_a_sweep_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill_cache(tmp_path, 20)
    walk = cache_sweep._walk_chunks

    def walk_then_lose_all(chunks_dir: Path) -> Iterator[tuple[Path, os.stat_result]]:
        found = list(walk(chunks_dir))
        for path, _ in found:
            path.unlink(missing_ok=True)
        return iter(found)

    monkeypatch.setattr(cache_sweep, "_walk_chunks", walk_then_lose_all)
    async with trio.open_nursery() as nursery:
        make_cache(tmp_path, nursery, bytes_max=10 * BLOCK)
    assert files_of(tmp_path) == []


async def test_cancelled_sweep_ends_with_its_nursery(tmp_path: Path) -> None:
    digests = await fill_cache(tmp_path, 20)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            make_cache(tmp_path, nursery, bytes_max=10 * BLOCK)
            nursery.cancel_scope.cancel()
    assert len(files_of(tmp_path)) <= len(digests)


async def test_put_that_is_cancelled_leaves_a_whole_file_or_none(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    digest, data = chunk_of(1)
    cache = make_cache(tmp_path, nursery)
    with trio.CancelScope() as scope:
        scope.cancel()
        await cache.put(digest, data)
    assert scope.cancelled_caught
    assert await cache.get(digest, BLOCK) in (None, data)
    assert list(tmp_path.rglob(".incoming-*")) == []


WRITE_FOR_EVER = """
import sys
from itertools import count
from pathlib import Path
import trio
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_model.chunks import digest_of

async def main():
    async with trio.open_nursery() as nursery:
        cache_dir, scope = sys.argv[1:]
        cache = DiskChunkCache(
            Path(cache_dir), scope=scope, bytes_max=1 << 26, nursery=nursery, free_bytes_min=0
        )
        for number in count():
            data = number.to_bytes(4, "big") * 50_000
            await cache.put(digest_of(data), data)
            if number == 20:
                print("twenty", flush=True)

trio.run(main)
"""


async def test_killed_writer_leaves_whole_chunks_only(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), SCOPE], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"twenty\n"
        writer.kill()
    chunks = [path for path in files_of(tmp_path) if not path.name.startswith(".incoming-")]
    cache = make_cache(tmp_path, nursery)
    assert len(chunks) >= 20
    for path in chunks:
        assert await cache.get(bytes.fromhex(path.name), 200_000) is not None
    assert not caplog.records


# Several chunks in one turn of a thread.


async def test_chunks_that_were_put_together_are_got_together(tmp_path: Path, nursery: trio.Nursery) -> None:
    chunks = dict(chunk_of(number) for number in range(20))
    absent, _ = chunk_of(99)
    cache = make_cache(tmp_path, nursery)
    await cache.room_bytes()  # what is written during the first sweep may be counted twice
    await cache.put_many(chunks)
    assert await cache.get_many([Chunk(BLOCK, digest) for digest in [*chunks, absent]]) == chunks
    assert cache.stored_bytes == 20 * BLOCK


async def test_damaged_chunk_among_others_costs_itself(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    chunks = dict(chunk_of(number) for number in range(3))
    first, second, third = chunks
    cache = make_cache(tmp_path, nursery)
    await cache.put_many(chunks)
    path_of(tmp_path, second).write_bytes(bytes(BLOCK))
    found = await cache.get_many([Chunk(BLOCK, digest) for digest in chunks])
    assert found == {first: chunks[first], third: chunks[third]}
    assert not path_of(tmp_path, second).exists()
    assert len(caplog.records) == 1


async def test_chunk_that_the_disk_refuses_to_read_costs_itself(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    chunks = dict(chunk_of(number) for number in range(3))
    first, second, third = chunks
    cache = make_cache(tmp_path, nursery)
    await cache.put_many(chunks)
    path_of(tmp_path, second).unlink()
    path_of(tmp_path, second).mkdir()
    found = await cache.get_many([Chunk(BLOCK, digest) for digest in chunks])
    assert found == {first: chunks[first], third: chunks[third]}
    assert len(caplog.records) == 1


async def test_chunk_that_the_disk_refuses_to_write_costs_itself(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    chunks = dict(chunk_of(number) for number in range(3))
    first, second, third = chunks
    path_of(tmp_path, second).parent.parent.mkdir(mode=0o700, parents=True)
    path_of(tmp_path, second).parent.write_text("in the way")
    cache = make_cache(tmp_path, nursery)
    await cache.room_bytes()
    await cache.put_many(chunks)
    assert await cache.get_many([Chunk(BLOCK, first), Chunk(BLOCK, third)]) == {
        first: chunks[first],
        third: chunks[third],
    }
    assert cache.stored_bytes == 2 * BLOCK
    assert len(caplog.records) == 1


async def test_cache_keeps_its_limit_although_the_disk_refuses_something_each_time(tmp_path: Path) -> None:
    blocked = chunk_of(1000)
    path_of(tmp_path, blocked[0]).parent.parent.mkdir(mode=0o700, parents=True)
    path_of(tmp_path, blocked[0]).parent.write_text("in the way")
    async with trio.open_nursery() as nursery:
        cache = make_cache(tmp_path, nursery, bytes_max=10 * BLOCK)
        for number in range(40):
            await cache.put_many(dict([chunk_of(number), blocked]))
        # A sweep may have counted before the last ones came; what comes later begins the next.
        with trio.fail_after(20):
            while len(files_of(tmp_path)) > 11:
                number += 1
                await cache.put_many(dict([chunk_of(number), blocked]))
                await trio.sleep(0.01)


async def test_chunks_too_large_for_the_cache_are_left_out_of_those_put_together(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    small, large = chunk_of(1), (digest_of(bytes(3 * BLOCK)), bytes(3 * BLOCK))
    cache = make_cache(tmp_path, nursery, bytes_max=2 * BLOCK)
    await cache.put_many(dict([large, small]))
    assert files_of(tmp_path) == [path_of(tmp_path, small[0])]


async def test_chunks_put_together_stop_where_the_disk_has_too_little_free(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(tmp_path, nursery)
    monkeypatch.setattr(ChunkFiles, "free_bytes", lambda self: 3 * BLOCK + 5)
    (tmp_path / "chunks").mkdir(mode=0o700)
    await cache.put_many(dict(chunk_of(number) for number in range(10)))
    assert len(files_of(tmp_path)) == 3


# Some blocks of a chunk.


def run_of(first_block: int, after_block: int, chunk: bytes = RANGED) -> BlockSpan:
    data = chunk[first_block * BLOCK_BYTES : after_block * BLOCK_BYTES]
    return BlockSpan(digest_of(chunk), len(chunk), block_digests_of(chunk), first_block, data)


async def get_range(
    cache: DiskChunkCache,
    first_block: int,
    after_block: int,
    chunk: bytes = RANGED,
) -> bytes | None:
    """The blocks; the chunk's digests that come with them are checked."""
    length_bytes = min(after_block * BLOCK_BYTES, len(chunk)) - first_block * BLOCK_BYTES
    block_digests = block_digests_of(chunk)
    found = await cache.get_blocks(digest_of(chunk), len(chunk), first_block, length_bytes)
    if found is None:
        return None
    assert found[1] == block_digests
    return bytes(found[0])


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first blocks of the ranges that are looked for on disk from now on."""
    looks: list[int] = []
    read_blocks = ChunkFiles.read_blocks

    def note_look(
        self: ChunkFiles, digest: bytes, chunk_bytes: int, first: int, length: int, known: int
    ) -> object:
        looks.append(first)
        return read_blocks(self, digest, chunk_bytes, first, length, known)

    monkeypatch.setattr(ChunkFiles, "read_blocks", note_look)
    return looks


async def test_blocks_that_were_put_are_got(tmp_path: Path, nursery: trio.Nursery) -> None:
    cache = make_cache(tmp_path, nursery)
    await cache.put_blocks([run_of(2, 4), run_of(10, 11), run_of(3, 6)])
    assert await get_range(cache, 2, 6) == RANGED[2 * BLOCK_BYTES : 6 * BLOCK_BYTES]
    assert await get_range(cache, 10, 11) == b"short block"
    assert await get_range(cache, 1, 3) is None
    assert await get_range(cache, 9, 11) is None
    assert await cache.get(digest_of(RANGED), len(RANGED)) is None


async def test_blocks_of_several_chunks_are_put_in_one_turn(tmp_path: Path, nursery: trio.Nursery) -> None:
    other = RANGED[::-1]
    cache = make_cache(tmp_path, nursery)
    await cache.put_blocks([run_of(1, 2), run_of(0, 1, other), run_of(5, 6)])
    assert await get_range(cache, 5, 6) == RANGED[5 * BLOCK_BYTES : 6 * BLOCK_BYTES]
    assert await get_range(cache, 0, 1, other) == other[:BLOCK_BYTES]
    assert await get_range(cache, 0, 1) is None


async def test_blocks_outlive_the_process_and_are_seen_by_a_neighbour(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    await make_cache(tmp_path, nursery).put_blocks([run_of(0, 3)])
    assert await get_range(make_cache(tmp_path, nursery), 0, 3) == RANGED[: 3 * BLOCK_BYTES]


async def test_blocks_that_are_known_to_be_absent_are_not_looked_for(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = count_looks(monkeypatch)
    cache = make_cache(tmp_path, nursery)
    for _ in range(2):
        assert await get_range(cache, 4, 5) is None
        assert await get_range(cache, 7, 9) is None
    assert looks == [4]
    await cache.put_blocks([run_of(7, 9)])
    assert await get_range(cache, 7, 9) is not None
    assert await get_range(cache, 6, 9) is None
    assert looks == [4, 7]


async def test_file_of_blocks_is_searched_once_and_not_at_each_hit(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Path] = []

    def note_search(path: Path, chunk_bytes: int) -> int:
        searched.append(path)
        return present_blocks(path, chunk_bytes)

    monkeypatch.setattr(chunk_files, "present_blocks", note_search)
    await make_cache(tmp_path, nursery).put_blocks([run_of(2, 6)])
    cache = make_cache(tmp_path, nursery)
    for first_block in (2, 3, 4, 2):
        assert await get_range(cache, first_block, first_block + 2) is not None
    assert len(searched) == 1


async def test_what_a_neighbour_adds_is_seen_in_time_however_many_hits_there_are(
    tmp_path: Path, nursery: trio.Nursery, clock: MockClock
) -> None:
    cache, neighbour = make_cache(tmp_path, nursery), make_cache(tmp_path, nursery)
    await cache.put_blocks([run_of(0, 1)])
    assert await get_range(cache, 5, 6) is None
    await neighbour.put_blocks([run_of(5, 6)])
    clock.jump(ABSENCE_SECONDS_MAX)
    assert await get_range(cache, 0, 1) is not None
    assert await get_range(cache, 5, 6) is not None


async def test_whole_chunk_answers_for_blocks_known_to_be_absent(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    cache = make_cache(tmp_path, nursery)
    assert await get_range(cache, 4, 5) is None
    await cache.put(digest_of(RANGED), RANGED)
    assert await get_range(cache, 4, 5) == RANGED[4 * BLOCK_BYTES : 5 * BLOCK_BYTES]


async def test_neighbours_on_one_directory_believe_the_disk_over_what_they_know(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    one, other = make_cache(tmp_path, nursery), make_cache(tmp_path, nursery)
    await one.put_blocks([run_of(0, 2)])
    assert await get_range(other, 0, 2) == RANGED[: 2 * BLOCK_BYTES]
    # The other brings the whole chunk, which takes the blocks away.
    await other.put(digest_of(RANGED), RANGED)
    assert await get_range(one, 0, 2) == RANGED[: 2 * BLOCK_BYTES]
    assert await get_range(one, 5, 11) == RANGED[5 * BLOCK_BYTES :]
    # Somebody's sweep deletes it; each finds out by itself.
    path_of(tmp_path, digest_of(RANGED)).unlink()
    assert await get_range(one, 0, 2) is None
    assert await get_range(other, 5, 11) is None
    await one.put_blocks([run_of(0, 1)])
    await other.put_blocks([run_of(1, 2)])
    assert await get_range(make_cache(tmp_path, nursery), 0, 2) == RANGED[: 2 * BLOCK_BYTES]


async def test_damaged_blocks_are_none_until_they_are_put_again(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    cache = make_cache(tmp_path, nursery)
    await cache.put_blocks([run_of(0, 11)])
    (path,) = files_of(tmp_path)
    stored = bytearray(path.read_bytes())
    stored[4 * BLOCK_BYTES] ^= 1
    path.write_bytes(stored)
    assert await get_range(cache, 4, 5) is None
    assert await get_range(cache, 0, 11) is None
    assert await get_range(cache, 5, 11) == RANGED[5 * BLOCK_BYTES :]
    await cache.put_blocks([run_of(4, 5)])
    assert await get_range(cache, 0, 11) == RANGED


async def test_truncated_blocks_are_none_until_they_are_put_again(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    cache = make_cache(tmp_path, nursery)
    await cache.put_blocks([run_of(0, 11)])
    (path,) = files_of(tmp_path)
    os.truncate(path, 6 * BLOCK_BYTES + 3)
    assert await get_range(cache, 0, 1) is None
    await cache.put_blocks([run_of(8, 9)])
    assert await get_range(cache, 8, 9) == RANGED[8 * BLOCK_BYTES : 9 * BLOCK_BYTES]
    assert await get_range(cache, 0, 6) == RANGED[: 6 * BLOCK_BYTES]
    assert await get_range(cache, 6, 7) is None


async def test_blocks_count_by_what_they_take_of_the_disk(tmp_path: Path, nursery: trio.Nursery) -> None:
    cache = make_cache(tmp_path, nursery)
    await cache.room_bytes()
    await cache.put_blocks([run_of(10, 11)])
    assert 0 < cache.stored_bytes <= 3 * BLOCK
    assert files_of(tmp_path)[0].stat().st_size > 10 * BLOCK_BYTES


async def test_cache_of_nothing_takes_no_blocks(tmp_path: Path, nursery: trio.Nursery) -> None:
    cache = make_cache(tmp_path, nursery, bytes_max=0)
    await cache.put_blocks([run_of(0, 2)])
    assert files_of(tmp_path) == []


async def test_blocks_are_not_cached_when_the_disk_has_too_little_free(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    cache = DiskChunkCache(tmp_path, scope=SCOPE, bytes_max=ROOMY, nursery=nursery, free_bytes_min=1 << 60)
    await cache.put_blocks([run_of(0, 2)])
    assert files_of(tmp_path) == []
    assert await get_range(cache, 0, 2) is None


async def test_full_disk_keeps_the_blocks_that_it_had(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_write(handle: int, data: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = make_cache(tmp_path, nursery)
    await cache.put_blocks([run_of(0, 2)])
    assert await get_range(cache, 3, 4) is None
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refuse_write)
        for _ in range(3):
            await cache.put_blocks([run_of(3, 4)])
    assert await get_range(cache, 0, 2) == RANGED[: 2 * BLOCK_BYTES]
    assert await get_range(cache, 3, 4) is None
    assert len(caplog.records) == 1
    await cache.put_blocks([run_of(3, 4)])
    assert await get_range(cache, 3, 4) is not None


async def test_blocks_file_that_is_a_directory_costs_the_reader_nothing(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    path = path_of(tmp_path, digest_of(RANGED))
    path.with_name(path.name + BLOCKS).mkdir(parents=True)
    cache = make_cache(tmp_path, nursery)
    assert await get_range(cache, 0, 1) is None
    await cache.put_blocks([run_of(0, 1)])
    assert await get_range(cache, 0, 1) is None
    assert len(caplog.records) == 1


async def test_reader_of_a_disk_that_hangs_is_cancelled_at_once(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def hang(*_: object) -> None:
        answered.wait(60)

    cache = make_cache(tmp_path, nursery)
    monkeypatch.setattr(ChunkFiles, "read_blocks", hang)
    monkeypatch.setattr(ChunkFiles, "read_chunk", hang)
    try:
        with trio.fail_after(30):
            for read in (
                partial(get_range, cache, 0, 1),
                partial(cache.get, *chunk_of(1)[:1], BLOCK),
                partial(cache.get_many, [Chunk(BLOCK, chunk_of(1)[0])]),
            ):
                with trio.move_on_after(0.05) as scope:
                    await read()
                assert scope.cancelled_caught
    finally:
        answered.set()


async def test_oldest_blocks_go_first_and_by_what_they_take(tmp_path: Path) -> None:
    sparse = [RANGED[number:] + RANGED[:number] for number in range(20)]
    async with trio.open_nursery() as nursery:
        cache = make_cache(tmp_path, nursery)
        await cache.room_bytes()
        for number, chunk in enumerate(sparse):
            await cache.put_blocks([run_of(0, 1, chunk)])
            path = path_of(tmp_path, digest_of(chunk))
            at = time.time() - 86400 * (20 - number)
            os.utime(path.with_name(path.name + BLOCKS), (at, at))
        taken_bytes = cache.stored_bytes // 20
    async with trio.open_nursery() as nursery:
        make_cache(tmp_path, nursery, bytes_max=10 * taken_bytes)
    kept = {path.name for path in files_of(tmp_path)}
    assert kept == {f"{digest_of(chunk).hex()}{BLOCKS}" for chunk in sparse[-9:]}


WRITE_BLOCKS_FOR_EVER = """
import sys
from itertools import count
from pathlib import Path
from cloudai_fusefs.block_file import BlockSpan
from cloudai_fusefs.chunk_files import ChunkFiles
from cloudai_model.chunks import block_digests_of, digest_of
from cloudai_model.limits import BLOCK_BYTES

files = ChunkFiles(Path(sys.argv[1]), scope=sys.argv[2])
for number in count(1):
    chunk = number.to_bytes(4, "big") * (4 * BLOCK_BYTES)
    digest, digests = digest_of(chunk), block_digests_of(chunk)
    files.free_bytes()
    for block in range(0, 16, 3):
        data = chunk[block * BLOCK_BYTES : (block + 2) * BLOCK_BYTES]
        files.write_blocks([BlockSpan(digest, len(chunk), digests, block, data)])
    if number == 20:
        print("twenty", flush=True)
"""


async def test_killed_writer_of_blocks_leaves_right_blocks_or_none(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_BLOCKS_FOR_EVER, str(tmp_path), SCOPE], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"twenty\n"
        writer.kill()
    cache = make_cache(tmp_path, nursery)
    count = len(files_of(tmp_path))
    assert count >= 20
    for number in range(1, count + 1):
        chunk = number.to_bytes(4, "big") * (4 * BLOCK_BYTES)
        assert block_count(len(chunk)) == 16
        for block in range(16):
            was_written = block % 3 != 2
            found = await get_range(cache, block, block + 1, chunk)
            is_last = number == count  # it was being written
            if was_written and not is_last:
                assert found is not None
            # All blocks of such a chunk are alike: what was never written is none, whatever its neighbours are.
            assert found in (None, chunk[:BLOCK_BYTES] if was_written else None)


async def test_disk_that_hangs_is_left_alone_for_a_while_and_holds_no_reader(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = threading.Event()
    looks: list[bytes] = []

    def hang(self: ChunkFiles, digest: bytes, length_bytes: int) -> bytes | None:
        looks.append(digest)
        answers.wait(60)
        return None

    monkeypatch.setattr(patient_disk, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(ChunkFiles, "read_chunk", hang)
    cache = make_cache(tmp_path, nursery)
    digest, data = chunk_of(1)
    try:
        assert await cache.get(digest, len(data)) is None
        assert await cache.get(digest, len(data)) is None
        assert await cache.get_many([Chunk(len(data), digest)]) == {}
        assert await cache.get_blocks(digest, len(data), 0, len(data)) is None
        assert looks == [digest]
        assert "timed out" in caplog.text
    finally:
        answers.set()
