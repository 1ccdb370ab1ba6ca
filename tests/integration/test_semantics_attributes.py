"""The promises on attributes, on a real mount."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until
from support.refusals import refused
from support.tree_snapshot import assert_same_elsewhere, place_in

MountShared = Callable[..., MountProcess]

MOMENT_NS = 1_700_000_000_123_456_789


def test_mode_owner_and_time_are_kept(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    """T1. Mode, owner, group and modification time in nanoseconds are kept as they were set, so that a second
    `rsync -a` transfers nothing.
    """
    (run / "file").write_text("content")
    (run / "directory").mkdir()
    (run / "symlink").symlink_to("file")
    for number, name in enumerate(("file", "directory", "symlink")):
        os.chown(run / name, 1000 + number, 2000 + number, follow_symlinks=False)
        os.utime(run / name, ns=(1, MOMENT_NS + number), follow_symlinks=False)
    (run / "file").chmod(0o4711)
    (run / "directory").chmod(0o3750)

    assert_same_elsewhere(run, shared_mount, second_mount)
    elsewhere = place_in(shared_mount, run, second_mount)
    for number, (name, mode) in enumerate((("file", 0o4711), ("directory", 0o3750), ("symlink", 0o777))):
        status = (elsewhere / name).lstat()
        assert status.st_mode & 0o7777 == mode
        assert (status.st_uid, status.st_gid) == (1000 + number, 2000 + number)
        assert status.st_mtime_ns == MOMENT_NS + number


@pytest.mark.parametrize("moment_ns", [0, 1, 999_999_999, 2**31 * 10**9, 9_000_000_000_123_456_789])
def test_any_time_is_kept(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess, moment_ns: int
) -> None:
    """T1. Mode, owner, group and modification time in nanoseconds are kept as they were set, so that a second
    `rsync -a` transfers nothing.
    """
    (run / "file").touch()
    os.utime(run / "file", ns=(moment_ns, moment_ns))

    assert (run / "file").stat().st_mtime_ns == moment_ns
    assert_same_elsewhere(run, shared_mount, second_mount)


def test_time_before_1970_is_kept(run: Path, shared_mount: MountProcess, second_mount: MountProcess) -> None:
    """T1. Mode, owner, group and modification time in nanoseconds are kept as they were set, so that a second
    `rsync -a` transfers nothing.
    """
    (run / "file").touch()
    os.utime(run / "file", ns=(-1_500_000_000, -1_500_000_000))

    assert (run / "file").stat().st_mtime_ns == -1_500_000_000
    assert_same_elsewhere(run, shared_mount, second_mount)


@pytest.mark.parametrize(
    ("moment_seconds", "kept_ns"), [(2**34, 9223372036854775807), (-(2**34), -9223372036854775808)]
)
def test_time_beyond_what_can_be_kept_becomes_the_last_one(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess, moment_seconds: int, kept_ns: int
) -> None:
    """T1. Mode, owner, group and modification time in nanoseconds are kept as they were set, so that a second
    `rsync -a` transfers nothing. A time before 1677 or after 2262 becomes the first or the last that is kept.
    """
    (run / "file").write_text("content")
    os.utime(run / "file", (moment_seconds, moment_seconds))

    assert (run / "file").stat().st_mtime_ns == kept_ns
    # What is pending beside it is uploaded as ever.
    assert_same_elsewhere(run, shared_mount, second_mount)


def test_modification_times_move_as_on_a_local_disk(run: Path) -> None:
    (run / "directory").mkdir()
    path = run / "directory" / "file"
    path.write_text("content")
    for touched in (path, run / "directory"):
        os.utime(touched, ns=(MOMENT_NS, MOMENT_NS))

    path.read_text()
    path.chmod(0o600)
    assert path.stat().st_mtime_ns == MOMENT_NS
    assert path.stat().st_ctime_ns > MOMENT_NS
    assert (run / "directory").stat().st_mtime_ns == MOMENT_NS
    with path.open("a") as file:
        file.write("more")
    assert path.stat().st_mtime_ns > MOMENT_NS
    assert (run / "directory").stat().st_mtime_ns == MOMENT_NS
    path.rename(run / "directory" / "renamed")
    assert (run / "directory").stat().st_mtime_ns > MOMENT_NS


def test_owners_are_shown_as_stored_or_as_asked_for(
    run: Path, shared_mount: MountProcess, mount_shared: MountShared
) -> None:
    """T2. A mount without `uid=` and `gid=` shows the numeric owners as they are stored; with them everything is
    shown as that owner's, and `chown` to another is EPERM. A mount by somebody other than root shows everything
    as theirs.
    """
    (run / "file").write_text("content")
    os.chown(run / "file", 1234, 2345)
    shared_mount.wait_durable(run)
    other = mount_shared(options="insecure,timeo=20,uid=77,gid=88")
    elsewhere = place_in(shared_mount, run / "file", other)

    assert ((run / "file").stat().st_uid, (run / "file").stat().st_gid) == (1234, 2345)
    for path in (elsewhere, elsewhere.parent, elsewhere.parent.parent, other.mount_point):
        assert (path.stat().st_uid, path.stat().st_gid) == (77, 88), path
    with refused(errno.EPERM):
        os.chown(elsewhere, 78, -1)
    with refused(errno.EPERM):
        os.chown(elsewhere, -1, 89)
    os.chown(elsewhere, 77, 88)
    other.wait_durable()
    assert ((run / "file").stat().st_uid, (run / "file").stat().st_gid) == (1234, 2345)


def test_umask_hides_permission_bits(
    run: Path, shared_mount: MountProcess, mount_shared: MountShared
) -> None:
    (run / "file").touch()
    (run / "file").chmod(0o666)
    (run / "directory").mkdir()
    (run / "directory").chmod(0o777)
    shared_mount.wait_durable(run)
    other = mount_shared(options="insecure,timeo=20,umask=027")

    assert place_in(shared_mount, run / "file", other).stat().st_mode & 0o777 == 0o640
    assert place_in(shared_mount, run / "directory", other).stat().st_mode & 0o777 == 0o750
    assert (run / "file").stat().st_mode & 0o777 == 0o666


def test_access_time_is_kept_when_set_and_not_moved_by_reading(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    """T3. Access times are kept when they are set and not updated by reading."""
    (run / "file").write_text("content")
    os.utime(run / "file", ns=(MOMENT_NS, MOMENT_NS + 1))
    shared_mount.wait_durable(run)
    elsewhere = place_in(shared_mount, run / "file", second_mount)
    wait_until(elsewhere.exists, "the file elsewhere")

    for path in (run / "file", elsewhere):
        assert path.read_text() == "content"
        assert path.stat().st_atime_ns == MOMENT_NS


def test_extended_attributes_are_off(run: Path) -> None:
    """T4. Extended attributes are off (ENOTSUP) unless a mount has the option `xattr`: asking for them is the price of
    `ls -l` on most FUSE filesystems.
    """
    (run / "file").touch()
    with refused(errno.ENOTSUP):
        os.getxattr(run / "file", "user.key")
    with refused(errno.ENOTSUP):
        os.setxattr(run / "file", "user.key", b"value")
    with refused(errno.ENOTSUP):
        os.removexattr(run / "file", "user.key")


def test_df_shows_the_stores_size_and_what_is_free(run: Path, shared_master: MasterProcess) -> None:
    """T5. `df` shows the store's size and what is free in it."""
    shown, store = os.statvfs(run), os.statvfs(shared_master.data_dir)

    assert shown.f_blocks * shown.f_frsize == pytest.approx(store.f_blocks * store.f_frsize, rel=0.01)
    assert shown.f_bavail * shown.f_frsize == pytest.approx(store.f_bavail * store.f_frsize, rel=0.05)
    assert shown.f_namemax == 255


