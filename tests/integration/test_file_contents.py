"""Reading and writing through a real mount, as programs do it with system calls."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from support.mount_process import MountProcess, wait_until
from support.refusals import refused
from support.tools import run_tool
from support.tree_snapshot import CheckElsewhere, place_in

MIB = 1024 * 1024


@pytest.fixture(params=["staged", "published"])
def path(request: pytest.FixtureRequest, run: Path, shared_mount: MountProcess) -> Path:
    """A file of ten digits that the master does not have yet, and one that it has."""
    path = run / "file"
    path.write_bytes(b"0123456789")
    if request.param == "published":
        shared_mount.wait_durable(run)
    return path


# --- reading -------------------------------------------------------------------------------------------------


def test_read_past_the_end_returns_short_bytes(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 100, 7) == b"789"
        assert os.pread(file.fileno(), 100, 10) == b""
        assert os.pread(file.fileno(), 100, 1 << 41) == b""


def test_reader_sees_what_another_handle_writes(path: Path) -> None:
    with path.open("rb", buffering=0) as reader, path.open("r+b", buffering=0) as writer:
        assert os.pread(reader.fileno(), 100, 0) == b"0123456789"
        os.pwrite(writer.fileno(), b"ab", 4)
        assert os.pread(reader.fileno(), 100, 0) == b"0123ab6789"
        os.pwrite(writer.fileno(), b"grown", 10)
        assert os.pread(reader.fileno(), 100, 0) == b"0123ab6789grown"
        os.ftruncate(writer.fileno(), 3)
        assert os.pread(reader.fileno(), 100, 0) == b"012"


# In a process of its own each: a page that cannot be read ends the process with SIGBUS.

MAPPING = """
import mmap, sys
path, flags = sys.argv[1], mmap.MAP_SHARED if sys.argv[2] == "shared" else mmap.MAP_PRIVATE
file = open(path, "r+b")
memory = mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)
step = int(sys.argv[3])
for offset in range(0, len(memory), step):
    memory[offset:offset + 3] = b"abc"
print(memory[:12].hex())
memory.flush()
memory.close()
"""


def change_mapping(path: Path, kind: str, step: int) -> bytes:
    """Maps the file and writes three letters every `step` bytes; the first twelve bytes then mapped."""
    return bytes.fromhex(run_tool(sys.executable, "-c", MAPPING, path, kind, str(step)))


def test_private_mapping_keeps_its_changes_to_itself(path: Path) -> None:
    assert change_mapping(path, "private", 100) == b"abc3456789"
    assert path.read_bytes() == b"0123456789"


def test_shared_mapping_is_written_back(path: Path, check_elsewhere: CheckElsewhere) -> None:
    assert change_mapping(path, "shared", 5) == b"abc34abc89"
    assert path.read_bytes() == b"abc34abc89"
    check_elsewhere()


def test_mapping_of_many_chunks_is_written_back(
    run: Path, shared_mount: MountProcess, check_elsewhere: CheckElsewhere
) -> None:
    content = bytearray(os.urandom(9 * MIB))
    (run / "mapped").write_bytes(content)
    shared_mount.wait_durable(run)

    change_mapping(run / "mapped", "shared", MIB)

    for offset in range(0, len(content), MIB):
        content[offset : offset + 3] = b"abc"
    assert (run / "mapped").read_bytes() == content
    check_elsewhere()


# --- writing -------------------------------------------------------------------------------------------------


def test_o_trunc_empties_the_file(path: Path, check_elsewhere: CheckElsewhere) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    assert path.stat().st_size == 0
    os.close(descriptor)

    assert path.read_bytes() == b""
    check_elsewhere()


def test_o_append_writes_at_the_end(path: Path, check_elsewhere: CheckElsewhere) -> None:
    one = os.open(path, os.O_WRONLY | os.O_APPEND)
    two = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(one, b"a")
    os.write(two, b"b")
    os.lseek(one, 0, os.SEEK_SET)
    os.write(one, b"c")
    os.close(one)
    os.close(two)

    assert path.read_bytes() == b"0123456789abc"
    check_elsewhere()


def test_o_append_writes_after_what_another_mount_has_appended(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    log = run / "log"
    log.write_bytes(b"1 here\n")
    assert log.stat().st_size == 7
    shared_mount.wait_durable(run)
    elsewhere = place_in(shared_mount, log, second_mount)
    wait_until(elsewhere.exists, "the log elsewhere")
    with elsewhere.open("ab") as file:
        file.write(b"2 there\n")
    second_mount.wait_durable(elsewhere)
    wait_until(lambda: log.stat().st_size == 15, "the line here")

    with log.open("ab") as file:
        file.write(b"3 here\n")

    assert log.read_bytes() == b"1 here\n2 there\n3 here\n"
    shared_mount.wait_durable(run)
    wait_until(lambda: elsewhere.read_bytes() == b"1 here\n2 there\n3 here\n", "all lines elsewhere")


def test_append_needs_no_look_at_the_size_first(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    """The kernel's own idea of the size may be old; the end of the file is where the mount knows it to be."""
    log = run / "log"
    log.write_bytes(b"1 here\n")
    assert log.read_bytes() == b"1 here\n"
    shared_mount.wait_durable(run)
    elsewhere = place_in(shared_mount, log, second_mount)
    wait_until(elsewhere.exists, "the log elsewhere")
    with elsewhere.open("ab") as file:
        file.write(b"2 there\n")
    second_mount.wait_durable(elsewhere)
    # What comes by the same watch after it says that the line is known here; the log itself is not looked at.
    (elsewhere.parent / "mark").touch()
    wait_until((run / "mark").exists, "the mark here")

    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"3 here\n")
    os.close(descriptor)

    assert log.read_bytes() == b"1 here\n2 there\n3 here\n"
    shared_mount.wait_durable(run)
    wait_until(lambda: elsewhere.read_bytes() == b"1 here\n2 there\n3 here\n", "all lines elsewhere")


