"""A daemon that is killed while the kernel keeps one of its threads: what it served must not hang for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudai_daemon.exit_codes import ExitCode
from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.process_identity import ProcessIdentity
from cloudai_daemon.registry import list_live
from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, wait_until
from support.network_proxy import NetworkProxy, Way
from support.tree_snapshot import place_in

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="/proc/PID/wchan is for root")


@pytest.fixture
def proxy(master: MasterProcess) -> Iterator[NetworkProxy]:
    with NetworkProxy(master.address) as proxy:
        yield proxy


@pytest.fixture
def mount_by_proxy(
    master: MasterProcess, proxy: NetworkProxy, mounts: list[MountProcess], tmp_path: Path
) -> Callable[[str], MountProcess]:
    def make(options: str) -> MountProcess:
        mount = MountProcess(
            tmp_path / "mount", proxy.address, master.make_token("user-123"), options=options
        )
        mounts.append(mount)
        mount.start()
        return mount

    return make


@contextmanager
def stuck(mount: MountProcess, other: MountProcess, proxy: NetworkProxy) -> Iterator[None]:
    """The mount's daemon is killed and cannot leave; afterwards it has, and who waited for it got an error.

    A rename holds a directory and waits for the daemon, which waits for the master, of which news come meanwhile.
    """
    run = mount.make_run(RUN)
    (run / "old").write_bytes(b"content")
    (run / "known").touch()
    mount.wait_durable()
    elsewhere = place_in(mount, run, other)
    wait_until((elsewhere / "known").exists, "the run on the other mount")
    daemon = ProcessIdentity.of(mount.pid)
    proxy.swallow(Way.TO_MASTER)
    script = "import os, sys; os.rename(*sys.argv[1:])"
    words = [sys.executable, "-c", script, str(run / "old"), str(run / "new")]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as renaming:
        wait_until(lambda: waits_in(renaming.pid, "request_wait_answer"), "a rename that waits")
        (elsewhere / "known").unlink()
        wait_until(
            lambda: any(waits_in(task, "fuse_reverse_inval_entry") for task in tasks_of(daemon)),
            "news that wait for it",
        )
        daemon.send_signal(signal.SIGKILL)
        wait_until(lambda: daemon.is_stuck or not daemon.is_alive, "the daemon's death")
        proxy.restore()
        yield
        assert renaming.wait(20) != 0
    assert not daemon.is_stuck


def tasks_of(process: ProcessIdentity) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()]


def waits_in(task: int, function: str) -> bool:
    return function in Path(f"/proc/{task}/wchan").read_text()


def test_next_mount_lets_go_of_a_daemon_that_cannot_leave(
    mount_by_proxy: Callable[[str], MountProcess], make_mount: MakeMount, proxy: NetworkProxy
) -> None:
    """D14. A daemon that was killed while the kernel keeps one of its threads leaves with the next `cloudai mount` or
    `cloudai umount` of the place, or by its supervisor.
    """
    mount = mount_by_proxy("insecure,timeo=60")
    with stuck(mount, make_mount("other"), proxy):
        mount.start()

    mount.wait_durable()
    mount.umount()


def test_umount_lets_go_of_a_daemon_that_cannot_leave(
    mount_by_proxy: Callable[[str], MountProcess], make_mount: MakeMount, proxy: NetworkProxy
) -> None:
    """D14. A daemon that was killed while the kernel keeps one of its threads leaves with the next `cloudai mount` or
    `cloudai umount` of the place, or by its supervisor.
    """
    mount = mount_by_proxy("insecure,timeo=60")
    with stuck(mount, make_mount("other"), proxy):
        done = mount.cloudai("umount", str(mount.mount_point))
        assert done.returncode == 0, done.stderr
    mount.pid = 0


def test_supervisor_lets_go_of_a_daemon_that_cannot_leave(
    mount_by_proxy: Callable[[str], MountProcess], make_mount: MakeMount, proxy: NetworkProxy
) -> None:
    """D14. A daemon that was killed while the kernel keeps one of its threads leaves with the next `cloudai mount` or
    `cloudai umount` of the place, or by its supervisor.
    """
    mount = mount_by_proxy("insecure,timeo=60,supervise")
    with stuck(mount, make_mount("other"), proxy):
        wait_until(lambda: find_at(mount.mount_point) is not None, "another daemon")

    entry = find_at(mount.mount_point)
    assert entry is not None
    mount.pid = entry.process.pid
    mount.wait_durable()
    mount.umount()


STOPPED_SECONDS_MAX = 30.0
"""Ten for a sign of life, five for a look at the tree, and the rest for a loaded machine to start Python; the
answers themselves may take a minute and more."""

SILENT = "{mount}: the mount daemon does not answer: silent for 10 s"


@pytest.mark.parametrize(
    ("words", "exit_status", "line"),
    [
        (["status"], ExitCode.FAILED, SILENT),
        (["ls", "--mount", "{mount}"], ExitCode.FAILED, SILENT),
        (
            ["run", "--task", "training", "--mount", "{mount}", "--", "true"],
            ExitCode.NOT_STARTED,
            f"no run of 'training' could be made: {SILENT}",
        ),
        (
            ["umount", "--timeout", "3", "{mount}"],
            ExitCode.NOT_DURABLE,
            f"{SILENT}; what it staged is sent by the next `cloudai mount`",
        ),
    ],
    ids=["status", "ls", "run", "umount"],
)
def test_command_says_soon_that_a_daemon_that_was_stopped_does_not_answer(
    make_mount: MakeMount, tmp_path: Path, words: list[str], exit_status: ExitCode, line: str
) -> None:
    mount = make_mount()
    mount.umount()  # and mounted where `status` knows of no other
    mount.environment = {"CLOUDAI_RUNTIME_DIR": str(tmp_path / "run")}
    with_place = [word.format(mount=mount.mount_point) for word in words]
    done = mount.mount_command()
    assert done.returncode == 0, done.stderr
    (entry,) = list_live([tmp_path / "run"])
    mount.pid = entry.process.pid
    entry.process.send_signal(signal.SIGSTOP)
    began_seconds = time.monotonic()
    try:
        done = mount.cloudai(*with_place)
    finally:
        took_seconds = time.monotonic() - began_seconds
        entry.process.send_signal(signal.SIGCONT)

    assert (done.returncode, done.stderr) == (
        exit_status,
        f"cloudai: {line.format(mount=mount.mount_point)}\n",
    )
    assert took_seconds < STOPPED_SECONDS_MAX
    assert entry.process.is_alive
    assert os.listdir(mount.mount_point) == ["user-123"]  # it goes on as before


def test_command_for_a_path_ends_where_the_daemon_was_stopped(make_mount: MakeMount) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        done = mount.cloudai("wait", "--timeout", "1", str(run / "unknown"))
    finally:
        os.kill(mount.pid, signal.SIGCONT)

    assert done.returncode == 2
    assert done.stderr == f"cloudai: {run / 'unknown'}: what is mounted there does not answer\n"
    mount.umount()