def test_inode_numbers_are_kept(make_mount: MakeMount) -> None:
    """T6. In a run an inode number stands for one file or directory, keeps to it through renames, and is the same on
    every mount, but for a directory that several mounts made at the same time or brought back after its removal.
    """
    mount = make_mount()
    run = mount.make_run(RUN)
    (run / "d").mkdir()
    (run / "d" / "file").write_bytes(b"content")
    os.symlink("file", run / "d" / "link")
    mount.wait_durable()
    os.link(run / "d" / "file", run / "other name")

    def numbers(directory: Path) -> dict[str, int]:
        return {str(path.relative_to(directory)): path.lstat().st_ino for path in directory.rglob("*")}

    first = numbers(run)
    assert first["other name"] == first["d/file"]
    assert len(set(first.values())) == len(first) - 1
    listed = {entry.name: entry.inode() for entry in os.scandir(run / "d")}
    assert listed == {"file": first["d/file"], "link": first["d/link"]}

    os.rename(run / "d", run / "moved")
    mount.wait_durable()
    moved = {re.sub(r"^d\b", "moved", name): number for name, number in first.items()}
    assert numbers(run) == moved
    mount.umount()
    mount.start()
    assert numbers(run) == moved
    assert numbers(run_in(make_mount("other"))) == moved


def test_file_past_the_size_limit_is_refused(run: Path) -> None:
    """A file has at most 1 TiB (EFBIG beyond)."""
    tebibyte = 1 << 40
    with (run / "file").open("wb", buffering=0) as file:
        os.truncate(run / "file", tebibyte)
        with refused(errno.EFBIG):
            os.truncate(run / "file", tebibyte + 1)
        with refused(errno.EFBIG):
            os.pwrite(file.fileno(), b"x", tebibyte)
        # Sparse here, but a terabyte of zeros to hash: not left for the uploader.
        os.truncate(run / "file", 0)
    assert (run / "file").stat().st_size == 0


def test_runs_own_attributes_are_kept(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    (run / "file").touch()
    run.chmod(0o750)
    os.chown(run, 5, 6)
    os.utime(run, ns=(MOMENT_NS, MOMENT_NS))

    assert_same_elsewhere(run, shared_mount, second_mount)
    assert run.stat().st_mtime_ns == MOMENT_NS
