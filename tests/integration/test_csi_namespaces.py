"""The CSI driver and mount namespaces besides its own: its container's, and whoever has copied what is mounted."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudai_daemon.mount_table import list_mounted
from support.csi_driver_process import CsiDriverProcess, run_driver
from support.files import has_content, wait_for_content
from support.master_process import MasterProcess
from support.mount_daemons import stopped
from support.mount_process import MakeMount, MountProcess, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the driver mounts as root")


@pytest.fixture
def token(master: MasterProcess) -> str:
    return master.make_token("user-123")


@pytest.fixture
def reader(make_mount: MakeMount) -> MountProcess:
    return make_mount()


@pytest.fixture
def shared_place(tmp_path: Path) -> Iterator[Path]:
    """A directory whose mounts are seen in other mount namespaces, as the kubelet's is in a driver's container."""
    place = tmp_path / "kubelet"
    place.mkdir()
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "--make-shared", place], check=True)
    yield place
    subprocess.run(["umount", "--recursive", "--lazy", place], check=True)


# What is mounted elsewhere when the namespace is made would stay mounted in it, whoever unmounts it outside, and the
# daemons of tests that run beside this one would wait for that in vain. Taking it away is to be seen nowhere else.
_IN_A_NAMESPACE = """
place=$1
shift
elsewhere() { findmnt --list --noheadings --output TARGET "$@" | grep -v "^$place"; }
elsewhere | while IFS= read -r other; do mount --make-private "$other"; done
elsewhere --types fuse.cloudai | while IFS= read -r other; do umount --lazy "$other"; done
exec "$@"
"""


def test_driver_in_a_container_of_its_own_serves_pods_outside_of_it(
    master: MasterProcess, token: str, shared_place: Path, reader: MountProcess
) -> None:
    """A mount namespace of its own, which is a new one each time, and mounts that go both ways."""
    driver = CsiDriverProcess(
        shared_place,
        master.address,
        *("--node-id", "node-1"),
        within=(
            *("unshare", "--mount", "--propagation", "unchanged", "--"),
            *("sh", "-c", _IN_A_NAMESPACE, "sh", str(shared_place)),
        ),
    )
    try:
        driver.start()
        volume = driver.publish_new(token)
        read_only = driver.publish(volume.volume_id, "reader", readonly=True)
        (volume.target / "file").write_text("content")
        assert has_content(read_only / "file", "content")
        with pytest.raises(OSError, match="Read-only file system"):
            (read_only / "more").touch()

        driver.kill_container()
        assert not has_content(volume.target / "file", "content")
        driver.start()

        wait_for_content(volume.target / "file", "content")
        wait_for_content(read_only / "file", "content")
        (volume.target / "more").write_text("content")
        for pod in ("pod", "reader"):
            driver.unpublish(volume.volume_id, pod)
        driver.unstage(volume.volume_id)
        assert not volume.target.exists()
        (place,) = [tree for tree in list_mounted() if tree.mount_point.is_relative_to(shared_place)]
        assert place.mount_point == shared_place
        wait_for_content(reader.mount_point / volume.run / "more", "content")
        assert driver.end(signal.SIGTERM) == 0
    finally:
        driver.clear()


@pytest.fixture
def driver(master: MasterProcess, tmp_path: Path) -> Iterator[CsiDriverProcess]:
    yield from run_driver(tmp_path / "csi", master.address)


@contextmanager
def another_namespace_with(staging: Path) -> Iterator[subprocess.Popen[str]]:
    """A mount namespace that has the staged volume whatever becomes of it here: each line that it is given is the name
    of an empty file, which it makes in the volume, and the line comes back then.
    """
    make_files = 'echo made; while read -r name; do : >"$0/$name"; echo "$name"; done'
    with subprocess.Popen(
        [
            *("unshare", "--mount", "--propagation", "private", "--"),
            *("sh", "-c", _IN_A_NAMESPACE, "sh", str(staging), "sh", "-c", make_files, str(staging)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "made\n"
        yield other
        other.communicate(timeout=10)


def test_volume_that_another_mount_namespace_has_still_is_unstaged(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    volume = driver.stage_new("pvc", token)
    staging = driver.staging(volume.volume_id)
    (staging / "file").write_text("content")
    with another_namespace_with(staging):
        driver.unstage(volume.volume_id)

        assert not driver.mount_processes()
        assert not list(driver.state_dir.iterdir())
    wait_for_content(reader.mount_point / volume.volume_context["run"] / "file", "content")


def test_what_another_mount_namespace_has_written_meanwhile_is_sent_before_the_daemon_ends(
    driver: CsiDriverProcess, master: MasterProcess, reader: MountProcess, token: str
) -> None:
    volume = driver.stage_new("pvc", token)
    staging = driver.staging(volume.volume_id)
    run = reader.mount_point / volume.volume_context["run"]
    (staging / "first").write_text("looked into, so that the master is not needed")
    wait_until((run / "first").exists, "the first file")
    supervisor, _ = driver.mount_processes()
    (daemon_log,) = driver.state_dir.glob("**/daemon.log")
    with another_namespace_with(staging) as other, daemon_log.open() as log:
        assert other.stdin is not None
        assert other.stdout is not None
        subprocess.run(["umount", staging], check=True)
        with master.silent():
            other.stdin.write("file\n")
            assert other.stdout.readline() == "file\n"
            # What a daemon is told meanwhile comes before what its supervisor tells it.
            with stopped(supervisor):
                unstaging = driver.start_unstaging(volume.volume_id)
                time.sleep(1)
            wait_until(lambda: "SIGTERM: unmounting" in daemon_log.read_text(), "the daemon is told to end")
            time.sleep(1)  # for a second signal
        unstaging.result()

        assert "not waiting for uploads" not in log.read()
    wait_until((run / "file").exists, "the file")
    assert not driver.mount_processes()
    assert not list(driver.state_dir.iterdir())
