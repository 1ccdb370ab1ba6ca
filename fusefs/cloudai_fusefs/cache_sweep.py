"""Which chunks of the cache go when it is over its limits: those used longest ago. Blocking; for a thread."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from cloudai_fusefs.cache_file import TEMPORARY_PREFIX

BLOCKS_SUFFIX: Final = ".blocks"
"""Of files with blocks of a chunk: the digest, a scope and this."""

KEPT_SHARE: Final = 0.9
"""A sweep goes down to this share of the size limit, so that the next one is not due at once."""

TEMPORARY_SECONDS_MAX: Final = 3600.0
"""A temporary file this old belongs to a process that was killed; writing a chunk takes milliseconds."""

_STAT_BLOCK_BYTES: Final = 512  # the unit of st_blocks, whatever the file system's


@dataclass(frozen=True)
class CacheLimits:
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


def evict_oldest(chunks_dir: Path, limits: CacheLimits) -> int:
    """Deletes least recently used chunks until the limits hold; returns the bytes that remain.

    Two passes over the directory instead of a sorted list of its files: a million small chunks would take
    about 300 MB to sort, their seconds of use are a small table.
    """
    now = time.time()
    bytes_by_second: Counter[int] = Counter()
    for path, status in _walk_chunks(chunks_dir):
        if _has_no_scope(path.name):
            path.unlink(missing_ok=True)
            continue
        if path.name.startswith(TEMPORARY_PREFIX):
            if now - status.st_mtime > TEMPORARY_SECONDS_MAX:
                path.unlink(missing_ok=True)
            continue
        bytes_by_second[int(status.st_mtime)] += stored_bytes_of(status)
    kept_bytes = bytes_by_second.total()
    excess_bytes = limits.excess_bytes(kept_bytes, free_bytes(chunks_dir))
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
            cutoff_bytes -= stored_bytes_of(status)
        path.unlink(missing_ok=True)
        kept_bytes -= stored_bytes_of(status)
    return kept_bytes


def _has_no_scope(name: str) -> bool:
    """Whether the file holds blocks of which nobody knows which master sent them: left by a first version."""
    return name.endswith(BLOCKS_SUFFIX) and name.count(".") == 1


def _walk_chunks(chunks_dir: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file with its status, without those that vanish meanwhile. A directory is none of ours.

    Looks for a cancellation before each of the 256 directories.
    """
    with os.scandir(chunks_dir) as shards:
        shard_paths = [shard.path for shard in shards if shard.is_dir(follow_symlinks=False)]
    for shard_path in shard_paths:
        trio.from_thread.check_cancelled()
        with contextlib.suppress(FileNotFoundError), os.scandir(shard_path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    yield Path(entry.path), entry.stat(follow_symlinks=False)


def free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def stored_bytes_of(status: os.stat_result) -> int:
    """What the file takes of the disk: less than its size when it has holes."""
    return status.st_blocks * _STAT_BLOCK_BYTES
