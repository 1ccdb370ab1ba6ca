"""Staged bytes over a base: what reads return, and what comes back after the daemon's death."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudai_fusefs import staged_file
from cloudai_fusefs.spare_files import SpareFiles
from cloudai_fusefs.staged_descriptors import StagedDescriptors
from cloudai_fusefs.staged_file import RECYCLED_BYTES_MAX, StagedFile, mark_of
from cloudai_model.chunks import Chunk, Manifest, digest_of
from cloudai_model.limits import CHUNK_BYTES_MAX

BASE = bytes(range(256)) * 40


class BaseReader:
    """Answers reads of the base and remembers which."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.reads: list[tuple[int, int]] = []

    async def __call__(self, offset_bytes: int, length_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.reads.append((offset_bytes, length_bytes))
        return self.content[offset_bytes : offset_bytes + length_bytes]


def manifest_of(content: bytes) -> Manifest:
    return Manifest([Chunk(len(content), digest_of(content))] if content else [])


def open_staged(path: Path, content: bytes, reader: BaseReader | None = None) -> StagedFile:
    return StagedFile(path, manifest_of(content), 1, reader or BaseReader(content))


def open_descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    open_before = open_descriptor_count()
    yield tmp_path / "4294967296"
    assert open_descriptor_count() == open_before, "a descriptor is left open"


async def test_unwritten_bytes_come_from_the_base(path: Path) -> None:
    staged = open_staged(path, BASE)
    await staged.write(100, b"new")

    assert await staged.read(98, 7) == BASE[98:100] + b"new" + BASE[103:105]
    staged.drop()


async def test_written_bytes_need_nothing_from_the_base(path: Path) -> None:
    reader = BaseReader(BASE)
    staged = open_staged(path, BASE, reader)
    await staged.write(100, b"new")

    assert await staged.read(100, 3) == b"new"
    assert reader.reads == []
    staged.drop()


async def test_read_past_end_returns_short_bytes(path: Path) -> None:
    staged = open_staged(path, b"")
    await staged.write(0, b"abc")

    assert await staged.read(1, 100) == b"bc"
    assert await staged.read(3, 100) == b""
    staged.drop()


async def test_bytes_cut_off_once_read_as_zeros_when_the_file_grows_again(path: Path) -> None:
    staged = open_staged(path, BASE)
    staged.truncate(10)
    staged.truncate(20)

    assert await staged.read(0, 100) == BASE[:10] + bytes(10)
    staged.drop()


@pytest.mark.parametrize("written", [BASE[:100], b""], ids=["all-staged", "part-of-the-base"])
async def test_digests_are_made_off_the_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch, written: bytes
) -> None:
    """Of 4 MiB it takes some milliseconds, in which the loop would answer nobody."""
    threads: list[int] = []

    def note_thread(data: bytes) -> bytes:
        threads.append(threading.get_ident())
        return digest_of(data)

    staged = open_staged(path, BASE)
    await staged.write(0, written)
    monkeypatch.setattr(staged_file, "digest_of", note_thread)

    data, digest = await staged.read_with_digest(0, 100, trio.CapacityLimiter(1))
    staged.drop()

    assert (data, digest) == (BASE[:100], digest_of(BASE[:100]))
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


async def test_disk_is_waited_for_off_the_loop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    staged = open_staged(path, BASE)
    await staged.write(0, b"x")
    monkeypatch.setattr(os, "fsync", lambda _: threads.append(threading.get_ident()))

    await staged.sync()
    staged.drop()

    assert threads  # of the bytes, and of which they are
    assert threading.get_ident() not in threads


async def test_hole_between_writes_reads_as_zeros(path: Path) -> None:
    staged = open_staged(path, b"")
    await staged.write(5, b"x")

    assert await staged.read(0, 10) == bytes(5) + b"x"
    staged.drop()


