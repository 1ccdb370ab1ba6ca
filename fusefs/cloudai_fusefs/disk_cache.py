"""Chunks on the local disk: what was read once is local, for every mount and after every restart.

`<cache_dir>/chunks/<aa>/<digest>`, shared by any number of processes without a lock: a file is written
under a temporary name and renamed, its name is its digest, and it is verified on every read. So a kill -9,
a power cut or a neighbour's eviction can lose a chunk, never make it wrong. It is a cache: a failure of
its disk costs speed and a line in the log, and is never the reader's.

Least recently used goes first, by mtime, which a read moves on. No index is kept: a sweep reads the
directory (about 5,000 files in 20 GiB of full chunks), deletes what is over the limits, and counts anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from cloudai_fusefs.cache_file import (
    TEMPORARY_PREFIX,
    RareWarning,
    make_private_directory,
    write_cache_file,
)
from cloudai_model.chunks import digest_of

_log = logging.getLogger(__name__)

FREE_BYTES_MIN_DEFAULT: Final = 1024**3
"""What the cache leaves free on its disk: room for staged files, which are worth more than cached ones."""

KEPT_SHARE: Final = 0.9
"""A sweep goes down to this share of the size limit, so that the next one is not due at once."""

UNSWEPT_SHARE: Final = 0.1
"""Of the size limit: after writing this much, look again, since other processes write here as well.
N mounts exceed the limit together by N times this share at most."""

TOUCH_INTERVAL_SECONDS: Final = 300.0
"""A chunk's time of use is this coarse: a hot chunk is not worth an inode write per read."""

TEMPORARY_SECONDS_MAX: Final = 3600.0
"""A temporary file this old belongs to a process that was killed; writing a chunk takes milliseconds."""

SPACE_SWEEP_INTERVAL_SECONDS: Final = 10.0
"""Between sweeps for free space: when others filled the disk, deleting our last chunks may not help."""

DISK_THREADS_MAX: Final = 4
"""Enough to keep a local disk busy; separate from other threads, so that neither starves the other."""

_BLOCK_BYTES: Final = 4096  # what a file costs on disk is a multiple of it on the usual filesystems


