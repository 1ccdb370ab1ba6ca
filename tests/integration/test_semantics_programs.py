"""The promises to programs that take a POSIX filesystem for granted, on a real mount that lets other users in.

What is the same as on tmpfs, call by call, is in test_any_calls.py; here is what is written down.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.program import ROOT, Caller, Outcome, Program
from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess
from support.refusals import refused

from .conftest import next_run_name

OWNER = Caller(1000, 1000)
MEMBER = Caller(1001, 1001, (1000,))
STRANGER = Caller(1002, 1002)

MOMENT_NS = 1_700_000_000_123_456_789

DONE = Outcome("")


@pytest.fixture(scope="module")
def open_mount(mount_shared: Callable[..., MountProcess]) -> MountProcess:
    return mount_shared(options="insecure,timeo=20,allow_other")


@pytest.fixture
def run(open_mount: MountProcess) -> Path:
    """An open run that anybody may write in."""
    path = open_mount.make_run(next_run_name(), task="programs")
    path.chmod(0o777)
    return path


@pytest.fixture
def program(run: Path) -> Iterator[Program]:
    program = Program(os.fsencode(run))
    yield program
    program.close()


def put(path: Path, mode: int, content: bytes = b"content") -> Path:
    """A file of OWNER's."""
    path.write_bytes(content)
    os.chown(path, OWNER.uid, OWNER.gid)
    path.chmod(mode)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# --- permissions ---------------------------------------------------------------------------------------------


def test_permission_bits_hold_for_every_user(run: Path, program: Program) -> None:
    """P1. Modes, owners and groups, sticky directories among them, are enforced for every user that `allow_other` lets
    in, as on a local disk.
    """
    put(run / "file", 0o640)

    def write(caller: Caller) -> Outcome:
        return program.try_call(lambda _: open_and_close(b"file", os.O_WRONLY), caller)

    def read(caller: Caller) -> Outcome:
        return program.try_call(lambda _: open_and_close(b"file", os.O_RDONLY), caller)

    assert [read(caller) for caller in (OWNER, MEMBER, STRANGER)] == [DONE, DONE, Outcome("EACCES")]
    assert [write(caller) for caller in (OWNER, MEMBER, STRANGER)] == [
        DONE,
        Outcome("EACCES"),
        Outcome("EACCES"),
    ]
    for call in (lambda _: os.chmod(b"file", 0o666), lambda _: os.utime(b"file", ns=(1, 1))):
        assert program.try_call(call, STRANGER) == Outcome("EPERM")
    assert program.try_call(lambda _: os.chown(b"file", 1001, -1), OWNER) == Outcome("EPERM")


def test_sticky_directory_keeps_others_files(run: Path, program: Program) -> None:
    """P1. Modes, owners and groups, sticky directories among them, are enforced for every user that `allow_other` lets
    in, as on a local disk.
    """
    (run / "shared").mkdir()
    (run / "shared").chmod(0o1777)
    put(run / "shared" / "theirs", 0o666)
    put(run / "shared" / "own", 0o666)
    os.chown(run / "shared" / "own", STRANGER.uid, STRANGER.gid)

    assert program.try_call(lambda _: os.unlink(b"shared/theirs"), STRANGER) == Outcome("EPERM")
    assert program.try_call(lambda _: os.rename(b"shared/own", b"shared/theirs"), STRANGER) == Outcome(
        "EPERM"
    )
    assert program.try_call(lambda _: os.rename(b"shared/theirs", b"mine"), STRANGER) == Outcome("EPERM")
    assert program.try_call(lambda _: os.unlink(b"shared/own"), STRANGER) == DONE
    assert program.try_call(lambda _: os.unlink(b"shared/theirs"), OWNER) == DONE


def test_directory_with_the_setgid_bit_hands_its_group_down(run: Path, program: Program) -> None:
    (run / "shared").mkdir()
    os.chown(run / "shared", 0, 1234)
    (run / "shared").chmod(0o2777)

    program.try_call(lambda _: os.mkdir(b"shared/directory"), OWNER)
    program.try_call(lambda _: open_and_close(b"shared/file", os.O_CREAT | os.O_WRONLY), OWNER)

    for name in ("directory", "file"):
        status = (run / "shared" / name).stat()
        assert (status.st_uid, status.st_gid) == (OWNER.uid, 1234)
    assert mode_of(run / "shared" / "directory") & stat.S_ISGID
    assert not mode_of(run / "shared" / "file") & stat.S_ISGID


def open_and_close(path: bytes, flags: int) -> None:
    os.close(os.open(path, flags))


def overwrite(path: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, b"new", 0)
    os.close(descriptor)