def test_write_past_the_end_leaves_a_hole_of_zeros(path: Path, check_elsewhere: CheckElsewhere) -> None:
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"end", 5 * MIB)

    assert path.read_bytes() == b"0123456789" + b"\0" * (5 * MIB - 10) + b"end"
    check_elsewhere()


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 4096, 4 * MIB, 4 * MIB + 1])
def test_truncate_cuts_or_adds_zeros(path: Path, size: int, check_elsewhere: CheckElsewhere) -> None:
    os.truncate(path, size)

    assert path.stat().st_size == size
    assert path.read_bytes() == (b"0123456789" + b"\0" * size)[:size]
    check_elsewhere()


def test_what_was_cut_off_does_not_come_back(path: Path, check_elsewhere: CheckElsewhere) -> None:
    os.truncate(path, 4)
    os.truncate(path, 8)
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"z", 9)

    assert path.read_bytes() == b"0123\0\0\0\0\0z"
    check_elsewhere()


def test_truncate_while_it_is_uploaded(run: Path, check_elsewhere: CheckElsewhere) -> None:
    content = os.urandom(32 * MIB)
    with (run / "big").open("wb", buffering=0) as file:
        for size in (9 * MIB + 5, 0, 3 * MIB, 1):
            file.seek(0)
            file.write(content)
            file.truncate(size)
        file.seek(0, os.SEEK_END)
        file.write(content)

    assert (run / "big").read_bytes() == content[:1] + content
    check_elsewhere()


def test_fallocate_is_refused_or_makes_the_size(run: Path) -> None:
    """glibc's posix_fallocate writes where the filesystem does not offer it."""
    with (run / "file").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)
    assert (run / "file").stat().st_size == 100_000


# --- open files whose names go or change ---------------------------------------------------------------------


def test_removed_file_is_read_and_written_through_its_handle(
    path: Path, run: Path, check_elsewhere: CheckElsewhere
) -> None:
    with path.open("r+b", buffering=0) as file:
        path.unlink()
        assert os.listdir(run) == []
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == b"0123456789"
        os.pwrite(file.fileno(), b"ab" * MIB, 5)
        assert os.pread(file.fileno(), 10, 3) == b"34ababab" + b"ab"
        os.ftruncate(file.fileno(), 6)
        os.fchmod(file.fileno(), 0o600)
        assert os.pread(file.fileno(), 100, 0) == b"01234a"
        path.write_bytes(b"another")
        assert os.pread(file.fileno(), 100, 0) == b"01234a"
    assert path.read_bytes() == b"another"
    check_elsewhere()


def test_fsync_of_a_removed_file_returns(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        path.unlink()
        file.write(b"nobody's")
        os.fsync(file.fileno())


def test_replaced_file_is_read_through_its_handle(
    path: Path, run: Path, check_elsewhere: CheckElsewhere
) -> None:
    with path.open("rb", buffering=0) as file:
        (run / "new").write_bytes(b"replacement")
        (run / "new").rename(path)
        assert file.read() == b"0123456789"
    assert path.read_bytes() == b"replacement"
    check_elsewhere()


def test_renamed_file_is_written_through_its_handle(
    path: Path, run: Path, check_elsewhere: CheckElsewhere
) -> None:
    (run / "directory").mkdir()
    with path.open("r+b", buffering=0) as file:
        path.rename(run / "directory" / "renamed")
        os.pwrite(file.fileno(), b"ab", 10)
        (run / "directory").rename(run / "moved")
        os.pwrite(file.fileno(), b"cd", 12)
        os.fsync(file.fileno())
        os.pwrite(file.fileno(), b"ef", 14)

    assert (run / "moved" / "renamed").read_bytes() == b"0123456789abcdef"
    assert os.listdir(run) == ["moved"]
    check_elsewhere()


def test_file_in_a_removed_directory_cannot_be_made(run: Path) -> None:
    (run / "directory").mkdir()
    descriptor = os.open(run / "directory", os.O_RDONLY | os.O_DIRECTORY)
    (run / "directory").rmdir()
    with refused(errno.ENOENT):
        os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    with refused(errno.ENOENT):
        os.mkdir("file", dir_fd=descriptor)
    os.close(descriptor)


def test_directory_and_file_descriptors_sync(path: Path, run: Path) -> None:
    for target in (path, run):
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.fdatasync(descriptor)
        os.close(descriptor)
