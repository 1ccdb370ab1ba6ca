"""The promises on names, on a real mount."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from support.mount_process import RUN, MountProcess, wait_until
from support.refusals import refused
from support.tree_snapshot import assert_same_elsewhere, place_in

MountShared = Callable[..., MountProcess]


RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_libc = ctypes.CDLL(None, use_errno=True)


def new_task() -> str:
    """The name of a task that no other test has."""
    return f"task-{secrets.token_hex(4)}"


def rename_with_flags(old: Path, new: Path, flags: int) -> None:
    """renameat2(2). Raises OSError."""
    at_cwd = -100
    if _libc.renameat2(at_cwd, os.fsencode(old), at_cwd, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.fixture
def task(shared_mount: MountProcess) -> Path:
    """A task of its own, without runs."""
    path = shared_mount.mount_point / "user-123" / new_task()
    path.mkdir()
    return path


# --- N1 ------------------------------------------------------------------------------------------------------


def test_other_users_tree_does_not_exist(
    run: Path, shared_mount: MountProcess, mount_shared: MountShared
) -> None:
    """N1. The tree is `<user>/<task>/<run>/...`; users see themselves, and what does not belong to them does not
    exist (ENOENT).
    """
    (run / "secret").write_text("of user-123")
    shared_mount.wait_durable(run)
    other = mount_shared("user-456")

    assert os.listdir(other.mount_point) == ["user-456"]
    assert os.listdir(shared_mount.mount_point) == ["user-123"]
    for path in (run / "secret", run, run.parent, run.parent.parent):
        with refused(errno.ENOENT):
            place_in(shared_mount, path, other).stat()
    with refused(errno.ENOENT):
        (place_in(shared_mount, run, other) / "mine").write_text("of user-456")


def test_two_users_may_have_tasks_and_runs_of_one_name(
    run: Path, shared_mount: MountProcess, mount_shared: MountShared
) -> None:
    """N1. The tree is `<user>/<task>/<run>/...`; users see themselves, and what does not belong to them does not
    exist (ENOENT).
    """
    (run / "file").write_text("of user-123")
    other = mount_shared("user-456")
    same_name = other.mount_point / "user-456" / run.parent.name / run.name
    same_name.mkdir(parents=True)
    (same_name / "file").write_text("of user-456")
    other.wait_durable()

    assert (run / "file").read_text() == "of user-123"


# --- N2 ------------------------------------------------------------------------------------------------------


def test_mkdir_makes_tasks_and_runs(
    task: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    """N2. `mkdir` at the second level makes a task, at the third a run; a run's name that is no time of the form
    `YYYY-MM-DD_HH-MM-SS` is refused with EINVAL.
    """
    assert os.listdir(task) == []
    (task / "2026-11-20_15-04-05").mkdir()

    assert sorted(os.listdir(task)) == ["2026-11-20_15-04-05", "latest"]
    wait_until(place_in(shared_mount, task / "2026-11-20_15-04-05", second_mount).is_dir, "the run elsewhere")


@pytest.mark.parametrize(
    "name", ["run-1", "2026-11-20", "2026-02-30_00-00-00", "2026-11-20_24-00-00", "2026-11-20_15-04-05.bak"]
)
def test_run_name_that_is_no_time_is_refused(task: Path, name: str) -> None:
    """N2. `mkdir` at the second level makes a task, at the third a run; a run's name that is no time of the form
    `YYYY-MM-DD_HH-MM-SS` is refused with EINVAL.
    """
    with refused(errno.EINVAL):
        (task / name).mkdir()
    assert os.listdir(task) == []


def test_mkdir_of_what_exists_is_refused(run: Path) -> None:
    (run / "dir").mkdir()
    for path in (run / "dir", run, run.parent, run.parent.parent):
        with refused(errno.EEXIST):
            path.mkdir()


def test_user_cannot_be_made_with_mkdir(shared_mount: MountProcess) -> None:
    with refused(errno.EPERM):
        (shared_mount.mount_point / "user-789").mkdir()


# --- N3 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 3])
def test_files_and_links_outside_a_run_are_refused(run: Path, level: int) -> None:
    """N3. Files, symlinks and hard links may only be inside a run; anywhere above it is EPERM."""
    outside = run.parents[level - 1]
    (run / "file").write_text("content")

    with refused(errno.EPERM):
        (outside / "file").write_text("content")
    with refused(errno.EPERM):
        (outside / "symlink").symlink_to("target")
    with refused(errno.EPERM):
        (outside / "link").hardlink_to(run / "file")
    with refused(errno.EPERM):
        (run / "file").rename(outside / "file")
    assert (run / "file").read_text() == "content"


def test_runs_and_tasks_keep_their_names(run: Path) -> None:
    with refused(errno.EPERM):
        run.rename(run.with_name("2001-01-01_00-00-00"))
    with refused(errno.EPERM):
        run.parent.rename(run.parent.with_name("other-task"))
    with refused(errno.EPERM):
        run.parent.chmod(0o700)


# --- N4 ------------------------------------------------------------------------------------------------------


def test_latest_is_a_symlink_to_the_newest_run(
    task: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    """N4. `<task>/latest` is a symlink to the newest run."""
    latest = task / "latest"
    assert not latest.is_symlink()
    (task / "2026-01-02_00-00-00").mkdir()
    assert os.readlink(latest) == "2026-01-02_00-00-00"
    (task / "2026-01-01_00-00-00").mkdir()
    assert os.readlink(latest) == "2026-01-02_00-00-00"
    (task / "2026-01-03_00-00-00").mkdir()
    assert os.readlink(latest) == "2026-01-03_00-00-00"
    (latest / "file").write_text("through the link")
    assert (task / "2026-01-03_00-00-00" / "file").read_text() == "through the link"

    elsewhere = place_in(shared_mount, latest, second_mount)
    wait_until(
        lambda: elsewhere.is_symlink() and os.readlink(elsewhere) == "2026-01-03_00-00-00", "elsewhere"
    )
    with refused(errno.EPERM):
        latest.unlink()


# --- N5 ------------------------------------------------------------------------------------------------------


def test_name_of_255_bytes_is_taken_and_of_256_refused(run: Path) -> None:
    """N5. A name has at most 255 bytes and any byte but `/` and NUL; longer names, and paths in a run of more than
    8191 bytes or 256 levels, are ENAMETOOLONG.
    """
    (run / ("a" * 255)).touch()
    for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to("x"), Path.stat):
        with refused(errno.ENAMETOOLONG):
            make(run / ("b" * 256))
    with refused(errno.ENAMETOOLONG):
        (run / ("a" * 255)).rename(run / ("b" * 256))
    assert os.listdir(run) == ["a" * 255]


def test_any_byte_but_slash_and_nul_makes_a_name(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    """N5. A name has at most 255 bytes and any byte but `/` and NUL; longer names, and paths in a run of more than
    8191 bytes or 256 levels, are ENAMETOOLONG.
    """
    root = os.fsencode(run)
    names = {bytes([byte]) for byte in range(1, 256)} - {b"/", b"."}
    for name in names:
        os.close(os.open(os.path.join(root, name), os.O_CREAT | os.O_WRONLY | os.O_EXCL))

    assert set(os.listdir(root)) == names
    assert_same_elsewhere(run, shared_mount, second_mount)


def make_levels(run: Path, name: str, count: int) -> tuple[int, int]:
    """Makes directories in each other until one is refused; how many were made, and the errno, 0 if none was."""
    descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for made in range(count):
            try:
                os.mkdir(name, dir_fd=descriptor)
            except OSError as error:
                return made, error.errno or 0
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        return count, 0
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("name", "levels"), [("d", 256), ("d" * 255, 32)])
def test_path_past_the_limits_is_refused(
    run: Path, shared_mount: MountProcess, name: str, levels: int
) -> None:
    """N5. A name has at most 255 bytes and any byte but `/` and NUL; longer names, and paths in a run of more than
    8191 bytes or 256 levels, are ENAMETOOLONG.
    """
    assert make_levels(run, name, 300) == (levels, errno.ENAMETOOLONG)
    shared_mount.wait_durable(run)


def test_longest_path_of_a_program_is_taken_in_any_directory(
    run: Path, shared_mount: MountProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PATH_MAX bounds what a program names below the directory that it is in."""
    (run / ("w" * 255)).mkdir()
    monkeypatch.chdir(run / ("w" * 255))
    directory = "/".join(["d" * 255] * 15)
    os.makedirs(directory)
    longest = f"{directory}/{'f' * 255}"
    assert len(longest) == 4095

    Path(longest).write_text("content")

    with refused(errno.ENAMETOOLONG):
        Path(f"{longest}f").touch()
    shared_mount.wait_durable(run)
    assert Path(longest).read_text() == "content"


