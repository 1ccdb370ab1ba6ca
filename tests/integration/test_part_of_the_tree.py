"""A user, a task or a run as the root of a mount."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.helped_machine import HelpedMachine
from support.master_process import MasterProcess
from support.mount_process import MakeMount, MountProcess, wait_until

USER = "user-123"
MOUNT_FAILED = 32
NOT_STARTED = 125
RUN = "2026-11-20_15-04-05"
NEXT_RUN = "2026-11-20_15-04-06"

MountPart = Callable[..., MountProcess]


@pytest.fixture
def new_part(
    shared_master: MasterProcess, shared_mount: MountProcess, tmp_path: Path, mounts: list[MountProcess]
) -> MountPart:
    """A mount of a part of the shared master's tree that has not been started: `new_part(f"{USER}/task")`."""

    def make(path: str, options: str = "insecure,timeo=20", token: str = "") -> MountProcess:
        mount = MountProcess(
            tmp_path / str(len(mounts)),
            f"{shared_master.address}/{path}",
            token or shared_master.make_token(USER),
            options=options,
        )
        mounts.append(mount)
        return mount

    return make


@pytest.fixture
def mount_part(new_part: MountPart, mounts: list[MountProcess]) -> Iterator[MountPart]:
    """The same, started; unmounted in order afterwards."""

    def make(path: str, **arguments: str) -> MountProcess:
        mount = new_part(path, **arguments)
        mount.start()
        return mount

    yield make
    for mount in mounts:
        if mount.pid:
            mount.umount()
            assert "Traceback" not in mount.log_text()


def path_of(run: Path, mount: MountProcess) -> str:
    """The run's path in the master's tree."""
    return str(run.relative_to(mount.mount_point))


def test_user_is_mounted(shared_mount: MountProcess, run: Path, mount_part: MountPart) -> None:
    """N11. A mount shows the whole tree, or one user, task or run of it as its root; one that does not exist is
    refused when it is mounted.
    """
    part = mount_part(USER)

    (part.mount_point / "of-a-user" / RUN).mkdir(parents=True)
    (part.mount_point / "of-a-user" / RUN / "file").write_text("content")

    assert {"of-a-user", run.parent.name} <= set(os.listdir(part.mount_point))
    whole = shared_mount.mount_point / USER / "of-a-user" / RUN / "file"
    wait_until(whole.exists, "the file in the whole tree")
    assert whole.read_text() == "content"
    with pytest.raises(PermissionError):
        (part.mount_point / "file").touch()


def test_task_is_mounted_and_shows_new_runs(shared_mount: MountProcess, mount_part: MountPart) -> None:
    task = shared_mount.mount_point / USER / "of-a-task"
    task.mkdir()
    (task / RUN).mkdir()
    part = mount_part(f"{USER}/of-a-task")
    assert sorted(os.listdir(part.mount_point)) == [RUN, "latest"]
    assert os.readlink(part.mount_point / "latest") == RUN

    (task / NEXT_RUN).mkdir()

    wait_until(lambda: (part.mount_point / NEXT_RUN).is_dir(), "the new run")
    wait_until(lambda: os.readlink(part.mount_point / "latest") == NEXT_RUN, "the new `latest`")
    (task / NEXT_RUN).rmdir()
    wait_until(lambda: sorted(os.listdir(part.mount_point)) == [RUN, "latest"], "the run's removal")


def test_task_that_is_removed_and_made_again_is_the_same(
    shared_mount: MountProcess, mount_part: MountPart
) -> None:
    task = shared_mount.mount_point / USER / "made-again"
    task.mkdir()
    part = mount_part(f"{USER}/made-again")
    task.rmdir()
    wait_until(lambda: not os.path.lexists(task), "the removal")

    (task / RUN).mkdir(parents=True)

    wait_until(lambda: (part.mount_point / RUN).is_dir(), "the run of the task made again")


