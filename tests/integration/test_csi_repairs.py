"""The CSI driver's repairs of several volumes at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.csi_client import PublishedVolume
from support.csi_driver_process import CsiDriverProcess, run_driver, wait_for_supervisor
from support.files import has_content
from support.master_process import MasterProcess
from support.mount_daemons import stopped
from support.mount_process import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the driver mounts as root")

PODS = ("pod-0", "pod-1", "pod-2")


@pytest.fixture
def driver(master: MasterProcess, tmp_path: Path) -> Iterator[CsiDriverProcess]:
    yield from run_driver(tmp_path / "csi", master.address)


def is_readable(volume: PublishedVolume) -> bool:
    return has_content(volume.target / "file", "content")


def test_volume_whose_repair_takes_long_holds_up_no_other(
    driver: CsiDriverProcess, master: MasterProcess
) -> None:
    token = master.make_token("user-123")
    volumes = [driver.publish_new(token, f"pvc-{pod}", pod) for pod in PODS]
    for volume in volumes:
        (volume.target / "file").write_text("content")
    driver.kill_container()
    driver.start()

    # Which of them it is, is not known here; it is given up after half a minute.
    with stopped(wait_for_supervisor(driver)):
        wait_until(lambda: sum(map(is_readable, volumes)) == len(PODS) - 1, "all volumes but one")

    wait_until(lambda: all(map(is_readable, volumes)), "the last volume")
    for pod, volume in zip(PODS, volumes, strict=True):
        driver.unpublish(volume.volume_id, pod)
        driver.unstage(volume.volume_id)