@pytest.mark.parametrize("published", [False, True])
def test_directory_moved_so_deep_that_what_is_below_it_passes_the_limits_is_refused(
    run: Path, shared_mount: MountProcess, published: bool
) -> None:
    """N5. A name has at most 255 bytes and any byte but `/` and NUL; longer names, and paths in a run of more than
    8191 bytes or 256 levels, are ENAMETOOLONG.
    """
    (run / "deep").mkdir()
    assert make_levels(run / "deep", "d", 200) == (200, 0)
    assert make_levels(run, "e", 60) == (60, 0)
    if published:
        shared_mount.wait_durable(run)

    with refused(errno.ENAMETOOLONG):
        (run / "deep").rename(run.joinpath(*["e"] * 60, "deep"))
    (run / "deep").rename(run.joinpath(*["e"] * 55, "deep"))
    shared_mount.wait_durable(run)


# --- N6 ------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda run: (run / "file").open("r+b"),
    "open for appending": lambda run: (run / "file").open("ab"),
    "open with O_TRUNC": lambda run: (run / "file").open("wb"),
    "create": lambda run: (run / "new").touch(),
    "truncate": lambda run: os.truncate(run / "file", 1),
    "unlink": lambda run: (run / "file").unlink(),
    "mkdir": lambda run: (run / "new").mkdir(),
    "mkdir in a directory": lambda run: (run / "directory" / "new").mkdir(),
    "rmdir": lambda run: (run / "empty").rmdir(),
    "rename": lambda run: (run / "file").rename(run / "new"),
    "rename over another": lambda run: (run / "file").rename(run / "directory" / "file"),
    "symlink": lambda run: (run / "new").symlink_to("file"),
    "link": lambda run: (run / "new").hardlink_to(run / "file"),
    "chmod": lambda run: (run / "file").chmod(0o600),
    "chmod of the run": lambda run: run.chmod(0o700),
    "chown": lambda run: os.chown(run / "file", 1, 1),
    "utime": lambda run: os.utime(run / "file"),
    "utime of a symlink": lambda run: os.utime(run / "symlink", follow_symlinks=False),
}


