"""The CSI driver as a cluster uses it: its real socket, a real master, real mounts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

import pytest

from support.csi_driver_process import CsiDriverProcess
from support.master_process import MasterProcess
from support.mount_process import MountProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the driver mounts as root")

USER = "user-123"


@pytest.fixture(scope="module")
def reader(mount_shared: Callable[..., MountProcess]) -> MountProcess:
    """Another machine's mount."""
    return mount_shared()


@pytest.fixture(scope="module")
def token(shared_master: MasterProcess) -> str:
    return shared_master.make_token(USER)


@pytest.fixture(scope="module")
def driver(
    shared_master: MasterProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CsiDriverProcess]:
    """For tests that break nothing."""
    directory = tmp_path_factory.mktemp("csi")
    with CsiDriverProcess(directory, shared_master.address, "--node-id", "node-1") as driver:
        yield driver


def exit_status(mount: MountProcess, run: str) -> int | None:
    """None for an open run."""
    listing = json.loads(mount.cloudai("ls", "--json", str(mount.mount_point)).stdout)
    (status,) = [found["exit_status"] for found in listing if found["path"] == run]
    return None if status is None else int(status)


def test_volume_lives_from_its_creation_to_a_sealed_run(
    driver: CsiDriverProcess, reader: MountProcess, token: str
) -> None:
    """Each call twice, as a cluster repeats what it has no answer to."""
    volume, again = (driver.create("pvc-life", token, task="life") for _ in range(2))
    assert volume == again
    run = volume.volume_context["run"]

    for _ in range(2):
        staging = driver.stage(volume.volume_id, token, context=volume.volume_context)
    for _ in range(2):
        target = driver.publish(volume.volume_id, "pod-1")
    (target / "model").write_bytes(b"weights")
    os.chown(target / "model", 1000, 1000)
    for _ in range(2):
        driver.unpublish(volume.volume_id, "pod-1")
    assert not target.exists()
    assert (reader.mount_point / run / "model").read_bytes() == b"weights"
    for _ in range(2):
        driver.unstage(volume.volume_id)
    assert not os.path.ismount(staging)
    assert not list(driver.state_dir.iterdir())
    assert exit_status(reader, run) is None
    for _ in range(2):
        driver.delete(volume.volume_id, token)
    assert exit_status(reader, run) == 0
