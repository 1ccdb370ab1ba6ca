"""Some blocks of a chunk in a sparse file: what was written is read, and nothing else ever is."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai_fusefs.block_file import BlockSpan, block_count, present_blocks, read_blocks, write_blocks
from cloudai_model.chunks import block_digests_of, digest_of
from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, KIB

# Lengths with a last block that is full, short, a byte, or shares a page with the digests.
LENGTHS = [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES - 100, 5 * BLOCK_BYTES + 4096]


def chunk_of(length_bytes: int, seed: int = 7) -> bytes:
    """No two blocks alike, and none of zeros."""
    return b"".join(b"%08d" % (seed * 1_000_000 + place) for place in range(-(-length_bytes // 8)))[
        :length_bytes
    ]


def run_of(chunk: bytes, first_block: int, after_block: int) -> BlockSpan:
    start, stop = first_block * BLOCK_BYTES, after_block * BLOCK_BYTES
    return BlockSpan(
        digest_of(chunk), len(chunk), block_digests_of(chunk), first_block, memoryview(chunk)[start:stop]
    )


def read_range(path: Path, chunk: bytes, first_block: int, after_block: int) -> bytes | None:
    """The blocks as they are found, without the digests, which are checked."""
    length_bytes = min(after_block * BLOCK_BYTES, len(chunk)) - first_block * BLOCK_BYTES
    found = read_blocks(path, digest_of(chunk), len(chunk), first_block, length_bytes)
    if found is None:
        return None
    data, block_digests = found
    assert block_digests == block_digests_of(chunk)
    return data


@st.composite
def block_ranges(draw: st.DrawFn, count: int) -> tuple[int, int]:
    first = draw(st.integers(0, count - 1))
    return first, draw(st.integers(first + 1, count))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), length_bytes=st.sampled_from(LENGTHS))
def test_ranges_that_were_written_are_read_and_no_others(data: st.DataObject, length_bytes: int) -> None:
    chunk = chunk_of(length_bytes)
    count = block_count(length_bytes)
    written: set[int] = set()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "chunk.blocks"
        for _ in range(data.draw(st.integers(1, 4))):
            turns = data.draw(st.lists(block_ranges(count), min_size=1, max_size=3))
            write_blocks(path, [run_of(chunk, first, after) for first, after in turns])
            written |= {block for first, after in turns for block in range(first, after)}
            for first, after in data.draw(st.lists(block_ranges(count), max_size=6)):
                is_there = written >= set(range(first, after))
                expected = chunk[first * BLOCK_BYTES : after * BLOCK_BYTES] if is_there else None
                assert read_range(path, chunk, first, after) == expected
            bits = present_blocks(path, length_bytes)
            assert bits >> count == 0
            assert all(bits >> block & 1 for block in written)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), length_bytes=st.sampled_from(LENGTHS[2:]))
def test_damage_anywhere_costs_blocks_and_never_changes_one(data: st.DataObject, length_bytes: int) -> None:
    chunk = chunk_of(length_bytes)
    count = block_count(length_bytes)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "chunk.blocks"
        write_blocks(path, [run_of(chunk, 0, count)])
        stored = bytearray(path.read_bytes())
        for place in data.draw(
            st.lists(st.integers(0, len(stored) - 1), min_size=1, max_size=3, unique=True)
        ):
            stored[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(
            stored[: data.draw(st.sampled_from([len(stored), len(stored) - 1, length_bytes, 0]))]
        )
        for block in range(count):
            expected = chunk[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            assert read_range(path, chunk, block, block + 1) in (None, expected)


@pytest.mark.parametrize("length_bytes", LENGTHS)
def test_truncated_file_is_not_there(tmp_path: Path, length_bytes: int) -> None:
    chunk = chunk_of(length_bytes)
    path = tmp_path / "chunk.blocks"
    write_blocks(path, [run_of(chunk, 0, 1)])
    for size_bytes in (path.stat().st_size - 1, length_bytes, length_bytes - 1, 0):
        os.truncate(path, size_bytes)
        assert read_range(path, chunk, 0, 1) is None
    assert present_blocks(path, length_bytes) == 0


def test_damaged_block_is_healed_by_being_written_again(tmp_path: Path) -> None:
    chunk = chunk_of(3 * BLOCK_BYTES)
    path = tmp_path / "chunk.blocks"
    write_blocks(path, [run_of(chunk, 0, 3)])
    with path.open("r+b") as file:
        file.seek(BLOCK_BYTES + 5)
        file.write(b"damage")
    assert [read_range(path, chunk, block, block + 1) is None for block in range(3)] == [False, True, False]
    assert read_range(path, chunk, 0, 2) is None

    write_blocks(path, [run_of(chunk, 1, 2)])

    assert read_range(path, chunk, 0, 3) == chunk


def test_damaged_digests_are_healed_by_the_next_writer(tmp_path: Path) -> None:
    chunk = chunk_of(3 * BLOCK_BYTES)
    path = tmp_path / "chunk.blocks"
    write_blocks(path, [run_of(chunk, 0, 2)])
    with path.open("r+b") as file:
        file.seek(len(chunk) + 2 * 32 + 1)  # of a block that nobody has read
        file.write(b"damage")
    # Believed, they would make the master's answer for that block look damaged.
    assert read_range(path, chunk, 0, 1) is None

    write_blocks(path, [run_of(chunk, 2, 3)])

    assert read_range(path, chunk, 0, 3) == chunk


@pytest.mark.parametrize("length_bytes", [2 * BLOCK_BYTES, CHUNK_BYTES_MAX])
def test_another_chunks_blocks_under_this_name_are_not_this_chunks(tmp_path: Path, length_bytes: int) -> None:
    # After a power cut a file may hold what was a deleted one's.
    chunk, other = chunk_of(length_bytes), chunk_of(length_bytes, seed=8)
    path = tmp_path / "chunk.blocks"
    write_blocks(path, [run_of(other, 0, 2)])
    assert read_range(path, chunk, 0, 1) is None


def test_holes_cost_no_disk(tmp_path: Path) -> None:
    chunk = chunk_of(CHUNK_BYTES_MAX)
    path = tmp_path / "chunk.blocks"
    write_blocks(path, [run_of(chunk, 63, 64), run_of(chunk, 0, 1)])
    assert path.stat().st_blocks * 512 <= 3 * BLOCK_BYTES
    assert present_blocks(path, len(chunk)) == 1 << 63 | 1


def test_blocks_of_zeros_that_were_never_written_are_read_as_what_they_are(tmp_path: Path) -> None:
    chunk = bytes(2 * BLOCK_BYTES) + b"tail"
    path = tmp_path / "chunk.blocks"
    write_blocks(path, [run_of(chunk, 2, 3)])
    assert read_range(path, chunk, 0, 3) in (None, chunk)


def test_two_writers_of_one_chunk_add_to_each_other(tmp_path: Path) -> None:
    chunk = chunk_of(4 * BLOCK_BYTES)
    path = tmp_path / "chunk.blocks"
    first = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    write_blocks(path, [run_of(chunk, 0, 2)])
    os.pwrite(first, run_of(chunk, 2, 4).data, 2 * BLOCK_BYTES)
    os.close(first)
    assert read_range(path, chunk, 0, 4) == chunk


def test_file_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "chunk.blocks"
    write_blocks(path, [run_of(chunk_of(KIB), 0, 1)])
    assert path.stat().st_mode & 0o777 == 0o600


def test_missing_file_and_missing_directory_are_errors_of_the_caller(tmp_path: Path) -> None:
    chunk = chunk_of(KIB)
    with pytest.raises(FileNotFoundError):
        read_range(tmp_path / "absent", chunk, 0, 1)
    with pytest.raises(FileNotFoundError):
        present_blocks(tmp_path / "absent", len(chunk))
    with pytest.raises(FileNotFoundError):
        write_blocks(tmp_path / "absent" / "chunk.blocks", [run_of(chunk, 0, 1)])


def test_disk_that_fills_in_the_middle_leaves_nothing_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = chunk_of(4 * BLOCK_BYTES)
    path = tmp_path / "chunk.blocks"
    pwrite = os.pwrite
    room_bytes = 2 * BLOCK_BYTES + 5000

    def write_while_there_is_room(handle: int, data: bytes | memoryview, offset: int) -> int:
        nonlocal room_bytes
        if not room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written_bytes = pwrite(handle, memoryview(data)[:room_bytes], offset)
        room_bytes -= written_bytes
        return written_bytes

    monkeypatch.setattr(os, "pwrite", write_while_there_is_room)
    with pytest.raises(OSError, match="No space left"):
        write_blocks(path, [run_of(chunk, first, first + 1) for first in range(4)])
    monkeypatch.undo()
    found = [read_range(path, chunk, block, block + 1) for block in range(4)]
    assert found == [chunk[:BLOCK_BYTES], chunk[BLOCK_BYTES : 2 * BLOCK_BYTES], None, None]


@pytest.mark.parametrize(
    ("length_bytes", "count"), [(1, 1), (BLOCK_BYTES, 1), (BLOCK_BYTES + 1, 2), (CHUNK_BYTES_MAX, 64)]
)
def test_block_count_counts_the_short_one(length_bytes: int, count: int) -> None:
    assert block_count(length_bytes) == count
