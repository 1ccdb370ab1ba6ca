"""The promises on extended attributes, of mounts with `-o xattr`."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until
from support.refusals import refused
from support.tools import run_tool
from support.tree_snapshot import place_in
from support.xattrs import xattrs_of

from .conftest import next_run_name

ON = "insecure,timeo=20,xattr"
OLDER_MASTER = Path(__file__).parent.parent / "support" / "older_master"

XATTR_BYTES_MAX = 4096
"""Of names and values together."""

# That of mode 0640, in the kernel's form, which it looks at before it asks: owner, group, others.
SMALLEST_ACL = struct.pack("<I" + 3 * "HHI", 2, 1, 6, 2**32 - 1, 4, 4, 2**32 - 1, 0x20, 0, 2**32 - 1)


def has_content(path: Path, content: str) -> bool:
    return path.read_text() == content


@contextmanager
def by_user(uid: int) -> Iterator[None]:
    """What is done within is done with this user's rights."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture(scope="module")
def here(mount_shared: Callable[..., MountProcess]) -> MountProcess:
    return mount_shared(options=f"{ON},allow_other")


@pytest.fixture(scope="module")
def elsewhere(mount_shared: Callable[..., MountProcess]) -> MountProcess:
    return mount_shared(options=ON)


@pytest.fixture
def run(here: MountProcess) -> Path:
    return here.make_run(next_run_name())


@pytest.fixture
def file(run: Path) -> Path:
    (run / "file").write_text("content")
    return run / "file"


# --- what is kept ----------------------------------------------------------------------------------------


def test_files_and_directories_keep_attributes_of_the_user_namespace(run: Path, file: Path) -> None:
    """X1. Files and directories in a run, and the run's own directory, keep extended attributes of `user.`, with values
    of any bytes or none; a symlink has none (EPERM), and every other namespace is EOPNOTSUPP.
    """
    (run / "directory").mkdir()
    (run / "symlink").symlink_to("file")
    for path in (run, run / "directory", file):
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.binary", bytes(range(256)))
        os.setxattr(path, "user.binary", b"\0\xff")
        assert xattrs_of(path) == {"user.binary": b"\0\xff", "user.empty": b""}
        os.removexattr(path, "user.empty")
        with refused(errno.ENODATA):
            os.getxattr(path, "user.empty")
        with refused(errno.ENODATA):
            os.removexattr(path, "user.empty")
        assert os.listxattr(path) == ["user.binary"]

    with refused(errno.EPERM):
        os.setxattr(run / "symlink", "user.key", b"", follow_symlinks=False)
    assert os.listxattr(run / "symlink", follow_symlinks=False) == []
    for name in ("security.selinux", "security.key", "trusted.key", "system.posix_acl_access", "system.key"):
        with refused(errno.EOPNOTSUPP):
            os.getxattr(file, name)
        with refused(errno.EOPNOTSUPP):
            os.setxattr(file, name, SMALLEST_ACL if "acl" in name else b"value")
    assert os.listxattr(file) == ["user.binary"]


def test_open_file_without_a_name_has_them_too(file: Path) -> None:
    with file.open("rb") as opened:
        os.setxattr(opened.fileno(), "user.before", b"1")
        file.unlink()
        os.setxattr(opened.fileno(), "user.after", b"2")
        assert os.listxattr(opened.fileno()) == ["user.after", "user.before"]
    file.write_text("another")
    assert os.listxattr(file) == []


def test_what_was_set_survives_the_daemon_and_is_seen_elsewhere(make_mount: MakeMount) -> None:
    """X2. What `setxattr()` and `removexattr()` did survives the death of the mount daemon, and after `fsync()` the
    loss of the workstation; another mount shows it within two seconds.
    """
    mount = make_mount(options=ON)
    run = mount.make_run(RUN)
    (run / "directory").mkdir()
    (run / "directory" / "file").write_text("content")
    given = {"user.empty": b"", "user.binary": bytes(range(256)), "user.text": b"value"}
    for path in (run, run / "directory", run / "directory" / "file"):
        for name, value in given.items():
            os.setxattr(path, name, value)
        os.removexattr(path, "user.text")
    del given["user.text"]

    mount.restart()

    for path in (run, run / "directory", run / "directory" / "file"):
        assert xattrs_of(path) == given, path
    mount.wait_durable()
    other = make_mount("other", options=ON)
    for path in (run_in(other), run_in(other) / "directory", run_in(other) / "directory" / "file"):
        assert xattrs_of(path) == given, path

    os.setxattr(run / "directory", "user.later", b"news")
    wait_until(lambda: "user.later" in os.listxattr(run_in(other) / "directory"), "the news", seconds_max=2)
    os.removexattr(run / "directory", "user.later")
    wait_until(
        lambda: "user.later" not in os.listxattr(run_in(other) / "directory"), "the removal", seconds_max=2
    )
    assert xattrs_of(run_in(other) / "directory") == given