async def test_reopened_file_has_what_was_written(path: Path) -> None:
    staged = open_staged(path, BASE)
    await staged.write(100, b"new")
    staged.truncate(5000)
    await staged.write(6000, b"end")
    staged.close()

    again = open_staged(path, BASE)

    assert await again.read(0, 10_000) == (BASE[:100] + b"new" + BASE[103:5000] + bytes(1000) + b"end")
    again.drop()


async def test_extent_record_cut_short_by_a_crash_is_dropped(path: Path) -> None:
    staged = open_staged(path, BASE)
    await staged.write(100, b"new")
    staged.close()
    extents = path.with_name(path.name + ".extents")
    extents.write_bytes(extents.read_bytes() + b"W\1\2")

    again = open_staged(path, BASE)
    await again.write(0, b"more")

    assert await again.read(0, 103) == b"more" + BASE[4:100] + b"new"
    again.close()
    third = open_staged(path, BASE)
    assert await third.read(0, 103) == b"more" + BASE[4:100] + b"new"
    third.drop()


async def test_writes_at_the_same_time_are_all_there_when_it_is_reopened(path: Path) -> None:
    staged = open_staged(path, BASE)
    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(staged.write, 2 * number, b"!")
    staged.close()

    again = open_staged(path, BASE)

    assert (await again.read(0, 1000))[::2] == b"!" * 500
    again.drop()


async def test_dropped_file_is_gone_from_disk_and_a_read_under_way_still_ends(path: Path) -> None:
    started = trio.Event()
    answer = trio.Event()

    async def read_base(offset_bytes: int, length_bytes: int) -> bytes:
        started.set()
        await answer.wait()
        return BASE[offset_bytes : offset_bytes + length_bytes]

    staged = StagedFile(path, manifest_of(BASE), 1, read_base)
    await staged.write(0, b"abc")
    results = []

    async def read() -> None:
        results.append(await staged.read(0, 6))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await started.wait()
        staged.drop()
        answer.set()

    assert results == [b"abc" + BASE[3:6]]
    assert not path.exists()


async def test_files_at_rest_keep_a_bounded_number_of_descriptors(path: Path) -> None:
    descriptors = StagedDescriptors(files_max=3)
    open_before = open_descriptor_count()
    files = [
        StagedFile(path.with_name(str(number)), manifest_of(BASE), 1, BaseReader(BASE), descriptors)
        for number in range(20)
    ]
    for number, staged in enumerate(files):
        await staged.write(number, b"first")
    for number, staged in enumerate(files):
        await staged.write(number, b"again")
        staged.truncate(100)
        staged.note_written(number)
        await staged.sync()

    assert descriptors.holder_count == 3
    assert open_descriptor_count() == open_before + 6  # the bytes, and which of them were written
    for number, staged in enumerate(files):
        assert staged.written_at_ns == number
        assert await staged.read(0, 200) == BASE[:number] + b"again" + BASE[number + 5 : 100]
    for staged in files:
        staged.drop()
    descriptors.closer.stop()
    assert list(path.parent.iterdir()) == []


async def test_file_in_use_is_not_put_to_rest(path: Path) -> None:
    descriptors = StagedDescriptors(files_max=1)
    reading, answer = trio.Event(), trio.Event()

    async def read_base(offset_bytes: int, length_bytes: int) -> bytes:
        reading.set()
        await answer.wait()
        return BASE[offset_bytes : offset_bytes + length_bytes]

    staged = StagedFile(path, manifest_of(BASE), 1, read_base, descriptors)
    await staged.write(3, b"abc")
    results = []

    async def read() -> None:
        results.append(await staged.read(0, 6))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await reading.wait()
        other = StagedFile(path.with_name("other"), manifest_of(b""), 0, read_base, descriptors)
        assert not staged.rest()
        assert descriptors.holder_count == 2
        answer.set()

    assert results == [BASE[:3] + b"abc"]
    assert staged.rest()
    staged.drop()
    other.drop()
    descriptors.closer.stop()


