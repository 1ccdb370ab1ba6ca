"""What goes when a cache is over its limits: chunks, or sealed runs, used longest ago. Blocking; for a thread."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

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


class _Kept(NamedTuple):
    path: Path
    used_at_second: int
    size_bytes: int


def evict_oldest(chunks_dir: Path, limits: CacheLimits) -> int:
    """Deletes least recently used chunks until the limits hold; returns the bytes that remain."""

    def remove(path: Path) -> None:
        path.unlink(missing_ok=True)

    def excess_bytes(kept_bytes: int) -> int:
        return limits.excess_bytes(kept_bytes, free_bytes(chunks_dir))

    return _evict(lambda: _chunks_in(chunks_dir), excess_bytes, remove)


def evict_oldest_runs(sealed_dir: Path, bytes_max: int) -> int:
    """Deletes what is kept of the sealed runs that were used longest ago until the rest is within the limit; returns
    the bytes that remain.

    Whoever is reading a file of a run still reads it, and who is adding one finds that it cannot be kept.
    """

    def remove(run_dir: Path) -> None:
        shutil.rmtree(run_dir, ignore_errors=True)  # what was added to it meanwhile is the next sweep's

    def excess_bytes(kept_bytes: int) -> int:
        return CacheLimits(bytes_max, free_bytes_min=0).excess_bytes(kept_bytes, free_bytes=0)

    return _evict(lambda: _runs_in(sealed_dir), excess_bytes, remove)


def _evict(
    find: Callable[[], Iterator[_Kept]], excess_bytes_of: Callable[[int], int], remove: Callable[[Path], None]
) -> int:
    """Removes what was used longest ago, as far as there is an excess; returns the bytes that remain.

    Two passes over the directory instead of a sorted list of its files: a million small chunks would take
    about 300 MB to sort, their seconds of use are a small table.
    """
    bytes_by_second: Counter[int] = Counter()
    for kept in find():
        bytes_by_second[kept.used_at_second] += kept.size_bytes
    kept_bytes = bytes_by_second.total()
    excess_bytes = excess_bytes_of(kept_bytes)
    if excess_bytes <= 0:
        return kept_bytes

    # All that was used before the cutoff goes, and of the cutoff's own second as much as is still over.
    cutoff_second, older_bytes = 0, 0
    for cutoff_second in sorted(bytes_by_second):
        if older_bytes + bytes_by_second[cutoff_second] >= excess_bytes:
            break
        older_bytes += bytes_by_second[cutoff_second]
    cutoff_bytes = excess_bytes - older_bytes
    for path, used_at_second, size_bytes in find():
        if used_at_second > cutoff_second:
            continue
        if used_at_second == cutoff_second:
            if cutoff_bytes <= 0:
                continue
            cutoff_bytes -= size_bytes
        remove(path)
        kept_bytes -= size_bytes
    return kept_bytes


def _chunks_in(chunks_dir: Path) -> Iterator[_Kept]:
    """Every chunk, and file of blocks; what is neither of a chunk that is there nor of one that comes is deleted."""
    now = time.time()
    for path, status in _walk_chunks(chunks_dir):
        if path.name.startswith(TEMPORARY_PREFIX):
            if now - status.st_mtime > TEMPORARY_SECONDS_MAX:
                path.unlink(missing_ok=True)
        elif _has_no_scope(path.name):
            path.unlink(missing_ok=True)
        else:
            yield _Kept(path, int(status.st_mtime), stored_bytes_of(status))


def _runs_in(sealed_dir: Path) -> Iterator[_Kept]:
    """The directory of each run, of every scope. Looks for a cancellation before each."""
    for scope_dir in _directories_in(sealed_dir):
        for run_dir in _directories_in(scope_dir):
            trio.from_thread.check_cancelled()
            with contextlib.suppress(FileNotFoundError):
                status = run_dir.stat()
                with os.scandir(run_dir) as entries:
                    files_bytes = sum(stored_bytes_of(entry.stat(follow_symlinks=False)) for entry in entries)
                yield _Kept(run_dir, int(status.st_mtime), stored_bytes_of(status) + files_bytes)


def _directories_in(directory: Path) -> list[Path]:
    with os.scandir(directory) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _has_no_scope(name: str) -> bool:
    """Whether the file holds blocks of which nobody knows which master sent them: left by a first version."""
    return name.endswith(BLOCKS_SUFFIX) and name.count(".") == 1


def _walk_chunks(chunks_dir: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file with its status, without those that vanish meanwhile. A directory is none of ours.

    Looks for a cancellation before each of the 256 directories.
    """
    for shard_path in _directories_in(chunks_dir):
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