def test_what_was_set_while_the_master_was_away_survives_the_daemon(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """X2. What `setxattr()` and `removexattr()` did survives the death of the mount daemon, and after `fsync()` the
    loss of the workstation; another mount shows it within two seconds.
    """
    mount = make_mount(options=ON)
    run = mount.make_run(RUN)
    (run / "file").write_text("content")
    os.setxattr(run / "file", "user.goes", b"1")
    mount.wait_durable()
    master.kill()
    os.removexattr(run / "file", "user.goes")
    (run / "new").write_text("content")
    os.setxattr(run / "new", "user.key", b"value")
    mount.kill()

    master.start()
    # Whoever mounts next may do without them: what was acknowledged is sent all the same.
    mount.options = "insecure,timeo=20"
    mount.start()
    mount.wait_durable()

    other = run_in(make_mount("other", options=ON))
    assert xattrs_of(other / "file") == {}
    assert xattrs_of(other / "new") == {"user.key": b"value"}


def test_what_was_synced_survives_the_workstation(make_mount: MakeMount) -> None:
    """X2. What `setxattr()` and `removexattr()` did survives the death of the mount daemon, and after `fsync()` the
    loss of the workstation; another mount shows it within two seconds.
    """
    mount = make_mount(options=ON)
    run = mount.make_run(RUN)
    (run / "file").write_text("content")
    mount.wait_durable()
    with (run / "file").open("rb") as file:
        os.setxattr(file.fileno(), "user.key", b"value")
        os.fsync(file.fileno())
        mount.kill()
    shutil.rmtree(mount.state_dir)

    assert xattrs_of(run_in(make_mount("other", options=ON)) / "file") == {"user.key": b"value"}


def test_they_stay_with_the_file_whatever_is_done_to_it(
    run: Path, file: Path, here: MountProcess, elsewhere: MountProcess, shared_mount: MountProcess
) -> None:
    """X3. Extended attributes stay with a file or directory through renames, under each of its names and with new
    content, also where a mount without `xattr` changes it; they go with its last name.
    """
    os.setxattr(file, "user.key", b"value")
    here.wait_durable(run)
    os.link(file, run / "link")
    file.rename(run / "renamed")
    (run / "renamed").write_text("new content")
    (run / "renamed").chmod(0o600)
    assert xattrs_of(run / "link") == xattrs_of(run / "renamed") == {"user.key": b"value"}
    os.setxattr(run / "link", "user.other", b"")
    assert os.listxattr(run / "renamed") == ["user.key", "user.other"]
    here.wait_durable(run)

    without = place_in(here, run, shared_mount)
    wait_until((without / "renamed").exists, "the file on the mount without")
    (without / "renamed").write_text("newer content")
    (without / "renamed").chmod(0o640)
    os.rename(without / "link", without / "last")
    shared_mount.wait_durable(without)

    other = place_in(here, run, elsewhere)
    for last in (run / "last", other / "last"):
        wait_until(last.exists, "the name given elsewhere")
        wait_until(partial(has_content, last, "newer content"), "the content")
        assert xattrs_of(last) == {"user.key": b"value", "user.other": b""}
    for name in ("renamed", "last"):
        (run / name).unlink()
    (run / "last").write_text("another file")
    here.wait_durable(run)
    wait_until(partial(has_content, other / "last", "another file"), "the other file")
    assert xattrs_of(run / "last") == xattrs_of(other / "last") == {}


def test_what_is_too_much_is_refused_and_changes_nothing(
    run: Path, file: Path, here: MountProcess, elsewhere: MountProcess
) -> None:
    """X4. Names and values of one file or directory take at most 4096 bytes together; what would be more is ENOSPC, and
    changes nothing.
    """
    name = "user." + "n" * 250
    os.setxattr(file, name, b"")
    os.setxattr(file, "user.rest", bytes(XATTR_BYTES_MAX - 255 - len("user.rest")))
    for key, value in (("user.more", b""), (name, b"x")):
        with refused(errno.ENOSPC):
            os.setxattr(file, key, value)
    with refused(errno.ERANGE):
        os.setxattr(file, name + "n", b"")
    with refused(errno.E2BIG):
        os.setxattr(file, "user.big", bytes(64 * 1024 + 1))
    os.setxattr(run, "user.big", bytes(XATTR_BYTES_MAX - len("user.big")))

    here.wait_durable(run)
    other = place_in(here, file, elsewhere)
    for path in (file, other):
        assert xattrs_of(path) == {name: b"", "user.rest": bytes(XATTR_BYTES_MAX - 264)}
    os.removexattr(file, name)
    os.setxattr(file, "user.more", b"")


def test_flags_are_kept_to_and_names_come_in_their_order(file: Path) -> None:
    """X5. `XATTR_CREATE` and `XATTR_REPLACE` are kept to (EEXIST, ENODATA), and `listxattr()` gives the names in the
    order of their bytes.
    """
    with refused(errno.ENODATA):
        os.setxattr(file, "user.b", b"new", os.XATTR_REPLACE)
    os.setxattr(file, "user.b", b"first", os.XATTR_CREATE)
    with refused(errno.EEXIST):
        os.setxattr(file, "user.b", b"second", os.XATTR_CREATE)
    assert xattrs_of(file) == {"user.b": b"first"}
    os.setxattr(file, "user.b", b"third", os.XATTR_REPLACE)
    for name in ("user.c", "user.a", "user.\u00e4", "user.B"):
        os.setxattr(file, name, b"")

    assert os.listxattr(file) == ["user.B", "user.a", "user.b", "user.c", "user.\u00e4"]
    assert os.getxattr(file, "user.b") == b"third"
    with refused(errno.EINVAL):
        os.setxattr(file, "user.", b"")


def test_two_programs_cannot_both_create_one(file: Path) -> None:
    """X5. `XATTR_CREATE` and `XATTR_REPLACE` are kept to (EEXIST, ENODATA), and `listxattr()` gives the names in the
    order of their bytes.
    """
    script = """
import os, sys
path, made = sys.argv[1], 0
sys.stdin.readline()
for number in range(200):
    try:
        os.setxattr(path, f"user.{number}", b"", os.XATTR_CREATE)
        made += 1
    except FileExistsError:
        pass
print(made)
"""
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", script, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("go\n")
        program.stdin.flush()

    assert sum(int(program.communicate(timeout=60)[0]) for program in programs) == 200


def test_small_buffers_are_refused_and_sizes_told(file: Path) -> None:
    os.setxattr(file, "user.key", bytes(300))
    # Python asks with 128 bytes first, is told ERANGE, and asks again.
    assert len(os.getxattr(file, "user.key")) == 300
    for number in range(40):
        os.setxattr(file, f"user.{number:050}", b"")
    assert len(os.listxattr(file)) == 41


def test_change_time_moves_alone(run: Path, file: Path) -> None:
    """X6. Setting or removing an extended attribute moves the change time and no other, and is for those who may write
    the file (EACCES), in a sticky directory for its owner (EPERM).
    """
    os.utime(file, ns=(1, 2))
    changes: list[Callable[[], None]] = [
        lambda: os.setxattr(file, "user.key", b"value"),
        lambda: os.setxattr(file, "user.key", b"value"),
        lambda: os.removexattr(file, "user.key"),
    ]
    for change in changes:
        before = file.stat()
        change()
        after = file.stat()
        assert (after.st_atime_ns, after.st_mtime_ns, after.st_mode) == (1, 2, before.st_mode)
        assert after.st_ctime_ns > before.st_ctime_ns


def test_who_may_not_write_may_not_set(run: Path, file: Path, here: MountProcess) -> None:
    """X6. Setting or removing an extended attribute moves the change time and no other, and is for those who may write
    the file (EACCES), in a sticky directory for its owner (EPERM).
    """
    directory = run / "sticky"
    directory.mkdir()
    directory.chmod(0o1777)
    # The way to it, which root alone may go as pytest makes it.
    above = [path for path in here.mount_point.parents if not path.stat().st_mode & stat.S_IXOTH]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in above}
    for path in above:
        path.chmod(modes[path] | 0o011)
    try:
        os.setxattr(file, "user.key", b"value")
        file.chmod(0o644)
        with by_user(1000):
            assert os.getxattr(file, "user.key") == b"value"
            with refused(errno.EACCES):
                os.setxattr(file, "user.key", b"theirs")
            with refused(errno.EACCES):
                os.removexattr(file, "user.key")
            with refused(errno.EPERM):
                os.setxattr(directory, "user.key", b"theirs")
        file.chmod(0o600)
        with by_user(1000), refused(errno.EACCES):
            os.getxattr(file, "user.key")
        os.chown(file, 1000, 1000)
        with by_user(1000):
            os.setxattr(file, "user.key", b"theirs")
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert xattrs_of(file) == {"user.key": b"theirs"}