async def test_files_that_were_in_use_together_are_put_to_rest_by_a_later_opening(path: Path) -> None:
    descriptors = StagedDescriptors(files_max=2)

    def open_file(name: str) -> StagedFile:
        return StagedFile(path.with_name(name), manifest_of(b""), 0, BaseReader(b""), descriptors)

    files = [open_file("first"), open_file("second")]
    with ExitStack() as uses:
        for staged in files:
            uses.enter_context(staged._in_use())
        files += [open_file("third"), open_file("fourth")]
        assert descriptors.holder_count == 3

    files.append(open_file("fifth"))

    assert descriptors.holder_count == 2
    for staged in files:
        staged.drop()
    descriptors.closer.stop()


async def test_dropped_file_does_not_take_the_next_one_of_its_name_for_its_own(path: Path) -> None:
    staged = open_staged(path, b"")
    await staged.write(0, b"old")
    assert staged.rest()
    staged.drop()
    next_one = open_staged(path, b"")
    await next_one.write(0, b"new")

    with pytest.raises(OSError, match="dropped"):
        await staged.read(0, 3)

    next_one.drop()


async def test_file_that_is_gone_when_it_is_used_again_is_an_error_and_not_empty(path: Path) -> None:
    staged = open_staged(path, b"")
    await staged.write(0, b"bytes")
    assert staged.rest()
    path.unlink()

    with pytest.raises(FileNotFoundError):
        await staged.read(0, 5)

    assert not path.exists()
    staged.drop()


async def test_mark_of_a_file_at_rest_is_empty(path: Path) -> None:
    staged = open_staged(path, b"")
    await staged.write(0, b"acknowledged")
    assert staged.rest()

    staged.drop(leave_mark=True)

    assert not path.exists()
    assert mark_of(path).read_bytes() == b""


async def test_full_disk_is_the_writers_error(path: Path) -> None:
    os.symlink("/dev/full", path)
    staged = open_staged(path, b"")

    with pytest.raises(OSError, match="No space left"):
        await staged.write(0, b"x" * 5000)

    staged.drop()


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> int:
    """Gaps are told from what was written by cells of so many bytes and not by 4 MiB."""
    size_bytes = 64
    monkeypatch.setattr(staged_file, "CHUNK_BYTES_MAX", size_bytes)
    monkeypatch.setattr(staged_file, "_ZEROS", bytes(size_bytes))
    monkeypatch.setattr(staged_file, "_ZEROS_DIGEST", digest_of(bytes(size_bytes)))
    return size_bytes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base_size=st.integers(0, 200),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 300), st.binary(max_size=80)),
            st.tuples(st.just("truncate"), st.integers(0, 300), st.just(b"")),
            st.tuples(st.just("reopen"), st.just(0), st.just(b"")),
            st.tuples(st.just("rest"), st.just(0), st.just(b"")),
        ),
        max_size=15,
    ),
)
def test_any_writes_truncations_rests_and_reopenings_read_like_a_bytearray(
    tmp_path: Path, small_cells: int, base_size: int, steps: list[tuple[str, int, bytes]]
) -> None:
    async def run() -> None:
        path = tmp_path / "staged"
        base = BASE[:base_size]
        content = bytearray(base)
        staged = open_staged(path, base)
        for kind, number, data in steps:
            if kind == "write":
                if data and len(content) < number:
                    content.extend(bytes(number - len(content)))
                content[number : number + len(data)] = data
                await staged.write(number, data)
            elif kind == "truncate":
                content = content[:number] + bytes(max(0, number - len(content)))
                staged.truncate(number)
            elif kind == "rest":
                assert staged.rest()
            else:
                staged.close()
                staged = open_staged(path, base)
            assert staged.size_bytes == len(content)
            assert await staged.read(0, 1000) == bytes(content)
            for start in range(0, len(content) - small_cells + 1, small_cells):
                cell = bytes(content[start : start + small_cells])
                found = await staged.read_with_digest(start, small_cells, trio.CapacityLimiter(1))
                assert found == (cell, digest_of(cell))
        staged.drop()

    trio.run(run)


