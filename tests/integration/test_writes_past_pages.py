"""Handles that only write pass the kernel's pages (docs/decisions/0009): nobody may notice but by the time it takes."""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
from pathlib import Path

import pytest

from cloudai_fusefs.kernel_knobs import shows_direct_writes
from support.tree_snapshot import CheckElsewhere

PAGE = mmap.PAGESIZE
MIB = 1024 * 1024


@pytest.mark.skipif(not shows_direct_writes(os.uname().release), reason="this kernel would keep old pages")
def test_handle_that_only_writes_leaves_no_pages_behind(run: Path) -> None:
    path = run / "model"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT)
    reader = os.open(path, os.O_RDONLY)
    os.write(writer, os.urandom(MIB))

    assert resident_page_count(reader, MIB) == 0
    assert len(os.read(reader, MIB)) == MIB
    assert resident_page_count(reader, MIB) == MIB // PAGE
    os.close(writer)
    os.close(reader)


def resident_page_count(descriptor: int, size_bytes: int) -> int:
    """How many pages of a file the kernel has. Without a look at its size, after which it drops those of before."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = ctypes.c_size_t(size_bytes)
    found = (ctypes.c_ubyte * (size_bytes // PAGE))()
    begin = ctypes.c_void_p(
        libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(0))
    )
    status = libc.mincore(begin, size, found)
    assert status == 0, os.strerror(ctypes.get_errno())
    libc.munmap(begin, size)
    return sum(flags & 1 for flags in found)


def test_mapping_and_reader_show_each_write_of_another_handle(
    run: Path, check_elsewhere: CheckElsewhere
) -> None:
    path = run / "mapped"
    path.write_bytes(bytes(4 * PAGE))
    writer = os.open(path, os.O_WRONLY)
    reader = os.open(path, os.O_RDONLY)
    with mmap.mmap(reader, 4 * PAGE, prot=mmap.PROT_READ) as memory:
        for number in range(1, 300):
            written = bytes([number % 251]) * (2 * PAGE + 1)
            os.pwrite(writer, written, PAGE - 1)
            assert memory[PAGE - 1 : 3 * PAGE] == written
            assert os.pread(reader, 5 * PAGE, 0) == bytes(PAGE - 1) + written + bytes(PAGE)
    os.close(writer)
    os.close(reader)
    check_elsewhere()


def test_write_meets_what_a_shared_mapping_has_changed(run: Path, check_elsewhere: CheckElsewhere) -> None:
    path = run / "mapped"
    path.write_bytes(bytes(2 * PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 2 * PAGE) as memory:
        memory[10:14] = b"kept"
        memory[PAGE + 10 : PAGE + 14] = b"lost"
        writer = os.open(path, os.O_WRONLY)
        os.pwrite(writer, b"here", 20)
        os.pwrite(writer, bytes(PAGE), PAGE)
        os.close(writer)
        expected = (bytes(10) + b"kept" + bytes(6) + b"here").ljust(2 * PAGE, b"\0")
        assert memory[:] == expected
    assert path.read_bytes() == expected
    check_elsewhere()


def test_appends_of_several_handles_are_all_there(run: Path, check_elsewhere: CheckElsewhere) -> None:
    path = run / "log"
    handles = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(4)]
    for number in range(200):
        os.write(handles[number % 4], b"%03d\n" % number)
    for handle in handles:
        os.close(handle)
    assert path.read_bytes() == b"".join(b"%03d\n" % number for number in range(200))
    check_elsewhere()


def test_bytes_of_any_place_in_memory_are_written_as_they_are(
    run: Path, check_elsewhere: CheckElsewhere
) -> None:
    data = os.urandom(3 * 1024 * 1024 + 17)
    view = memoryview(data)
    writer = os.open(run / "file", os.O_WRONLY | os.O_CREAT)
    place = 0
    for length in (1, PAGE - 1, PAGE + 1, 1024 * 1024 + 3, 2 * 1024 * 1024):
        place += os.pwrite(writer, view[place : place + length], place)
    os.pwrite(writer, view[place:], place)
    os.close(writer)
    assert (run / "file").read_bytes() == data
    check_elsewhere()


def test_sendfile_and_splice_into_a_file_copy_it(
    run: Path, tmp_path: Path, check_elsewhere: CheckElsewhere
) -> None:
    data = os.urandom(300_001)
    (tmp_path / "source").write_bytes(data)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    writer = os.open(run / "sent", os.O_WRONLY | os.O_CREAT)
    place = 0
    while sent := os.sendfile(writer, source, place, len(data)):
        place += sent
    os.close(writer)
    assert (run / "sent").read_bytes() == data

    receiving, sending = os.pipe()
    writer = os.open(run / "spliced", os.O_WRONLY | os.O_CREAT)
    place = 0
    while count := os.splice(source, sending, 65536, offset_src=place):
        place += count
        while count:
            count -= os.splice(receiving, writer, count)
    for descriptor in (source, receiving, sending, writer):
        os.close(descriptor)
    assert (run / "spliced").read_bytes() == data
    check_elsewhere()


def test_memory_that_maps_the_file_itself_can_be_written_to_it(
    run: Path, check_elsewhere: CheckElsewhere
) -> None:
    path = run / "file"
    path.write_bytes(b"a" * PAGE + b"b" * PAGE)
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    with (
        mmap.mmap(reader, 2 * PAGE, prot=mmap.PROT_READ) as memory,
        memoryview(memory) as view,
        view[PAGE:] as second_page,
    ):
        assert os.pwrite(writer, second_page, 0) == PAGE
    os.close(reader)
    os.close(writer)
    assert path.read_bytes() == b"b" * 2 * PAGE
    check_elsewhere()


def test_roots_write_leaves_the_bits_that_lend_an_owners_rights(
    run: Path, check_elsewhere: CheckElsewhere
) -> None:
    path = run / "program"
    path.write_bytes(b"first")
    path.chmod(0o6755)
    with path.open("ab") as writer:
        writer.write(b"more")
    assert stat.S_IMODE(path.stat().st_mode) == 0o6755
    check_elsewhere()