def fill_run(run: Path) -> None:
    (run / "directory").mkdir()
    (run / "empty").mkdir()
    (run / "file").write_text("content")
    (run / "directory" / "file").write_text("content below")
    (run / "symlink").symlink_to("file")


@pytest.fixture(scope="module")
def sealed_run(shared_mount: MountProcess) -> Path:
    run = shared_mount.make_run(RUN, task=new_task())
    fill_run(run)
    shared_mount.seal(run)
    return run


@pytest.mark.parametrize("change", CHANGES)
def test_sealed_run_answers_every_change_with_erofs(sealed_run: Path, change: str) -> None:
    """N6. A sealed run answers every change with EROFS."""
    with refused(errno.EROFS):
        CHANGES[change](sealed_run)
    assert sorted(os.listdir(sealed_run)) == ["directory", "empty", "file", "symlink"]
    assert (sealed_run / "file").read_text() == "content"


def test_sealing_ends_writing_through_an_open_file(shared_mount: MountProcess, run: Path) -> None:
    """N6. A sealed run answers every change with EROFS."""
    with (run / "log").open("wb", buffering=0) as log:
        log.write(b"before\n")
        shared_mount.seal(run)
        with refused(errno.EROFS):
            log.write(b"after\n")
        with refused(errno.EROFS):
            os.ftruncate(log.fileno(), 0)
        with refused(errno.EROFS):
            os.fchmod(log.fileno(), 0o600)
    assert (run / "log").read_bytes() == b"before\n"


@pytest.fixture(scope="module")
def read_only_run(shared_mount: MountProcess, mount_shared: MountShared) -> Path:
    """An open run, in a mount with `ro`."""
    run = shared_mount.make_run(RUN, task=new_task())
    fill_run(run)
    shared_mount.wait_durable(run)
    mount = mount_shared(options="insecure,timeo=20,ro")
    return place_in(shared_mount, run, mount)


@pytest.mark.parametrize("change", CHANGES)
def test_read_only_mount_answers_every_change_with_erofs(read_only_run: Path, change: str) -> None:
    with refused(errno.EROFS):
        CHANGES[change](read_only_run)
    assert (read_only_run / "file").read_text() == "content"