CHANGES: dict[str, Callable[[bytes], None]] = {
    "write": overwrite,
    "truncate": lambda path: os.truncate(path, 3),
    "empty": lambda path: open_and_close(path, os.O_WRONLY | os.O_TRUNC),
    "empty, not opened for writing": lambda path: open_and_close(path, os.O_RDONLY | os.O_TRUNC),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_by_a_user_takes_privileges_away(run: Path, program: Program, change: str) -> None:
    """P2. Writing, truncating and chown by somebody other than root take the setuid bit from a file, and the setgid bit
    where its group may execute it.
    """
    for before, after in ((0o6777, 0o777), (0o4766, 0o766), (0o2777, 0o777)):
        put(run / "file", before)

        assert program.try_call(lambda _: CHANGES[change](b"file"), STRANGER) == DONE

        assert oct(mode_of(run / "file")) == oct(after)


def test_chown_takes_privileges_away(run: Path, program: Program) -> None:
    """P2. Writing, truncating and chown by somebody other than root take the setuid bit from a file, and the setgid bit
    where its group may execute it.
    """
    put(run / "file", 0o6755)
    member_of_both = Caller(OWNER.uid, OWNER.gid, (1234,))

    assert program.try_call(lambda _: os.chown(b"file", -1, 1234), member_of_both) == DONE

    assert oct(mode_of(run / "file")) == oct(0o755)


def test_root_keeps_a_files_privileges(run: Path, program: Program) -> None:
    put(run / "file", 0o6755)

    assert program.try_call(lambda _: CHANGES["empty"](b"file"), ROOT) == DONE

    assert oct(mode_of(run / "file")) == oct(0o6755)


# --- attributes ----------------------------------------------------------------------------------------------


def test_link_count_of_a_directory_counts_its_subdirectories(run: Path) -> None:
    """P3. A directory's link count is 2 and one for each directory in it, at every level of the tree; 0 once it is
    removed.
    """
    for name in ("directory", "directory/one", "directory/two"):
        (run / name).mkdir()
    (run / "directory" / "file").touch()
    descriptor = os.open(run / "directory" / "two", os.O_RDONLY)

    assert (run / "directory").stat().st_nlink == 4
    (run / "directory" / "two").rmdir()
    assert (run / "directory").stat().st_nlink == 3
    assert os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)
    for level in run.parents[:3]:
        directories = [path for path in level.iterdir() if path.is_dir() and not path.is_symlink()]
        assert level.stat().st_nlink == 2 + len(directories), level


def test_open_directory_that_was_replaced_has_no_links(run: Path) -> None:
    """P3. A directory's link count is 2 and one for each directory in it, at every level of the tree; 0 once it is
    removed.
    """
    (run / "old").mkdir()
    (run / "new").mkdir()
    descriptor = os.open(run / "old", os.O_RDONLY)

    (run / "new").rename(run / "old")

    assert os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)


def test_open_directory_of_a_run_that_was_removed_has_no_links(run: Path) -> None:
    """P3. A directory's link count is 2 and one for each directory in it, at every level of the tree; 0 once it is
    removed.
    """
    removed = run.with_name(next_run_name())
    removed.mkdir()
    descriptor = os.open(removed, os.O_RDONLY)
    try:
        assert os.fstat(descriptor).st_nlink == 2
        removed.rmdir()
        time.sleep(1.5)  # for so long the kernel shows what it knows itself, and asks then
        assert os.fstat(descriptor).st_nlink == 0
    finally:
        os.close(descriptor)


def ftruncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        os.ftruncate(file.fileno(), size)


@pytest.mark.parametrize("size", [0, 7])
@pytest.mark.parametrize("call", [os.truncate, ftruncate])
def test_truncation_to_the_same_size_moves_both_times(
    run: Path, size: int, call: Callable[[Path, int], None]
) -> None:
    """P4. Modification and change times move with the calls that POSIX names and with no other; a truncation moves both
    although the size stays. A second after a name came or went they are right, whoever looked at them meanwhile.
    """
    (run / "file").write_bytes(b"content"[:size])
    os.utime(run / "file", ns=(MOMENT_NS, MOMENT_NS))
    before = (run / "file").stat()

    call(run / "file", size)

    after = (run / "file").stat()
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_hole_is_counted_as_content(run: Path) -> None:
    """P5. A file takes as many blocks as its size, holes among them, whatever is stored; `SEEK_HOLE` finds its end."""
    with (run / "file").open("wb", buffering=0) as file:
        os.pwrite(file.fileno(), b"x", 1_000_000)

    assert (run / "file").stat().st_blocks == 1954  # of 512 bytes
    with (run / "file").open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 1_000_001


# --- contents ------------------------------------------------------------------------------------------------


