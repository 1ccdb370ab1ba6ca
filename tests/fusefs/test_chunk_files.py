"""The files of the chunk cache, one call at a time: whole chunks, some blocks of one, and either damaged."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudai_fusefs.block_file import RANGED_CHUNK_BYTES_MIN, BlockSpan
from cloudai_fusefs.cache_file import USE_INTERVAL_SECONDS, scope_name
from cloudai_fusefs.chunk_files import ALL_BLOCKS, ChunkFiles
from cloudai_model.chunks import block_digests_of, digest_of
from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, DIGEST_BYTES, KIB
from support.other_kinds import OTHER_KINDS, put_in_place

SCOPE = "master.example:7443/user-123"
CHUNK = b"".join(b"%08d" % place for place in range(8 * BLOCK_BYTES // 8)) + b"short block"
DIGEST = digest_of(CHUNK)
BLOCK_DIGESTS = block_digests_of(CHUNK)


@pytest.fixture
def files(tmp_path: Path) -> ChunkFiles:
    return ChunkFiles(tmp_path / "cache", scope=SCOPE)


def path_of(files: ChunkFiles, digest: bytes = DIGEST) -> Path:
    return files.directory / digest.hex()[:2] / digest.hex()


def blocks_path_of(files: ChunkFiles) -> Path:
    path = path_of(files)
    return path.with_name(f"{path.name}.{scope_name(SCOPE)}.blocks")


def run_of(first_block: int, after_block: int) -> BlockSpan:
    data = CHUNK[first_block * BLOCK_BYTES : after_block * BLOCK_BYTES]
    return BlockSpan(DIGEST, len(CHUNK), BLOCK_DIGESTS, first_block, data)


def read_range(files: ChunkFiles, first_block: int, after_block: int) -> tuple[bytes | None, int]:
    """The blocks, and as bits which may be there; the digests that come with them are checked."""
    length_bytes = min(after_block * BLOCK_BYTES, len(CHUNK)) - first_block * BLOCK_BYTES
    found, bits = files.read_blocks(DIGEST, len(CHUNK), first_block, length_bytes)
    if found is None:
        return None, bits
    data, found_digests = found
    assert found_digests == BLOCK_DIGESTS
    return bytes(data), bits


def used_at(path: Path) -> float:
    return path.stat().st_mtime


def make_old(path: Path) -> None:
    at = time.time() - 2 * USE_INTERVAL_SECONDS
    os.utime(path, (at, at))


def test_blocks_of_a_whole_chunk_are_read(files: ChunkFiles) -> None:
    files.write_chunk(DIGEST, CHUNK)
    assert read_range(files, 1, 3) == (CHUNK[BLOCK_BYTES : 3 * BLOCK_BYTES], ALL_BLOCKS)
    assert read_range(files, 8, 9) == (b"short block", ALL_BLOCKS)


def test_of_a_whole_chunk_no_more_than_the_range_and_the_digests_is_read(
    files: ChunkFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_chunk(DIGEST, CHUNK)
    pread = os.pread
    read: list[tuple[int, int]] = []

    def note_pread(handle: int, length: int, offset: int) -> bytes:
        read.append((length, offset))
        return pread(handle, length, offset)

    monkeypatch.setattr(os, "pread", note_pread)
    monkeypatch.setattr(ChunkFiles, "read_chunk", lambda *_: pytest.fail("the whole chunk was read"))
    read_range(files, 1, 2)
    assert sorted(read) == [(10 * DIGEST_BYTES, len(CHUNK)), (BLOCK_BYTES, BLOCK_BYTES)]


def test_digests_of_blocks_that_came_with_a_chunk_are_kept(
    files: ChunkFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cloudai_fusefs.chunk_files.block_digests_of", lambda _: pytest.fail("they were made again")
    )
    files.write_chunk(DIGEST, CHUNK, BLOCK_DIGESTS)
    assert read_range(files, 1, 3) == (CHUNK[BLOCK_BYTES : 3 * BLOCK_BYTES], ALL_BLOCKS)


@pytest.mark.parametrize("digests", [bytes(9 * DIGEST_BYTES), bytes(8 * DIGEST_BYTES), b"short"])
def test_wrong_digests_of_blocks_make_no_byte_wrong_and_are_mended(files: ChunkFiles, digests: bytes) -> None:
    files.write_chunk(DIGEST, CHUNK, digests)
    assert read_range(files, 1, 3) == (CHUNK[BLOCK_BYTES : 3 * BLOCK_BYTES], ALL_BLOCKS)
    assert path_of(files).read_bytes().startswith(CHUNK + BLOCK_DIGESTS)


def test_chunk_too_short_for_ranges_is_kept_without_digests(files: ChunkFiles) -> None:
    short = CHUNK[: RANGED_CHUNK_BYTES_MIN - 1]
    files.write_chunk(digest_of(short), short)
    assert path_of(files, digest_of(short)).read_bytes() == short


@pytest.mark.parametrize("length_bytes", [len(CHUNK), len(CHUNK) - 1, BLOCK_BYTES + 5, 0])
def test_damaged_whole_chunk_is_dropped_and_its_blocks_answer(
    files: ChunkFiles, caplog: pytest.LogCaptureFixture, length_bytes: int
) -> None:
    files.write_blocks([run_of(0, 2)])
    kept_blocks = blocks_path_of(files).read_bytes()
    files.write_chunk(DIGEST, CHUNK)
    blocks_path_of(files).write_bytes(kept_blocks)
    damaged = bytearray(CHUNK)
    damaged[BLOCK_BYTES + 1] ^= 1
    path_of(files).write_bytes(damaged[:length_bytes])

    data, bits = read_range(files, 1, 2)

    assert data == CHUNK[BLOCK_BYTES : 2 * BLOCK_BYTES]
    assert bits & 0b11 == 0b11
    assert bits != ALL_BLOCKS
    assert not path_of(files).exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_damage_outside_the_range_is_left_to_who_reads_there(files: ChunkFiles) -> None:
    files.write_chunk(DIGEST, CHUNK)
    path_of(files).write_bytes(b"X" + path_of(files).read_bytes()[1:])
    assert read_range(files, 2, 3)[0] == CHUNK[2 * BLOCK_BYTES : 3 * BLOCK_BYTES]
    assert read_range(files, 0, 1) == (None, 0)
    assert not path_of(files).exists()


def test_damaged_digests_behind_a_chunk_take_nothing_from_it(files: ChunkFiles) -> None:
    files.write_chunk(DIGEST, CHUNK)
    content = path_of(files).read_bytes()
    path_of(files).write_bytes(CHUNK + bytes(len(content) - len(CHUNK)))
    assert read_range(files, 0, 1) == (CHUNK[:BLOCK_BYTES], ALL_BLOCKS)


def test_another_chunk_under_this_name_is_not_this_chunk(files: ChunkFiles) -> None:
    # After a power cut a file may hold what was a deleted one's.
    other = CHUNK[::-1]
    files.write_chunk(digest_of(other), other)
    path_of(files).parent.mkdir(exist_ok=True)
    path_of(files, digest_of(other)).rename(path_of(files))
    assert read_range(files, 3, 4) == (None, 0)
    assert not path_of(files).exists()


def test_file_that_is_longer_than_its_chunk_is_not_the_chunk(files: ChunkFiles) -> None:
    files.write_chunk(DIGEST, CHUNK)
    with path_of(files).open("ab") as file:
        file.write(b"x")
    assert files.read_chunk(DIGEST, len(CHUNK)) is None
    assert not path_of(files).exists()


def test_blocks_that_are_not_there_are_none_and_the_others_are_told(files: ChunkFiles) -> None:
    assert read_range(files, 0, 1) == (None, 0)
    files.write_blocks([run_of(1, 3)])
    assert read_range(files, 0, 1)[0] is None
    assert read_range(files, 0, 1)[1] & 0b1111 == 0b0110
    assert read_range(files, 1, 4)[0] is None
    assert read_range(files, 1, 3)[0] == CHUNK[BLOCK_BYTES : 3 * BLOCK_BYTES]


def test_whole_chunk_takes_the_place_of_its_blocks(files: ChunkFiles) -> None:
    files.write_blocks([run_of(0, 1)])
    files.write_chunk(DIGEST, CHUNK)
    assert not blocks_path_of(files).exists()
    files.write_blocks([run_of(1, 2)])
    assert not blocks_path_of(files).exists()


def test_blocks_are_believed_by_those_who_ask_the_same_master_alone(
    files: ChunkFiles, tmp_path: Path
) -> None:
    files.write_blocks([run_of(2, 4)])

    assert read_range(ChunkFiles(tmp_path / "cache", scope=SCOPE), 2, 4)[0] is not None
    for scope in ("other.example:7443/user-123", "master.example:7443/user-124"):
        assert read_range(ChunkFiles(tmp_path / "cache", scope=scope), 2, 4) == (None, 0)


def test_whole_chunk_is_that_of_all_masters(files: ChunkFiles, tmp_path: Path) -> None:
    files.write_chunk(DIGEST, CHUNK)

    other = ChunkFiles(tmp_path / "cache", scope="other.example:7443/user-123")

    assert other.read_chunk(DIGEST, len(CHUNK)) == CHUNK
    assert read_range(other, 2, 4) == (CHUNK[2 * BLOCK_BYTES : 4 * BLOCK_BYTES], ALL_BLOCKS)


def test_what_is_written_twice_is_there_once_and_grows_the_cache_once(files: ChunkFiles) -> None:
    small = digest_of(b"small")
    assert files.write_chunk(small, b"small") == path_of(files, small).stat().st_blocks * 512
    assert files.write_chunk(small, b"small") == 0
    grown_bytes = files.write_blocks([run_of(0, 2)])
    assert grown_bytes == blocks_path_of(files).stat().st_blocks * 512
    assert files.write_blocks([run_of(0, 2)]) == 0
    assert files.write_blocks([run_of(3, 4)]) == BLOCK_BYTES


def test_blocks_grow_the_cache_by_what_they_take_and_not_by_their_chunk(files: ChunkFiles) -> None:
    chunk = bytes(CHUNK_BYTES_MAX - 1) + b"x"
    run = BlockSpan(digest_of(chunk), len(chunk), block_digests_of(chunk), 63, chunk[63 * BLOCK_BYTES :])
    assert BLOCK_BYTES <= files.write_blocks([run]) <= BLOCK_BYTES + 8 * KIB


def test_file_in_use_counts_as_used_now_once_in_a_while(files: ChunkFiles) -> None:
    files.write_chunk(DIGEST, CHUNK)
    path = path_of(files)
    for read in (
        lambda: files.read_chunk(DIGEST, len(CHUNK)),
        lambda: read_range(files, 0, 1),
        lambda: files.note_wanted(DIGEST, len(CHUNK)),
    ):
        make_old(path)
        read()
        assert time.time() - used_at(path) < USE_INTERVAL_SECONDS
        before = used_at(path)
        read()
        assert used_at(path) == before


def test_blocks_in_use_count_as_used_now(files: ChunkFiles) -> None:
    files.write_blocks([run_of(0, 1)])
    make_old(blocks_path_of(files))
    read_range(files, 1, 2)
    assert time.time() - used_at(blocks_path_of(files)) > USE_INTERVAL_SECONDS
    read_range(files, 0, 1)
    assert time.time() - used_at(blocks_path_of(files)) < USE_INTERVAL_SECONDS


def test_chunk_that_is_wanted_is_there_by_its_length_alone(files: ChunkFiles) -> None:
    assert not files.note_wanted(DIGEST, len(CHUNK))
    files.write_blocks([run_of(0, 9)])
    assert not files.note_wanted(DIGEST, len(CHUNK))
    files.write_chunk(DIGEST, CHUNK)
    assert files.note_wanted(DIGEST, len(CHUNK))
    os.truncate(path_of(files), 5)
    assert not files.note_wanted(DIGEST, len(CHUNK))
    assert not path_of(files).exists()


NOT_DIRECTORIES = [kind for kind in OTHER_KINDS if kind != "directory"]


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_what_is_no_file_in_the_place_of_a_chunk_is_dropped(files: ChunkFiles, kind: str) -> None:
    reads: list[Callable[[], bool]] = [
        lambda: files.read_chunk(DIGEST, len(CHUNK)) is None,
        lambda: read_range(files, 2, 5) == (None, 0),
        lambda: not files.note_wanted(DIGEST, len(CHUNK)),
    ]
    for is_absent in reads:
        files.write_chunk(DIGEST, CHUNK)
        put_in_place(path_of(files), kind)
        assert is_absent()
        assert not os.path.lexists(path_of(files))


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_what_is_no_file_in_the_place_of_a_chunk_is_replaced_by_the_chunk(
    files: ChunkFiles, kind: str
) -> None:
    files.write_chunk(DIGEST, CHUNK)
    put_in_place(path_of(files), kind)
    files.write_chunk(DIGEST, CHUNK)
    assert not path_of(files).is_symlink()
    assert files.read_chunk(DIGEST, len(CHUNK)) == CHUNK


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_what_is_no_file_in_the_place_of_blocks_is_dropped(files: ChunkFiles, kind: str) -> None:
    files.write_blocks([run_of(2, 5)])
    put_in_place(blocks_path_of(files), kind)
    assert read_range(files, 2, 5) == (None, 0)
    assert not os.path.lexists(blocks_path_of(files))


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_what_is_no_file_in_the_place_of_blocks_is_replaced_by_the_next(files: ChunkFiles, kind: str) -> None:
    files.write_blocks([run_of(2, 5)])
    put_in_place(blocks_path_of(files), kind)
    files.write_blocks([run_of(3, 4)])
    assert not blocks_path_of(files).is_symlink()
    assert read_range(files, 3, 4)[0] == CHUNK[3 * BLOCK_BYTES : 4 * BLOCK_BYTES]


def test_directory_in_place_of_a_file_is_the_disks_failure(files: ChunkFiles) -> None:
    path_of(files).mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        files.read_chunk(DIGEST, len(CHUNK))
    with pytest.raises(OSError, match="directory"):
        read_range(files, 0, 1)