def test_read_only_mount_makes_no_tasks_and_runs(read_only_run: Path) -> None:
    with refused(errno.EROFS):
        read_only_run.with_name("2001-01-01_00-00-00").mkdir()
    with refused(errno.EROFS):
        read_only_run.parent.with_name("new-task").mkdir()
    with refused(errno.EROFS):
        read_only_run.rmdir()


# --- N7, N8, N9, N10 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [False, True])
def test_rename_between_runs_is_exdev(run: Path, shared_mount: MountProcess, published: bool) -> None:
    """N7. `rename` works within a run; between runs it is EXDEV, and `mv` copies."""
    other_run = shared_mount.make_run(RUN, task=new_task())
    (run / "file").write_text("content")
    (run / "directory").mkdir()
    if published:
        shared_mount.wait_durable(run)

    for name in ("file", "directory"):
        with refused(errno.EXDEV):
            (run / name).rename(other_run / name)
    with refused(errno.EXDEV):
        (other_run / "link").hardlink_to(run / "file")
    (run / "file").rename(run / "directory" / "file")
    assert (run / "directory" / "file").read_text() == "content"
    assert os.listdir(other_run) == []


@pytest.mark.parametrize("published", [False, True])
def test_rename_follows_its_rules(run: Path, shared_mount: MountProcess, published: bool) -> None:
    """N7. `rename` works within a run; between runs it is EXDEV, and `mv` copies."""
    for name in ("empty", "full", "directory"):
        (run / name).mkdir()
    for name in ("full/file", "file", "other"):
        (run / name).write_text(name)
    if published:
        shared_mount.wait_durable(run)

    with refused(errno.EISDIR):
        (run / "file").rename(run / "empty")
    with refused(errno.ENOTDIR):
        (run / "empty").rename(run / "file")
    with refused(errno.ENOTEMPTY):
        (run / "directory").rename(run / "full")
    with refused(errno.EINVAL):
        (run / "full").rename(run / "full" / "below")
    with refused(errno.ENOENT):
        (run / "missing").rename(run / "new")
    with refused(errno.ENOENT):
        (run / "file").rename(run / "missing" / "new")
    with refused(errno.ENOTDIR):
        (run / "file").rename(run / "other" / "new")
    (run / "file").rename(run / "file")
    (run / "directory").rename(run / "empty")
    (run / "full").rename(run / "empty")
    assert sorted(os.listdir(run)) == ["empty", "file", "other"]
    assert (run / "empty" / "file").read_text() == "full/file"


@pytest.mark.parametrize("published", [False, True])
def test_rename_flags(run: Path, shared_mount: MountProcess, published: bool) -> None:
    """Not offered: locks between mounts, `RENAME_EXCHANGE` (EINVAL), device nodes."""
    (run / "one").write_text("1")
    (run / "two").write_text("2")
    if published:
        shared_mount.wait_durable(run)

    with refused(errno.EINVAL):
        rename_with_flags(run / "one", run / "two", RENAME_EXCHANGE)
    with refused(errno.EEXIST):
        rename_with_flags(run / "one", run / "two", RENAME_NOREPLACE)
    rename_with_flags(run / "one", run / "three", RENAME_NOREPLACE)
    assert sorted(os.listdir(run)) == ["three", "two"]
    assert (run / "two").read_text() == "2"
    assert (run / "three").read_text() == "1"


def test_rename_of_one_name_of_a_file_over_another_changes_nothing(run: Path) -> None:
    (run / "one").write_text("content")
    (run / "two").hardlink_to(run / "one")

    (run / "one").rename(run / "two")

    assert sorted(os.listdir(run)) == ["one", "two"]


