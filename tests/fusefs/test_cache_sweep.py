"""What a sweep of the chunk cache deletes, and what it counts."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai_fusefs import cache_sweep
from cloudai_fusefs.cache_sweep import KEPT_SHARE, CacheLimits, evict_oldest, stored_bytes_of
from cloudai_model.limits import CHUNK_BYTES_MAX, KIB, MIB

PAGE = 4096


async def sweep(chunks_dir: Path, bytes_max: int, free_bytes_min: int = 0) -> int:
    return await trio.to_thread.run_sync(evict_oldest, chunks_dir, CacheLimits(bytes_max, free_bytes_min))


def write_file(chunks_dir: Path, number: int, size_bytes: int, *, age_seconds: float = 0.0) -> Path:
    path = chunks_dir / f"{number % 3:02x}" / f"{number:064x}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size_bytes)
    at = time.time() - age_seconds
    os.utime(path, (at, at))
    return path


def write_sparse(chunks_dir: Path, number: int, *, age_seconds: float = 0.0) -> Path:
    """4 MiB of which one block of 64 KiB is there, and the digests."""
    path = write_file(chunks_dir, number, 0)
    path = path.rename(path.with_suffix(".0123456789abcdef.blocks"))
    with path.open("r+b") as file:
        file.seek(CHUNK_BYTES_MAX // 2)
        file.write(b"x" * 64 * KIB)
        file.seek(CHUNK_BYTES_MAX)
        file.write(b"x" * 2 * KIB)
    at = time.time() - age_seconds
    os.utime(path, (at, at))
    return path


def taken_bytes(paths: list[Path]) -> int:
    return sum(path.stat().st_blocks * 512 for path in paths)


async def test_sparse_files_count_by_what_they_take(tmp_path: Path) -> None:
    paths = [write_sparse(tmp_path, number) for number in range(20)]
    assert sum(path.stat().st_size for path in paths) > 80 * MIB
    assert await sweep(tmp_path, 10 * MIB) == taken_bytes(paths) < 2 * MIB
    assert all(path.exists() for path in paths)


async def test_sparse_and_whole_files_go_in_one_order(tmp_path: Path) -> None:
    old_whole = write_file(tmp_path, 1, 128 * KIB, age_seconds=400)
    old_sparse = write_sparse(tmp_path, 2, age_seconds=300)
    whole = write_file(tmp_path, 3, 128 * KIB, age_seconds=200)
    sparse = write_sparse(tmp_path, 4, age_seconds=100)
    limit_bytes = int(taken_bytes([whole, sparse]) / KEPT_SHARE) + 1
    assert await sweep(tmp_path, limit_bytes) == taken_bytes([whole, sparse])
    assert [path.exists() for path in (old_whole, old_sparse, whole, sparse)] == [False, False, True, True]


async def test_blocks_that_a_first_version_left_go_whatever_room_there_is(tmp_path: Path) -> None:
    sparse = write_sparse(tmp_path, 1)
    whole = write_file(tmp_path, 1, PAGE)
    of_whichever_master = whole.with_name(f"{whole.name}.blocks")
    of_whichever_master.write_bytes(b"x" * PAGE)

    assert await sweep(tmp_path, 1 * MIB) == taken_bytes([sparse, whole])

    assert [path.exists() for path in (sparse, whole, of_whichever_master)] == [True, True, False]


async def test_directory_among_the_files_keeps_no_file_from_going(tmp_path: Path) -> None:
    old = write_file(tmp_path, 1, 128 * KIB, age_seconds=400)
    strange = old.with_name("strange")
    strange.mkdir()
    os.utime(strange, (1, 1))
    assert await sweep(tmp_path, 64 * KIB) == 0
    assert (old.exists(), strange.exists()) == (False, True)


async def test_cache_within_its_limits_loses_nothing(tmp_path: Path) -> None:
    paths = [write_file(tmp_path, number, PAGE, age_seconds=number) for number in range(10)]
    assert await sweep(tmp_path, 10 * PAGE) == 10 * PAGE
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize(
    ("stored_bytes", "free_bytes", "excess_bytes"),
    [
        (1000, 500, 0),
        (1001, 500, 101),  # to nine tenths of 1000
        (2000, 500, 1100),
        (0, 449, 51),  # to ten ninths of 450, so that the next look finds room
        (900, 0, 500),
        (2000, 0, 1100),  # the larger of both
    ],
)
def test_excess_is_what_both_limits_ask_for(stored_bytes: int, free_bytes: int, excess_bytes: int) -> None:
    assert CacheLimits(1000, 450).excess_bytes(stored_bytes, free_bytes) == excess_bytes


async def test_disk_that_is_short_of_space_gets_back_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_file(tmp_path, number, PAGE, age_seconds=100 - number) for number in range(10)]
    monkeypatch.setattr(cache_sweep, "free_bytes", lambda directory: 6 * PAGE)
    assert await sweep(tmp_path, 100 * PAGE, free_bytes_min=9 * PAGE) == 6 * PAGE
    assert [path.exists() for path in paths] == [False] * 4 + [True] * 6


async def test_file_that_is_being_written_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    write_file(tmp_path, 1, PAGE, age_seconds=10)
    temporary = tmp_path / "01" / ".incoming-0123"
    temporary.write_bytes(b"x" * 100 * PAGE)
    os.utime(temporary, (time.time() - 1800, time.time() - 1800))
    assert await sweep(tmp_path, 10 * PAGE) == PAGE
    assert await sweep(tmp_path, 0) == 0
    assert temporary.exists()


async def test_missing_directory_is_the_callers_to_know(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await sweep(tmp_path / "chunks", 0)


FILES = st.lists(
    st.tuples(st.integers(0, 40_000), st.integers(0, 20), st.booleans()), max_size=25
)  # size, age in steps, sparse


@settings(max_examples=40, deadline=None)
@given(files=FILES, limit_pages=st.integers(0, 120))
def test_sweep_keeps_the_youngest_within_the_limit_and_counts_them(
    files: list[tuple[int, int, bool]], limit_pages: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        chunks_dir = Path(directory)
        ages: dict[Path, int] = {}
        for number, (size_bytes, age, is_sparse) in enumerate(files):
            if is_sparse:
                path = write_sparse(chunks_dir, number, age_seconds=age * 1000)
            else:
                path = write_file(chunks_dir, number, size_bytes, age_seconds=age * 1000)
            ages[path] = age
        before_bytes = taken_bytes(list(ages))
        taken = {path: stored_bytes_of(path.stat()) for path in ages}
        limit_bytes = limit_pages * PAGE

        counted_bytes = trio.run(sweep, chunks_dir, limit_bytes)

        kept = [path for path in ages if path.exists()]
        gone = [path for path in ages if not path.exists()]
        assert counted_bytes == taken_bytes(kept)
        if before_bytes <= limit_bytes:
            assert not gone
            return
        assert counted_bytes <= limit_bytes * KEPT_SHARE
        # No older file outlives a younger one, and the last to go had to.
        youngest_gone = min((ages[path] for path in gone), default=0)
        assert all(ages[path] <= youngest_gone for path in kept)
        last_bytes = max(taken[path] for path in gone if ages[path] == youngest_gone)
        assert counted_bytes + last_bytes > int(limit_bytes * KEPT_SHARE) or last_bytes == 0
