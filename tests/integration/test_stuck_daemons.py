"""A daemon that is killed while the kernel keeps one of its threads: what it served must not hang for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.process_identity import ProcessIdentity
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