@pytest.mark.parametrize("is_left", [False, True], ids=["at once", "by an earlier mount"])
@pytest.mark.parametrize("base", [b"", BASE], ids=["new", "over-a-base"])
async def test_gap_is_neither_read_nor_hashed(
    path: Path, monkeypatch: pytest.MonkeyPatch, base: bytes, is_left: bool
) -> None:
    def refuse(*_: object) -> bytes:
        raise AssertionError("nothing is there to be read or hashed")

    staged = open_staged(path, base)
    await staged.write(3 * CHUNK_BYTES_MAX, b"end")
    if is_left:
        staged.close()
        staged = open_staged(path, base)
    zeros = bytes(CHUNK_BYTES_MAX)
    zeros_digest = digest_of(zeros)
    monkeypatch.setattr(os, "pread", refuse)
    monkeypatch.setattr(os, "preadv", refuse)
    monkeypatch.setattr(staged_file, "digest_of", refuse)

    found = await staged.read_with_digest(CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, trio.CapacityLimiter(1))
    staged.drop()

    assert found == (zeros, zeros_digest)


async def test_gap_that_has_been_cut_off_is_nothing(path: Path) -> None:
    staged = open_staged(path, b"")
    await staged.write(3 * CHUNK_BYTES_MAX, b"end")
    staged.truncate(2 * CHUNK_BYTES_MAX - 1)

    found = await staged.read_with_digest(CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, trio.CapacityLimiter(1))
    staged.drop()

    assert found == (b"", b"")


async def test_what_was_written_into_a_size_that_was_set_before_is_no_gap(path: Path) -> None:
    """As safetensors does; and so it stays when it is found again."""
    staged = open_staged(path, b"")
    staged.truncate(3 * CHUNK_BYTES_MAX)
    await staged.write(CHUNK_BYTES_MAX - 3, b"tensor")
    cells = [bytes(CHUNK_BYTES_MAX - 3) + b"ten", b"sor" + bytes(CHUNK_BYTES_MAX - 3)]

    for _ in range(2):
        for number, cell in enumerate(cells):
            start_bytes = number * CHUNK_BYTES_MAX
            found = await staged.read_with_digest(start_bytes, CHUNK_BYTES_MAX, trio.CapacityLimiter(1))
            assert found == (cell, digest_of(cell))
        staged.close()
        staged = open_staged(path, b"")
    staged.drop()


async def test_what_was_written_at_once_is_no_gap(path: Path) -> None:
    staged = open_staged(path, b"")
    staged.truncate(2 * CHUNK_BYTES_MAX)
    staged.write_at_once(CHUNK_BYTES_MAX, b"here")

    found = await staged.read_with_digest(CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, trio.CapacityLimiter(1))
    staged.drop()

    content = b"here" + bytes(CHUNK_BYTES_MAX - 4)
    assert found == (content, digest_of(content))


@pytest.mark.parametrize("base", [b"", BASE], ids=["new", "over-a-base"])
async def test_gap_that_is_shorter_than_a_whole_chunk_is_as_long_as_it_is(path: Path, base: bytes) -> None:
    staged = open_staged(path, base)
    staged.truncate(2 * CHUNK_BYTES_MAX + 100)

    found = await staged.read_with_digest(2 * CHUNK_BYTES_MAX, 100, trio.CapacityLimiter(1))
    staged.drop()

    assert found == (bytes(100), digest_of(bytes(100)))


async def test_all_of_what_was_left_on_a_disk_that_knows_no_holes_is_no_gap(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = open_staged(path, b"")
    await staged.write(2 * CHUNK_BYTES_MAX - 3, b"end")
    staged.close()

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "no such whence")

    monkeypatch.setattr(os, "lseek", refuse)
    staged = open_staged(path, b"")
    content = bytes(CHUNK_BYTES_MAX - 3) + b"end"
    found = await staged.read_with_digest(CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, trio.CapacityLimiter(1))
    staged.drop()

    assert found == (content, digest_of(content))


