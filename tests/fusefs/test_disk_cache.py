"""The chunk cache on a real disk: verified reads, limits, neighbours, failures."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from cloudai_fusefs import disk_cache as disk_cache_module
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_model.chunks import digest_of

ROOMY = 1 << 30
BLOCK = 4096


def chunk_of(number: int) -> tuple[bytes, bytes]:
    """(digest, data) of one block."""
    data = number.to_bytes(4, "big") * (BLOCK // 4)
    return digest_of(data), data


def path_of(cache_dir: Path, digest: bytes) -> Path:
    return cache_dir / "chunks" / digest.hex()[:2] / digest.hex()


def files_of(cache_dir: Path) -> list[Path]:
    return sorted(path for path in (cache_dir / "chunks").rglob("*") if path.is_file())


def make_cache(cache_dir: Path, nursery: trio.Nursery, *, bytes_max: int = ROOMY) -> DiskChunkCache:
    return DiskChunkCache(cache_dir, bytes_max=bytes_max, nursery=nursery, free_bytes_min=0)


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
    cache = DiskChunkCache(tmp_path, bytes_max=ROOMY, nursery=nursery, free_bytes_min=1 << 60)
    await cache.put(digest, data)
    assert await cache.get(digest, BLOCK) is None


async def test_cached_chunks_yield_when_the_disk_has_too_little_free(tmp_path: Path) -> None:
    await fill_cache(tmp_path, 5)
    async with trio.open_nursery() as nursery:
        DiskChunkCache(tmp_path, bytes_max=ROOMY, nursery=nursery, free_bytes_min=1 << 60)
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
    def refuse_write(handle: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = make_cache(tmp_path, nursery)
    monkeypatch.setattr(os, "write", refuse_write)
    for number in range(3):
        await cache.put(*chunk_of(number))

    assert files_of(tmp_path) == []
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text


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
    walk = disk_cache_module._walk_chunks

    def walk_then_lose_all(chunks_dir: Path) -> Iterator[tuple[Path, os.stat_result]]:
        found = list(walk(chunks_dir))
        for path, _ in found:
            path.unlink(missing_ok=True)
        return iter(found)

    monkeypatch.setattr(disk_cache_module, "_walk_chunks", walk_then_lose_all)
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
        cache = DiskChunkCache(Path(sys.argv[1]), bytes_max=1 << 26, nursery=nursery, free_bytes_min=0)
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
        [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE
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
