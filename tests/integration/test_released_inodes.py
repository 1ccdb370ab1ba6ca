"""What a mount holds for the kernel and for programs goes when they let go of it: the gauges of a real mount."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from support.held import Held, held_by
from support.mount_process import RUN, MakeMount, wait_until


def fill(directory: Path) -> None:
    """22 inodes, the directory among them: 10 files, one with a second name, 10 symlinks and 1 directory."""
    directory.mkdir()
    for number in range(10):
        (directory / f"file-{number}").write_bytes(b"content")
        (directory / f"link-{number}").symlink_to(f"file-{number}")
    (directory / "second").hardlink_to(directory / "file-0")
    (directory / "below").mkdir()


def test_gauges_go_back_when_programs_close_and_remove(make_mount: MakeMount) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    assert os.listdir(run) == []
    before = held_by(mount)
    with ExitStack() as opened:
        fill(run / "directory")
        for number in range(10):
            opened.enter_context((run / "directory" / f"file-{number}").open())
        for _ in range(3):
            opened.callback(os.close, os.open(run / "directory", os.O_RDONLY))
        assert held_by(mount) == Held(
            10, before.directories + 3, before.referenced_inodes + 22, before.known_inodes + 22
        )
        shutil.rmtree(run / "directory")
        # Without a name, and open: 10 files and the directory.
        mount.wait_durable()
        wait_until(
            lambda: held_by(mount)[2:] == (before.referenced_inodes + 11, before.known_inodes + 11), "11 left"
        )

    wait_until(lambda: held_by(mount) == before, f"all that is held: {before}")


def test_gauges_go_back_when_what_was_seen_is_removed_elsewhere(make_mount: MakeMount) -> None:
    mount, other = make_mount(), make_mount("other")
    run = mount.make_run(RUN)
    elsewhere = other.mount_point / run.relative_to(mount.mount_point)
    wait_until(elsewhere.exists, "the run elsewhere")
    assert os.listdir(elsewhere) == []
    before = held_by(other)
    fill(run / "directory")
    wait_until((elsewhere / "directory" / "below").exists, "the tree elsewhere")
    for path in (elsewhere / "directory").iterdir():
        path.lstat()
    assert held_by(other).known_inodes == before.known_inodes + 22

    shutil.rmtree(run / "directory")

    wait_until(lambda: held_by(other) == before, f"all that is held: {before}")


def test_gauges_go_back_when_tasks_and_runs_are_removed(make_mount: MakeMount) -> None:
    mount = make_mount()
    mount.make_run(RUN)
    user = mount.mount_point / "user-123"
    before = held_by(mount)
    for number in range(5):
        run = mount.make_run(RUN, task=f"task-{number}")
        assert (user / f"task-{number}" / "latest").resolve() == run
        run.rmdir()
        run.parent.rmdir()

    wait_until(lambda: held_by(mount) == before, f"all that is held: {before}")