def test_run_is_mounted_and_shows_what_others_do_at_its_top(
    shared_mount: MountProcess, run: Path, mount_part: MountPart
) -> None:
    (run / "file").write_text("content")
    shared_mount.wait_durable(run)
    part = mount_part(path_of(run, shared_mount))
    top = part.mount_point
    assert os.listdir(top) == ["file"]
    assert (top / "file").read_text() == "content"

    (run / "directory").mkdir()
    (run / "file").rename(run / "renamed")
    (run / "directory" / "inner").write_text("inner")

    wait_until((top / "directory" / "inner").exists, "the directory")
    wait_until(lambda: sorted(os.listdir(top)) == ["directory", "renamed"], "the new name")
    run.chmod(0o711)
    wait_until(lambda: top.stat().st_mode & 0o777 == 0o711, "the mode of the run itself")
    assert top.stat().st_ino == (top / "directory" / "..").stat().st_ino
    assert top.stat().st_nlink == 3


def test_what_is_written_at_the_top_of_a_mounted_run_is_there_for_others(
    shared_mount: MountProcess, run: Path, mount_part: MountPart
) -> None:
    part = mount_part(path_of(run, shared_mount))

    (part.mount_point / "log").write_text("line\n")
    (part.mount_point / "directory").mkdir()
    (part.mount_point / "log").rename(part.mount_point / "directory" / "log")
    descriptor = os.open(part.mount_point, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)

    part.wait_durable()
    wait_until((run / "directory" / "log").exists, "the file in the whole tree")
    assert (run / "directory" / "log").read_text() == "line\n"


def test_commands_take_paths_of_the_mount(
    shared_mount: MountProcess, run: Path, mount_part: MountPart
) -> None:
    part = mount_part(path_of(run, shared_mount))
    file = part.mount_point / "file"
    file.write_text("content")

    part.wait_durable(file)
    assert part.status(file)["file"]["path"] == "file"
    assert part.status()["source"] == part.source
    runs = json.loads(part.cloudai("ls", "--json", str(part.mount_point)).stdout)
    assert [(run["path"], run["sealed"]) for run in runs] == [("", False)]
    assert part.cloudai("ls", str(part.mount_point)).stdout.endswith("Z  .\n")
    assert part.cloudai("warmup", str(file)).stdout == "1 file, 7 B: nothing to fetch\n"
    part.seal(part.mount_point)
    with pytest.raises(OSError) as raised:
        file.write_text("changed")
    assert raised.value.errno == errno.EROFS


def test_run_of_a_task_is_made_where_the_mount_shows_it(mount_part: MountPart, run: Path) -> None:
    user, task = mount_part(USER), mount_part(f"{USER}/{run.parent.name}")

    for part, name in ((user, "by-cloudai-run"), (task, run.parent.name)):
        done = part.cloudai(
            "run", "--mount", str(part.mount_point), "--task", name, "--", "sh", "-c", "echo x > /output/file"
        )
        assert done.returncode == 0, done.stderr
    assert (user.mount_point / "by-cloudai-run" / "latest" / "file").read_text() == "x\n"
    assert (task.mount_point / "latest" / "file").read_text() == "x\n"

    done = task.cloudai("run", "--mount", str(task.mount_point), "--task", "another", "--", "true")
    assert done.returncode == NOT_STARTED
    assert "the mount shows another part of the tree" in done.stderr


def test_part_is_mounted_read_only(shared_mount: MountProcess, run: Path, mount_part: MountPart) -> None:
    (run / "file").write_text("content")
    shared_mount.wait_durable(run)

    part = mount_part(path_of(run, shared_mount), options="insecure,timeo=20,ro")

    assert (part.mount_point / "file").read_text() == "content"
    with pytest.raises(OSError) as raised:
        (part.mount_point / "new").touch()
    assert raised.value.errno == errno.EROFS


def test_mounts_of_parts_share_a_cache(shared_mount: MountProcess, run: Path, new_part: MountPart) -> None:
    (run / "file").write_bytes(os.urandom(3 << 20))
    shared_mount.wait_durable(run)
    run_path = path_of(run, shared_mount)
    parts = [new_part(path) for path in (run_path, os.path.dirname(run_path), USER)]
    for part in parts:
        part.cache_dir = parts[0].cache_dir
        part.start()

    assert parts[0].cloudai("warmup", str(parts[0].mount_point)).returncode == 0
    for part in parts:
        place = part.mount_point / os.path.relpath(run_path, part.source.partition("/")[2])
        assert (place / "file").read_bytes() == (run / "file").read_bytes()

    assert [part.status()["fetched_bytes"] for part in parts] == [3 << 20, 0, 0]
    for part in parts:
        part.umount()