async def test_what_a_failed_write_has_left_is_no_gap(path: Path) -> None:
    """Its first half is there, as a reader here sees: the master is to have the same."""
    staged = open_staged(path, b"")
    staged.truncate(2 * CHUNK_BYTES_MAX)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK_BYTES_MAX + 4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            await staged.write(CHUNK_BYTES_MAX, b"x" * 8192)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    shown = await staged.read(CHUNK_BYTES_MAX, CHUNK_BYTES_MAX)
    found = await staged.read_with_digest(CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, trio.CapacityLimiter(1))
    staged.drop()

    assert shown.rstrip(b"\0") == b"x" * 4096
    assert found == (shown, digest_of(shown))


async def test_refused_extension_is_not_in_the_log_either(path: Path) -> None:
    staged = open_staged(path, BASE)
    await staged.write(100, b"new")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(BASE), limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            staged.truncate(2 * len(BASE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert staged.size_bytes == len(BASE)
    staged.close()

    again = open_staged(path, BASE)

    assert again.size_bytes == len(BASE)
    assert await again.read(100, 3) == b"new"
    again.drop()


async def test_cut_that_is_in_the_log_alone_is_a_cut(path: Path) -> None:
    """As a death leaves it between the two steps of a cut."""
    staged = open_staged(path, BASE)
    await staged.write(100, b"new")
    staged_bytes = path.read_bytes()
    staged.truncate(101)
    staged.close()
    path.write_bytes(staged_bytes)

    again = open_staged(path, BASE)
    again.truncate(104)

    assert await again.read(0, 200) == BASE[:100] + b"n" + bytes(3)
    again.drop()


async def test_small_file_is_recycled_and_its_next_node_finds_nothing_of_it(path: Path) -> None:
    spares = SpareFiles(path.parent / "spare")
    staged = open_staged(path, b"")
    await staged.write(0, b"of the first node")
    staged.recycle(spares)
    assert not path.exists()
    assert spares.take(path)
    again = open_staged(path, b"")
    assert again.size_bytes == 0
    await again.write(3, b"new")
    assert await again.read(0, 100) == b"\0\0\0new"
    again.drop()


async def test_large_file_and_one_with_a_base_are_removed_and_not_recycled(path: Path) -> None:
    spares = SpareFiles(path.parent / "spare")
    large = open_staged(path, b"")
    await large.write(0, bytes(RECYCLED_BYTES_MAX + 1))
    large.recycle(spares)
    over_base = open_staged(path, BASE)
    await over_base.write(0, b"x")
    over_base.recycle(spares)
    assert not path.exists()
    assert not spares.take(path)


async def test_file_under_a_read_is_not_recycled(path: Path) -> None:
    spares = SpareFiles(path.parent / "spare")
    staged = open_staged(path, b"")
    await staged.write(0, b"content")
    with staged._in_use():
        staged.recycle(spares)
        assert os.pread(staged._fd, 7, 0) == b"content"
    assert not spares.take(path)


async def test_file_that_a_row_may_call_safe_is_never_emptied_in_its_place(path: Path) -> None:
    spares = SpareFiles(path.parent / "spare")
    synced = open_staged(path, b"")
    await synced.write(0, b"synced")
    await synced.sync()
    synced.recycle(spares)
    assert not path.exists()
    path.write_bytes(b"left by another mount, and synced by it")
    open_staged(path, b"").recycle(spares)
    assert not path.exists()
    assert not spares.take(path)


async def test_file_without_a_descriptor_to_be_had_is_removed_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: StagedFile) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    staged = open_staged(path, b"")
    await staged.write(0, b"content")
    assert staged.rest()
    monkeypatch.setattr(StagedFile, "_reopen", refuse)
    staged.recycle(SpareFiles(path.parent / "spare"))
    assert not path.exists()
