"""Removals of files: recorded here first, at the master within moments, and what others did before they arrived."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until
from support.network_proxy import NetworkProxy

DELAY_SECONDS = 2.0
"""Of the network of one mount: long enough for another to do something before a removal arrives."""


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def has_names(directory: Path, expected: list[str]) -> bool:
    return directory.is_dir() and names_in(directory) == expected


def is_read_only(path: Path) -> bool:
    try:
        path.open("r+b").close()
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def recorded_removals(mount: MountProcess) -> int:
    """How many a dead mount has left in its journal. SQLite repairs what it opens: so it opens a copy."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in mount.state_dir.glob("journal.sqlite*"):
            shutil.copy(path, scratch)
        with closing(sqlite3.connect(Path(scratch) / "journal.sqlite")) as database:
            return int(database.execute("SELECT count(*) FROM removals").fetchone()[0])


@contextmanager
def stopped(master: MasterProcess) -> Iterator[None]:
    """It answers nothing, and no connection to it breaks."""
    os.kill(master.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(master.pid, signal.SIGCONT)


def make_files(run: Path, count: int) -> None:
    for number in range(count):
        directory = run / f"directory-{number % 10}"
        directory.mkdir(exist_ok=True)
        (directory / f"file-{number}").write_bytes(b"%d" % number)


# --- durability ------------------------------------------------------------------------------------------


def test_removal_survives_the_death_of_the_daemon(make_mount: MakeMount, master: MasterProcess) -> None:
    """D10. A removal of a file survives the death of the mount daemon; it is at the master within a second while that
    answers, and after `fsync()` of its directory for certain.
    """
    mount = make_mount()
    run = mount.make_run(RUN)
    for name in ("first", "second", "kept"):
        (run / name).write_bytes(b"content")
    mount.wait_durable()

    with stopped(master):
        (run / "first").unlink()
        mount.kill()
    assert recorded_removals(mount) == 1
    mount.start()

    assert names_in(run) == ["kept", "second"]
    (run / "second").unlink()
    other = make_mount("other")
    wait_until(partial(has_names, run_in(other), ["kept"]), "the removals elsewhere", seconds_max=2.0)


def test_removal_is_at_the_master_when_its_directory_is_synced(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """D10. A removal of a file survives the death of the mount daemon; it is at the master within a second while that
    answers, and after `fsync()` of its directory for certain.
    """
    mount = make_mount()
    run = mount.make_run(RUN)
    make_files(run, 20)
    mount.wait_durable()
    for path in (run / "directory-3").iterdir():
        path.unlink()

    descriptor = os.open(run / "directory-3", os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)

    os.close(descriptor)
    mount.kill()
    master.restart()
    shutil.rmtree(mount.state_dir)  # as if the workstation were lost
    other = make_mount("other")
    assert names_in(run_in(other) / "directory-3") == []
    assert names_in(run_in(other) / "directory-4") == ["file-14", "file-4"]


def test_removed_tree_is_removed_elsewhere(
    run: Path, shared_mount: MountProcess, in_second_mount: Callable[[Path], Path]
) -> None:
    make_files(run, 500)
    (run / "kept").touch()
    elsewhere = in_second_mount(run)
    wait_until(partial(has_names, elsewhere / "directory-9", names_in(run / "directory-9")), "the files")
    shared_mount.wait_durable(run)

    subprocess.run(["rm", "-r", *(str(run / f"directory-{number}") for number in range(10))], check=True)

    assert names_in(run) == ["kept"]
    wait_until(partial(has_names, elsewhere, ["kept"]), "the removals elsewhere", seconds_max=2.0)
    shared_mount.wait_durable(run)
    assert names_in(run) == names_in(elsewhere) == ["kept"]


def test_removed_tree_stays_removed_through_the_deaths_of_daemon_and_master(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    make_files(run, 500)
    mount.wait_durable()
    removed = 0
    with stopped(master):
        for path in sorted(run.glob("*/*"))[:100]:
            path.unlink()
            removed += 1
            if removed == 20:
                break
        mount.kill()
    master.kill()
    waiting = recorded_removals(mount)
    master.start()
    left = {f"directory-{n % 10}/file-{n}" for n in range(500)}
    mount.start()
    found = {str(path.relative_to(run)) for path in run.glob("*/*")}
    assert waiting > 0
    assert len(found) == 480
    assert found < left

    mount.wait_durable()

    mount.kill()
    assert recorded_removals(mount) == 0
    other = make_mount("other")
    assert {str(path.relative_to(run_in(other))) for path in run_in(other).glob("*/*")} == found


def test_unmounting_sends_what_was_removed(make_mount: MakeMount) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    make_files(run, 20)
    mount.wait_durable()
    for path in (run / "directory-3").iterdir():
        path.unlink()

    mount.umount()

    assert recorded_removals(mount) == 0
    assert names_in(run_in(make_mount("other")) / "directory-3") == []


# --- others were faster ----------------------------------------------------------------------------------


class _SlowLine:
    """A mount behind a network that can be made slow, beside one that is not."""

    def __init__(self, slow: MountProcess, quick: MountProcess, proxy: NetworkProxy) -> None:
        self.run = slow.make_run(RUN)
        self.elsewhere = run_in(quick)
        self.slow = slow
        self.quick = quick
        self.proxy = proxy

    def write_files(self, *names: str) -> None:
        for name in names:
            (self.run / name).write_bytes(b"content of " + name.encode())
        self.slow.wait_durable()
        wait_until(lambda: all((self.elsewhere / name).exists() for name in names), "the files elsewhere")

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """What is removed meanwhile arrives after what is done elsewhere."""
        self.proxy.slow_down(delay_seconds=DELAY_SECONDS)
        try:
            yield
            self.quick.wait_durable()
        finally:
            self.proxy.slow_down()
        self.slow.wait_durable()

    def shown_at_both(self, expected: list[str]) -> bool:
        return names_in(self.run) == names_in(self.elsewhere) == expected


@pytest.fixture
def line(
    master: MasterProcess, make_mount: MakeMount, mounts: list[MountProcess], tmp_path: Path
) -> Iterator[_SlowLine]:
    with NetworkProxy(master.address) as proxy:
        slow = MountProcess(tmp_path / "slow", proxy.address, master.make_token("user-123"))
        mounts.append(slow)
        slow.start()
        yield _SlowLine(slow, make_mount("quick"), proxy)
        slow.kill()


def test_file_that_was_changed_elsewhere_is_shown_again(line: _SlowLine) -> None:
    """D11. A file that was changed elsewhere, or whose run was sealed, before its removal reached the master is shown
    again.
    """
    line.write_files("changed", "gone")

    with line.delayed():
        (line.run / "changed").unlink()
        (line.run / "gone").unlink()
        assert names_in(line.run) == []
        (line.elsewhere / "changed").write_bytes(b"changed elsewhere")

    wait_until(partial(line.shown_at_both, ["changed"]), "the changed file at both")
    assert (line.run / "changed").read_bytes() == b"changed elsewhere"


def test_files_of_a_run_that_was_sealed_are_shown_again(line: _SlowLine) -> None:
    """D11. A file that was changed elsewhere, or whose run was sealed, before its removal reached the master is shown
    again.
    """
    line.write_files("first", "second")
    line.proxy.slow_down(delay_seconds=DELAY_SECONDS)
    (line.run / "first").unlink()
    (line.run / "second").unlink()
    line.quick.seal(line.elsewhere)
    line.proxy.slow_down()

    wait_until(partial(has_names, line.run, ["first", "second"]), "the files")
    assert (line.run / "first").read_bytes() == b"content of first"
    assert "2 removed files are shown again: the run is sealed" in line.slow.log_text()
    # The refusal may come before the news of the sealing.
    wait_until(partial(is_read_only, line.run / "first"), "the sealing")
    with pytest.raises(OSError, match="Read-only file system"):
        (line.run / "first").unlink()
    assert line.slow.status()["pending_count"] == 0


def test_names_that_were_given_elsewhere_stay(line: _SlowLine) -> None:
    line.write_files("linked", "renamed", "replaced")

    with line.delayed():
        for name in ("linked", "renamed", "replaced"):
            (line.run / name).unlink()
        os.link(line.elsewhere / "linked", line.elsewhere / "link")
        os.rename(line.elsewhere / "renamed", line.elsewhere / "new-name")
        (line.elsewhere / "other").write_bytes(b"of the other mount")
        os.rename(line.elsewhere / "other", line.elsewhere / "replaced")

    wait_until(partial(line.shown_at_both, ["link", "new-name", "replaced"]), "the names at both")
    assert (line.run / "link").stat().st_nlink == 1
    assert (line.run / "replaced").read_bytes() == b"of the other mount"


def test_name_is_taken_again_while_its_removal_is_on_its_way(line: _SlowLine) -> None:
    line.write_files("a", "b", "c", "d")

    with line.delayed():
        for name in ("a", "b", "c", "d"):
            (line.run / name).unlink()
        (line.run / "a").write_bytes(b"anew")
        (line.run / "b").mkdir()
        (line.run / "b" / "inside").write_bytes(b"1")
        (line.run / "c").symlink_to("a")
        (line.run / "d").write_bytes(b"and away again")
        (line.run / "d").unlink()

    wait_until(partial(line.shown_at_both, ["a", "b", "c"]), "the names at both")
    wait_until(lambda: (line.elsewhere / "c").read_bytes() == b"anew", "the new content elsewhere")
    assert names_in(line.elsewhere / "b") == ["inside"]