def test_hard_links_share_content_and_attributes(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    """N8. Hard links work within a run. The master must answer, since a link is made there."""
    (run / "one").write_text("1")
    (run / "directory").mkdir()
    (run / "directory" / "two").hardlink_to(run / "one")
    with (run / "directory" / "two").open("a") as file:
        file.write("2")
    (run / "one").chmod(0o600)

    assert (run / "one").read_text() == "12"
    assert (run / "directory" / "two").stat().st_mode & 0o777 == 0o600
    assert (run / "one").stat().st_nlink == 2
    with refused(errno.EEXIST):
        (run / "directory" / "two").hardlink_to(run / "one")
    with refused(errno.EPERM):
        (run / "link").hardlink_to(run / "directory")
    (run / "one").rename(run / "three")
    (run / "directory" / "two").unlink()
    assert (run / "three").stat().st_nlink == 1
    assert_same_elsewhere(run, shared_mount, second_mount)


def test_device_nodes_fifos_and_sockets_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """N9. Device nodes, fifos and sockets are refused with EPERM."""
    with refused(errno.EPERM):
        os.mkfifo(run / "fifo")
    with refused(errno.EPERM):
        os.mknod(run / "null", 0o020666, os.makedev(1, 3))
    with refused(errno.EPERM):
        os.mknod(run / "disk", 0o060666, os.makedev(7, 0))
    monkeypatch.chdir(run)  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server, refused(errno.EPERM):
        server.bind("socket")
    assert os.listdir(run) == []


def test_rmdir_removes_empty_tasks_and_empty_open_runs(
    task: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    """N10. An empty task, and an empty open run, are removed by `rmdir`; a sealed run is not."""
    run = task / RUN
    run.mkdir()
    (run / "file").touch()
    elsewhere = place_in(shared_mount, run, second_mount)
    wait_until(elsewhere.exists, "the run elsewhere")

    with refused(errno.ENOTEMPTY):
        task.rmdir()
    with refused(errno.ENOTEMPTY):
        run.rmdir()
    (run / "file").unlink()
    run.rmdir()
    assert os.listdir(task) == []
    wait_until(lambda: not elsewhere.exists(), "the run's removal elsewhere")
    task.rmdir()
    assert not task.exists()
    wait_until(lambda: not elsewhere.parent.exists(), "the task's removal elsewhere")


def test_rmdir_refuses_sealed_runs_and_users(task: Path, shared_mount: MountProcess) -> None:
    """N10. An empty task, and an empty open run, are removed by `rmdir`; a sealed run is not."""
    run = task / RUN
    run.mkdir()
    shared_mount.seal(run)

    with refused(errno.EROFS):
        run.rmdir()
    with refused(errno.EPERM):
        task.parent.rmdir()
    assert run.is_dir()


# --- listings ------------------------------------------------------------------------------------------------


def test_listing_while_names_go_gives_each_that_stays_once(run: Path) -> None:
    for number in range(2000):
        (run / f"file-{number:04}").touch()
    seen: list[str] = []
    with os.scandir(run) as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) == 100:
                for number in range(0, 2000, 2):
                    (run / f"file-{number:04}").unlink()

    staying = {f"file-{number:04}" for number in range(1, 2000, 2)}
    assert staying <= set(seen)
    assert len(seen) == len(set(seen))
    for number in range(0, 2000, 2):
        assert not (run / f"file-{number:04}").exists(), "removed, and back by way of an old listing"


def test_rewound_listing_is_a_fresh_one(run: Path) -> None:
    (run / "one").touch()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    for function in (libc.readdir, libc.rewinddir, libc.closedir):
        function.argtypes = [ctypes.c_void_p]
    stream = libc.opendir(os.fsencode(run))
    try:
        assert _names_of(libc, stream) == {b".", b"..", b"one"}
        (run / "two").touch()
        (run / "one").unlink()
        libc.rewinddir(stream)
        assert _names_of(libc, stream) == {b".", b"..", b"two"}
    finally:
        libc.closedir(stream)


def _names_of(libc: ctypes.CDLL, stream: int) -> set[bytes]:
    """The names that readdir(3) gives until its end; `d_name` is at offset 19 on 64-bit Linux."""
    names = set()
    while entry := libc.readdir(stream):
        names.add(ctypes.string_at(entry + 19))
    return names


@pytest.mark.parametrize("published", [False, True])
def test_o_excl_and_mkdir_refuse_a_taken_name(run: Path, shared_mount: MountProcess, published: bool) -> None:
    (run / "file").write_text("content")
    if published:
        shared_mount.wait_durable(run)

    with refused(errno.EEXIST):
        os.open(run / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with refused(errno.EEXIST):
        (run / "file").mkdir()
    with refused(errno.EEXIST):
        (run / "file").symlink_to("x")
    with refused(errno.ENOTDIR):
        (run / "file" / "below").stat()
    with refused(errno.EISDIR):
        run.open("wb")
    assert (run / "file").read_text() == "content"