@pytest.mark.parametrize(
    "absent", ["nobody", "user-456", f"{USER}/none", f"{USER}/training/1999-11-20_15-04-05"]
)
def test_absent_part_is_refused(
    shared_master: MasterProcess, run: Path, new_part: MountPart, absent: str
) -> None:
    """N11. A mount shows the whole tree, or one user, task or run of it as its root; one that does not exist is
    refused when it is mounted.
    """
    shared_master.make_token("user-456")
    part = new_part(absent)

    done = part.mount_command()

    assert done.returncode == MOUNT_FAILED
    assert done.stderr == (f"cloudai: {part.source}: not found: the master shows no such user, task or run\n")
    assert not os.path.ismount(part.mount_point)


def test_mounted_run_that_is_removed_elsewhere_is_empty_and_takes_nothing(
    shared_mount: MountProcess, run: Path, mount_part: MountPart
) -> None:
    (run / "file").touch()
    shared_mount.wait_durable(run)
    part = mount_part(path_of(run, shared_mount))
    assert os.listdir(part.mount_point) == ["file"]
    (run / "file").unlink()
    run.rmdir()

    # W3, and as much again: a look that makes something would leave it behind if the news came in between.
    time.sleep(2)
    with pytest.raises(FileNotFoundError):
        (part.mount_point / "new").touch()
    assert os.listdir(part.mount_point) == []


def test_token_of_a_run_mounts_that_run(
    shared_master: MasterProcess, shared_mount: MountProcess, run: Path, mount_part: MountPart
) -> None:
    (run / "file").write_text("content")
    shared_mount.wait_durable(run)
    runs = json.loads(shared_mount.cloudai("ls", "--json", str(run)).stdout)
    token = shared_master.make_token(USER, task_id=runs[0]["task_id"])

    part = mount_part(path_of(run, shared_mount), token=token)

    assert (part.mount_point / "file").read_text() == "content"


def test_what_was_staged_in_a_part_is_sent_by_its_next_mount(
    shared_mount: MountProcess, run: Path, mount_part: MountPart
) -> None:
    part = mount_part(path_of(run, shared_mount))
    (part.mount_point / "file").write_text("content")
    part.kill()

    part.start()

    assert (part.mount_point / "file").read_text() == "content"
    part.wait_durable()
    wait_until((run / "file").exists, "the file in the whole tree")


def test_what_an_earlier_mount_left_outside_of_the_part_is_named_by_its_whole_path(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount, other = make_mount("mount"), make_mount("other")
    left, shown = mount.make_run(RUN), mount.make_run(NEXT_RUN)
    os.listdir(left)
    wait_until((other.mount_point / left.relative_to(mount.mount_point)).is_dir, "the run elsewhere")
    os.kill(master.pid, signal.SIGSTOP)
    (left / "file").write_text("content")
    mount.kill()
    os.kill(master.pid, signal.SIGCONT)
    other.seal(other.mount_point / left.relative_to(mount.mount_point))

    mount.source = f"{master.address}/{shown.relative_to(mount.mount_point)}"
    mount.start()

    wait_until(lambda: mount.status()["failed_count"] == 1, "the refusal of what is staged")
    assert [file["path"] for file in mount.status()["pending"]] == [f"/{USER}/training/{RUN}/file"]


def test_fstab_mounts_a_part_once_whatever_its_name(
    shared_master: MasterProcess, shared_mount: MountProcess
) -> None:
    (shared_mount.mount_point / USER / "a, b" / RUN).mkdir(parents=True)
    with HelpedMachine(shared_master.address, shared_master.make_token(USER)) as machine:
        source = f"{machine.source}/{USER}/a, b/"
        escaped = source.replace(" ", "\\040")
        fstab = machine.write_fstab(f"{escaped} {machine.mount_point} cloudai _netdev,{machine.options} 0 0")

        for _ in range(2):
            done = machine.run("mount", "--all", "--fstab", fstab)
            assert (done.returncode, done.stderr) == (0, "")

        assert machine.run("ls", machine.mount_point).stdout == f"{RUN}\nlatest\n"
        assert machine.run("findmnt", "-n", "-o", "SOURCE", machine.mount_point).stdout == f"{source}\n"
