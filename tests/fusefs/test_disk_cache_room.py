"""What a warm-up asks the disk cache: what is there already, and how much it can hold."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
import trio

from cloudai_fusefs.cache_sweep import KEPT_SHARE
from cloudai_fusefs.chunk_files import ChunkFiles
from cloudai_fusefs.disk_cache import LOOKS_TOGETHER_MAX, DiskChunkCache
from cloudai_model.chunks import Chunk, digest_of

ROOMY = 1 << 30
LONG_AGO_SECONDS = 1_000_000_000


def chunk_of(data: bytes) -> Chunk:
    return Chunk(len(data), digest_of(data))


def path_of(cache_dir: Path, chunk: Chunk) -> Path:
    name = chunk.digest.hex()
    return cache_dir / "chunks" / name[:2] / name


def open_cache(cache_dir: Path, nursery: trio.Nursery, **limits: int) -> DiskChunkCache:
    return DiskChunkCache(
        cache_dir, scope="", nursery=nursery, **{"bytes_max": ROOMY, "free_bytes_min": 0, **limits}
    )


async def test_missing_chunks_are_named_in_their_order(tmp_path: Path, nursery: trio.Nursery) -> None:
    cache = open_cache(tmp_path, nursery)
    chunks = [chunk_of(b"%d" % number) for number in range(LOOKS_TOGETHER_MAX + 10)]
    await cache.put_many({chunk.digest: b"%d" % number for number, chunk in enumerate(chunks) if number % 2})
    assert await cache.find_missing(chunks) == chunks[::2]


async def test_look_counts_as_a_use(tmp_path: Path, nursery: trio.Nursery) -> None:
    cache = open_cache(tmp_path, nursery)
    chunk = chunk_of(b"data")
    await cache.put(chunk.digest, b"data")
    os.utime(path_of(tmp_path, chunk), (LONG_AGO_SECONDS, LONG_AGO_SECONDS))
    assert await cache.find_missing([chunk]) == []
    assert path_of(tmp_path, chunk).stat().st_mtime > LONG_AGO_SECONDS


async def test_file_of_another_length_is_dropped_and_missing(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(tmp_path, nursery)
    chunk = chunk_of(b"data")
    await cache.put(chunk.digest, b"data")
    path_of(tmp_path, chunk).write_bytes(b"dat")
    assert await cache.find_missing([chunk]) == [chunk]
    assert not path_of(tmp_path, chunk).exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_what_cannot_be_looked_at_is_missing(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: ChunkFiles, digest: bytes, length_bytes: int) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(ChunkFiles, "note_wanted", fail)
    cache = open_cache(tmp_path, nursery)
    assert await cache.find_missing([chunk_of(b"data")]) == [chunk_of(b"data")]
    assert "cannot be used" in caplog.text


async def test_room_is_what_a_sweep_leaves_of_the_limit(tmp_path: Path, nursery: trio.Nursery) -> None:
    cache = open_cache(tmp_path, nursery, bytes_max=1_000_000)
    assert await cache.room_bytes() == int(1_000_000 * KEPT_SHARE)
    assert cache.bytes_max == 1_000_000


async def test_room_is_what_the_disk_has_and_what_is_cached_may_go(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = chunk_of(b"x" * 8192)
    async with trio.open_nursery() as writing:
        await open_cache(tmp_path, writing).put(chunk.digest, b"x" * 8192)
    monkeypatch.setattr(ChunkFiles, "free_bytes", lambda self: 100_000)
    cache = open_cache(tmp_path, nursery, free_bytes_min=90_000)
    assert await cache.room_bytes() == 10_000 + 8192
    assert cache.stored_bytes == 8192


async def test_disk_that_cannot_be_used_has_no_room(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file, where a directory should be")
    cache = open_cache(tmp_path / "cache", nursery)
    assert await cache.room_bytes() == 0
    assert "cannot be used" in caplog.text