class DiskChunkCache:
    """The chunks below one cache_dir, within a size limit and a free-space limit."""

    def __init__(
        self,
        cache_dir: Path,
        *,
        bytes_max: int,
        nursery: trio.Nursery,
        free_bytes_min: int = FREE_BYTES_MIN_DEFAULT,
    ) -> None:
        """Sweeps run in the nursery, the first one from now on; reads and writes do not wait for it.

        bytes_max 0: nothing is cached from now on.
        """
        self._cache_dir = cache_dir
        self._chunks_dir = cache_dir / "chunks"
        self._limits = _Limits(bytes_max, free_bytes_min)
        self._nursery = nursery
        self._threads = trio.CapacityLimiter(DISK_THREADS_MAX)
        self._stored_bytes = 0  # as of the last sweep, and what this process wrote since
        self._unswept_bytes = 0
        self._is_sweeping = False
        self._space_sweep_at = -SPACE_SWEEP_INTERVAL_SECONDS
        self._damaged = RareWarning(_log, "a damaged file was dropped from the chunk cache: %s")
        self._failed = RareWarning(_log, "the chunk cache in %s cannot be used: %s")
        self._begin_sweep()

    async def get(self, digest: bytes, length_bytes: int) -> bytes | None:
        """The chunk, verified, or None when it is not cached.

        A file that is not the chunk is deleted and logged. Raises nothing. Cancelled: returns at once,
        even when the disk hangs.
        """
        try:
            return await trio.to_thread.run_sync(
                self._read_chunk, digest, length_bytes, limiter=self._threads, abandon_on_cancel=True
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            self._failed.log(self._chunks_dir, error)
            return None

    async def put(self, digest: bytes, data: bytes | memoryview) -> None:
        """Keeps a chunk whose bytes the caller has verified.

        Raises nothing: when the disk is full or fails, the chunk is not cached. Cancelled: returns when the
        file is written, since a thread cannot be stopped.
        """
        if len(data) > self._limits.bytes_max:
            return
        try:
            written_bytes = await trio.to_thread.run_sync(
                self._write_chunk, digest, data, limiter=self._threads
            )
        except OSError as error:
            self._failed.log(self._chunks_dir, error)
            return
        if written_bytes is None:
            self._begin_space_sweep()
            return
        self._stored_bytes += written_bytes
        self._unswept_bytes += written_bytes
        is_due = self._unswept_bytes > self._limits.bytes_max * UNSWEPT_SHARE
        if is_due or self._stored_bytes > self._limits.bytes_max:
            self._begin_sweep()

    def _path_of(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._chunks_dir / name[:2] / name

    # In a thread.

    def _read_chunk(self, digest: bytes, length_bytes: int) -> bytes | None:
        path = self._path_of(digest)
        with path.open("rb", buffering=0) as file:
            data = file.read(length_bytes + 1)
            if len(data) == length_bytes and digest_of(data) == digest:
                self._touch(file.fileno())
                return data
        self._damaged.log(path)
        path.unlink(missing_ok=True)
        return None

    def _touch(self, handle: int) -> None:
        now = time.time()
        if abs(now - os.fstat(handle).st_mtime) < TOUCH_INTERVAL_SECONDS:
            return
        with contextlib.suppress(OSError):  # a cache that is only readable is a cache
            os.utime(handle, (now, now))

    def _write_chunk(self, digest: bytes, data: bytes | memoryview) -> int | None:
        """What the file takes of the disk, 0 when it was there, None when it would leave too little."""
        path = self._path_of(digest)
        if path.exists():
            return 0
        make_private_directory(self._cache_dir, path.parent)
        if _free_bytes(path.parent) - len(data) < self._limits.free_bytes_min:
            return None
        write_cache_file(path, [data])
        return _stored_bytes_of(len(data))

    # Sweeping.

    def _begin_space_sweep(self) -> None:
        now = trio.current_time()
        if now - self._space_sweep_at < SPACE_SWEEP_INTERVAL_SECONDS:
            return
        self._space_sweep_at = now
        self._begin_sweep()

    def _begin_sweep(self) -> None:
        if self._is_sweeping:
            return
        self._is_sweeping = True
        self._nursery.start_soon(self._sweep)

    async def _sweep(self) -> None:
        """Cancelled: stops within one of the 256 directories; the next sweep goes on."""
        stored_before_bytes, self._unswept_bytes = self._stored_bytes, 0
        try:
            kept_bytes = await trio.to_thread.run_sync(
                _evict_oldest, self._chunks_dir, self._limits, limiter=self._threads
            )
        except FileNotFoundError:  # before the first chunk
            return
        except OSError as error:
            self._failed.log(self._chunks_dir, error)
            return
        finally:
            self._is_sweeping = False
        # What was written meanwhile may be counted twice: the next sweep comes early then, never late.
        self._stored_bytes = kept_bytes + self._stored_bytes - stored_before_bytes


@dataclass(frozen=True)
class _Limits:
    bytes_max: int
    free_bytes_min: int

    def excess_bytes(self, stored_bytes: int, free_bytes: int) -> int:
        """How much to delete; 0 or less when both limits hold."""
        over_size = over_space = 0
        if stored_bytes > self.bytes_max:
            over_size = stored_bytes - int(self.bytes_max * KEPT_SHARE)
        if free_bytes < self.free_bytes_min:
            over_space = int(self.free_bytes_min / KEPT_SHARE) - free_bytes
        return max(over_size, over_space)


def _evict_oldest(chunks_dir: Path, limits: _Limits) -> int:
    """Deletes least recently used chunks until the limits hold; returns the bytes that remain.

    Two passes over the directory instead of a sorted list of its files: a million small chunks would take
    about 300 MB to sort, their seconds of use are a small table.
    """
    now = time.time()
    bytes_by_second: Counter[int] = Counter()
    for path, status in _walk_chunks(chunks_dir):
        if path.name.startswith(TEMPORARY_PREFIX):
            if now - status.st_mtime > TEMPORARY_SECONDS_MAX:
                path.unlink(missing_ok=True)
            continue
        bytes_by_second[int(status.st_mtime)] += _stored_bytes_of(status.st_size)
    kept_bytes = bytes_by_second.total()
    excess_bytes = limits.excess_bytes(kept_bytes, _free_bytes(chunks_dir))
    if excess_bytes <= 0:
        return kept_bytes

    # All that was used before the cutoff goes, and of the cutoff's own second as much as is still over.
    cutoff_second, older_bytes = 0, 0
    for cutoff_second in sorted(bytes_by_second):
        if older_bytes + bytes_by_second[cutoff_second] >= excess_bytes:
            break
        older_bytes += bytes_by_second[cutoff_second]
    cutoff_bytes = excess_bytes - older_bytes
    for path, status in _walk_chunks(chunks_dir):
        second = int(status.st_mtime)
        if path.name.startswith(TEMPORARY_PREFIX) or second > cutoff_second:
            continue
        if second == cutoff_second:
            if cutoff_bytes <= 0:
                continue
            cutoff_bytes -= _stored_bytes_of(status.st_size)
        path.unlink(missing_ok=True)
        kept_bytes -= _stored_bytes_of(status.st_size)
    return kept_bytes


def _walk_chunks(chunks_dir: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file with its status, without those that vanish meanwhile.

    Looks for a cancellation before each of the 256 directories.
    """
    with os.scandir(chunks_dir) as shards:
        shard_paths = [shard.path for shard in shards if shard.is_dir(follow_symlinks=False)]
    for shard_path in shard_paths:
        trio.from_thread.check_cancelled()
        with contextlib.suppress(FileNotFoundError), os.scandir(shard_path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    yield Path(entry.path), entry.stat(follow_symlinks=False)


def _free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _stored_bytes_of(size_bytes: int) -> int:
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