def test_mapped_bytes_are_written_by_msync(run: Path) -> None:
    """P6. What was written through a shared mapping is read by everybody at once, and is as safe as a `write()` once
    `msync()` has returned.
    """
    (run / "file").write_bytes(bytes(10_000))
    with (run / "file").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[5000:5003] = b"abc"
        assert (run / "file").read_bytes()[5000:5003] == b"abc"
        memory.flush()
        assert os.pread(file.fileno(), 3, 5000) == b"abc"


def test_file_without_a_name_is_not_offered(run: Path) -> None:
    """P7. `O_TMPFILE` is EOPNOTSUPP; a file that was opened and then removed is read and written until it is closed."""
    with refused(errno.EOPNOTSUPP):
        os.open(run, os.O_TMPFILE | os.O_RDWR)
    descriptor = os.open(run / "file", os.O_CREAT | os.O_RDWR)
    (run / "file").unlink()
    os.write(descriptor, b"content")
    assert os.pread(descriptor, 100, 0) == b"content"
    assert os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)


def test_fallocate_is_refused_and_emulated(run: Path) -> None:
    """P8. `fallocate()` is EOPNOTSUPP, and `posix_fallocate()` writes zeros in its place."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (run / "file").open("wb") as file:
        assert libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(100)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        os.posix_fallocate(file.fileno(), 0, 10_000)
    assert (run / "file").read_bytes() == bytes(10_000)


def test_sync_waits_for_nothing_and_fsync_of_a_directory_for_its_files(
    master: MasterProcess, make_mount: MakeMount
) -> None:
    """P9. `sync()` and `syncfs()` wait for nothing: the kernel does not pass them on. `fsync()` of a directory makes
    the files in it durable as well.
    """
    mount = make_mount(options="insecure,timeo=60")
    run = mount.make_run(RUN)
    assert os.listdir(run) == []
    master.kill()
    (run / "file").write_text("content")
    descriptor = os.open(run, os.O_RDONLY)

    os.sync()
    assert ctypes.CDLL(None).syncfs(descriptor) == 0
    assert mount.status()["pending_count"] > 0
    master.start()
    os.fsync(descriptor)
    assert mount.status()["pending_count"] == 0
    os.close(descriptor)


# --- directories ---------------------------------------------------------------------------------------------


def test_places_in_a_directory_stay_while_its_names_change(run: Path) -> None:
    """P10. A directory that is read while its names come and go gives each name that stays once; `seekdir()` finds the
    places of `telldir()`, and `rewinddir()` takes a fresh look.
    """
    for number in range(1000):
        (run / f"{number}").touch()
    with DirectoryStream(run) as stream:
        names, places = [], []
        while True:
            place = stream.tell()
            name = stream.read()
            if name is None:
                break
            names.append(name)
            places.append(place)
        for number in range(0, 1000, 2):
            (run / f"{number}").unlink()
            (run / f"new-{number}").touch()

        stream.seek(places[500])
        rest = list(stream)

        staying = [name for name in names[500:] if (run / os.fsdecode(name)).exists()]
        assert [name for name in rest if name in staying] == staying
        assert len(rest) == len(set(rest))
        stream.rewind()
        assert {os.fsdecode(name) for name in stream} == {".", "..", *os.listdir(run)}


def test_directory_is_read_from_a_place_that_another_reader_told(run: Path) -> None:
    for number in range(10):
        (run / f"{number}").touch()
    with DirectoryStream(run) as stream:
        for _ in range(5):
            stream.read()
        place, rest = stream.tell(), list(stream)
    with DirectoryStream(run) as stream:
        stream.seek(place)

        assert list(stream) == rest
        assert len(rest) == 7


class DirectoryStream:
    """opendir(3) and what belongs to it. A context."""

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.opendir.restype = self._libc.readdir.restype = ctypes.c_void_p
        self._libc.telldir.restype = ctypes.c_long
        for function in (self._libc.readdir, self._libc.rewinddir, self._libc.closedir, self._libc.telldir):
            function.argtypes = [ctypes.c_void_p]
        self._libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
        self._stream = self._libc.opendir(os.fsencode(path))

    def __enter__(self) -> DirectoryStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._libc.closedir(self._stream)

    def __iter__(self) -> Iterator[bytes]:
        while (name := self.read()) is not None:
            yield name

    def read(self) -> bytes | None:
        """The next name, None at the end; `d_name` is at offset 19 on 64-bit Linux."""
        entry = self._libc.readdir(self._stream)
        return ctypes.string_at(entry + 19) if entry else None

    def tell(self) -> int:
        return int(self._libc.telldir(self._stream))

    def seek(self, place: int) -> None:
        self._libc.seekdir(self._stream, place)

    def rewind(self) -> None:
        self._libc.rewinddir(self._stream)
