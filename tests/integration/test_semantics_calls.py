"""The promises on single system calls, on a real mount: locks, copies, masks, times, and what is not offered."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.raw_calls import UTIME_NOW, UTIME_OMIT, rename_with_flags, set_times
from support.refusals import refused

CONTENT = bytes(range(256)) * 1000
MOMENT_NS = 1_700_000_000_123_456_789

F_OFD_SETLK = 37
"""Of linux/fcntl.h, as the others below of their headers."""
FICLONE = 0x40049409
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_FIEMAP = 0xC020660B
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

TRY_TO_LOCK = """
import errno, fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *map(int, sys.argv[3:]))
    except OSError as error:
        sys.exit(errno.errorcode[error.errno])
"""


def try_to_lock(path: Path, call: str, *arguments: int) -> str:
    """What another process is told: "" when it has the lock, which ends with it."""
    command = [sys.executable, "-c", TRY_TO_LOCK, str(path), call, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_flock_holds_between_processes(run: Path) -> None:
    """P12. `flock()`, `fcntl()` and open file description locks hold between the programs of a mount."""
    (run / "file").touch()
    with (run / "file").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert try_to_lock(run / "file", "flock") == "EAGAIN"
    assert try_to_lock(run / "file", "flock") == ""


def test_record_locks_hold_for_their_range(run: Path) -> None:
    """P12. `flock()`, `fcntl()` and open file description locks hold between the programs of a mount."""
    (run / "file").write_bytes(CONTENT)
    with (run / "file").open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 100, 0)
        assert try_to_lock(run / "file", "lockf", 100, 50) == "EAGAIN"
        assert try_to_lock(run / "file", "lockf", 100, 100) == ""
        with (run / "file").open("r+b") as other:
            other.close()  # of this process too: with it go all of its record locks
        assert try_to_lock(run / "file", "lockf", 100, 50) == ""


def test_locks_of_an_open_file_description_hold_within_a_process(run: Path) -> None:
    """P12. `flock()`, `fcntl()` and open file description locks hold between the programs of a mount."""
    (run / "file").touch()
    whole_file = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with (run / "file").open("r+b") as one, (run / "file").open("r+b") as other:
        fcntl.fcntl(one, F_OFD_SETLK, whole_file)
        with refused(errno.EAGAIN):
            fcntl.fcntl(other, F_OFD_SETLK, whole_file)


def copy_file_range(source: int, target: int) -> None:
    while os.copy_file_range(source, target, len(CONTENT)):
        pass


def sendfile(source: int, target: int) -> None:
    offset_bytes = 0
    while sent_bytes := os.sendfile(target, source, offset_bytes, len(CONTENT)):
        offset_bytes += sent_bytes


def test_kernel_copies_between_files(run: Path, tmp_path: Path) -> None:
    """P13. `copy_file_range()` copies between files of a mount, and `sendfile()` into and out of it too."""
    (run / "file").write_bytes(CONTENT)
    (tmp_path / "file").write_bytes(CONTENT)
    cases: tuple[tuple[Callable[[int, int], None], Path, Path], ...] = (
        (copy_file_range, run / "file", run / "copy"),
        (sendfile, run / "file", run / "sent"),
        (sendfile, tmp_path / "file", run / "sent-into-it"),
        (sendfile, run / "file", tmp_path / "sent-out-of-it"),
    )
    for copy, source, target in cases:
        with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
            copy(reader.fileno(), writer.fileno())
        assert target.read_bytes() == CONTENT


def test_copy_within_a_file_must_not_overlap(run: Path) -> None:
    (run / "file").write_bytes(CONTENT)
    with (run / "file").open("r+b", buffering=0) as file:
        with refused(errno.EINVAL):
            os.copy_file_range(file.fileno(), file.fileno(), 1000, 0, 10)
        assert os.copy_file_range(file.fileno(), file.fileno(), 1000, 0, len(CONTENT)) == 1000
    assert (run / "file").read_bytes() == CONTENT + CONTENT[:1000]


def test_umask_of_a_program_takes_bits_from_what_it_makes(run: Path) -> None:
    """P14. A program's umask takes bits from the modes of what it makes, and of nothing else."""
    with umask(0o027):
        os.close(os.open(run / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mknod(run / "node", 0o100777)
        (run / "directory").mkdir(0o777)
        (run / "changed").touch()
        (run / "changed").chmod(0o777)

    modes = {path.name: path.stat().st_mode & 0o7777 for path in run.iterdir()}

    assert modes == {"file": 0o640, "node": 0o750, "directory": 0o750, "changed": 0o777}


def test_times_that_are_omitted_stay(run: Path) -> None:
    """P15. `utimensat()` sets either time, or both, or with `UTIME_NOW` and `UTIME_OMIT` to now or not at all, of a
    file or of a symlink itself.
    """
    (run / "file").touch()
    (run / "link").symlink_to("file")
    for name in ("file", "link"):
        path = run / name
        set_times(os.fsencode(path), MOMENT_NS, MOMENT_NS + 1)
        set_times(os.fsencode(path), UTIME_OMIT, MOMENT_NS + 2)
        assert (path.lstat().st_atime_ns, path.lstat().st_mtime_ns) == (MOMENT_NS, MOMENT_NS + 2)
        set_times(os.fsencode(path), MOMENT_NS + 3, UTIME_OMIT)
        assert (path.lstat().st_atime_ns, path.lstat().st_mtime_ns) == (MOMENT_NS + 3, MOMENT_NS + 2)
        before = path.lstat()
        set_times(os.fsencode(path), UTIME_OMIT, UTIME_OMIT)
        assert path.lstat() == before
        set_times(os.fsencode(path), UTIME_OMIT, UTIME_NOW)
        after = path.lstat()
        assert (after.st_atime_ns, after.st_mtime_ns > MOMENT_NS + 3) == (MOMENT_NS + 3, True)


def test_what_is_not_offered_is_refused_with_its_errno(run: Path) -> None:
    """L1. Not offered: exchange and whiteout by `renameat2()` (EINVAL), reflinks and extent maps (EOPNOTSUPP), the
    flags of `chattr` (ENOTTY).
    """
    (run / "file").write_bytes(CONTENT)
    (run / "other").touch()
    names = os.fsencode(run / "file"), os.fsencode(run / "other")
    for flag in (RENAME_EXCHANGE, RENAME_WHITEOUT):
        with refused(errno.EINVAL):
            rename_with_flags(*names, flag)
    with (run / "file").open("rb") as file, (run / "other").open("wb") as other:
        with refused(errno.EOPNOTSUPP):
            fcntl.ioctl(other, FICLONE, file.fileno())
        with refused(errno.EOPNOTSUPP):
            fcntl.ioctl(file, FS_IOC_FIEMAP, bytes(32))
        with refused(errno.ENOTTY):
            fcntl.ioctl(file, FS_IOC_GETFLAGS, bytes(8))