# --- where they are refused ------------------------------------------------------------------------------


def test_nothing_is_set_where_nothing_is_changed(
    run: Path, file: Path, here: MountProcess, mount_shared: Callable[..., MountProcess]
) -> None:
    """X7. A sealed run and a mount with `ro` answer a change of extended attributes with EROFS, the levels above the
    runs with EPERM; what is there is read.
    """
    for path in (run, file):
        os.setxattr(path, "user.key", b"value")
    here.seal(run)
    reading = mount_shared(options=f"{ON},ro")
    for mount in (here, reading):
        for path in (place_in(here, run, mount), place_in(here, file, mount)):
            assert xattrs_of(path) == {"user.key": b"value"}
            with refused(errno.EROFS):
                os.setxattr(path, "user.key", b"other")
            with refused(errno.EROFS):
                os.removexattr(path, "user.key")
    for path in (run.parent, run.parent.parent, here.mount_point):
        assert os.listxattr(path) == []
        with refused(errno.ENODATA):
            os.getxattr(path, "user.key")
        with refused(errno.EPERM):
            os.setxattr(path, "user.key", b"value")


def test_sealed_run_shows_them_while_the_master_is_away(make_mount: MakeMount, master: MasterProcess) -> None:
    mount = make_mount(options=ON)
    run = mount.make_run(RUN)
    (run / "file").write_text("content")
    for path in (run, run / "file"):
        os.setxattr(path, "user.key", b"value")
    mount.seal(run)
    reader = make_mount("reader", options=ON)
    assert xattrs_of(run_in(reader) / "file") == {"user.key": b"value"}
    reader.umount()
    reader.start()
    master.kill()

    assert xattrs_of(run_in(reader)) == {"user.key": b"value"}
    assert xattrs_of(run_in(reader) / "file") == {"user.key": b"value"}


def test_master_that_does_not_keep_them_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount_of: MakeMount, mounts: list[MountProcess]
) -> None:
    """X8. A mount with `xattr` of a master that does not keep extended attributes is refused."""
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", str(OLDER_MASTER))
        older = MasterProcess(tmp_path / "older")
        older.start()
    try:
        mount_of(older, "without")
        mount = MountProcess(tmp_path / "with", older.address, older.make_token("user-123"), options=ON)
        mounts.append(mount)

        result = mount.mount_command()

        assert result.returncode == 32
        (line,) = result.stderr.strip().splitlines()
        assert "the master keeps no extended attributes: mount without `xattr`, or upgrade it" in line
    finally:
        older.kill()


# --- programs --------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with extended attributes, on a local disk."""
    source = tmp_path / "source"
    (source / "directory").mkdir(parents=True)
    (source / "directory" / "file").write_text("content")
    (source / "symlink").symlink_to("directory/file")
    os.setxattr(source / "directory", "user.of-directory", b"1")
    os.setxattr(source / "directory" / "file", "user.of-file", b"\0\xff")
    os.setxattr(source / "directory" / "file", "user.empty", b"")
    return source


def assert_copied(copy: Path) -> None:
    assert xattrs_of(copy / "directory") == {"user.of-directory": b"1"}
    assert xattrs_of(copy / "directory" / "file") == {"user.of-file": b"\0\xff", "user.empty": b""}


def test_cp_and_rsync_keep_them(
    run: Path, source: Path, tmp_path: Path, here: MountProcess, elsewhere: MountProcess
) -> None:
    """X9. `cp -a` and `rsync -X` bring extended attributes into a run, within it, and out of it."""
    run_tool("cp", "-a", "--preserve=xattr", source, run / "by-cp")
    run_tool("rsync", "-aX", f"{source}/", run / "by-rsync")
    run_tool("cp", "-a", run / "by-rsync", run / "again")
    run_tool("rsync", "-aX", f"{run}/again/", tmp_path / "out")

    assert_copied(tmp_path / "out")
    assert run_tool("rsync", "-aX", "-in", f"{source}/", run / "by-rsync") == ""
    os.setxattr(source / "directory" / "file", "user.of-file", b"changed")
    assert "by-rsync" not in (changed := run_tool("rsync", "-aX", "-i", f"{source}/", run / "by-rsync"))
    assert "x directory/file" in changed
    os.setxattr(source / "directory" / "file", "user.of-file", b"\0\xff")
    run_tool("rsync", "-aX", f"{source}/", run / "by-rsync")
    here.wait_durable(run)
    for name in ("by-cp", "by-rsync", "again"):
        assert_copied(place_in(here, run, elsewhere) / name)
