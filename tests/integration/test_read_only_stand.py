"""The bind mounts of read-only volumes, without an engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudai_daemon import volume_driver
from cloudai_daemon.mount_table import find_mounted, unmount
from cloudai_daemon.volume_driver import VolumeDriver
from cloudai_daemon.volume_records import VolumeOptions, VolumeRecord, VolumeRecords, VolumeRefused
from support.tools import run_tool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts as root")

ON_A_MACHINE_WITHOUT_USER_NAMESPACES = """
import sys
from pathlib import Path
from cloudai_daemon import read_only_stand

def refuse():
    raise PermissionError(1, "refused")

read_only_stand.enter_new_user_namespace = refuse
try:
    read_only_stand.main(Path(sys.argv[1]), Path(sys.argv[2]))
except OSError as error:
    print(error.strerror)
"""

KILLED_WHILE_IT_IS_MADE = """
import os
import signal
import sys
from pathlib import Path
from cloudai_daemon import read_only_stand

def kill_both():
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

read_only_stand.enter_new_user_namespace = kill_both
read_only_stand.main(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Path]:
    """Where the volume `v` of `records` is bound; nothing is mounted there afterwards."""
    stand = tmp_path / "stands/v"
    yield stand
    while find_mounted(stand) is not None:
        unmount(stand)


@pytest.fixture
def records(tmp_path: Path) -> VolumeRecords:
    return VolumeRecords(tmp_path / "records")


@pytest.fixture
def driver(tmp_path: Path, records: VolumeRecords, monkeypatch: pytest.MonkeyPatch) -> VolumeDriver:
    """Of directories that are no mount's."""
    monkeypatch.setattr(volume_driver, "_require_alive", lambda mount_point: None)
    return VolumeDriver(tmp_path, records, tmp_path / "stands")


def volume_of(directory: Path) -> VolumeRecord:
    directory.mkdir(exist_ok=True)
    directory.joinpath(directory.name).touch()
    return VolumeRecord(
        name="v",
        mount_point=directory.parent,
        options=VolumeOptions(task="training", read_only=True),
        task_id="t",
        path=directory.name,
    )


def test_machine_without_user_namespaces_is_told_so_and_nothing_stays_mounted(tmp_path: Path) -> None:
    directory, stand = tmp_path / "directory", tmp_path / "stand"
    directory.mkdir()
    stand.mkdir()

    said = run_tool(sys.executable, "-c", ON_A_MACHINE_WITHOUT_USER_NAMESPACES, str(directory), str(stand))

    assert said.strip() == "user namespaces are not allowed here: no read-only volume can be made"
    assert find_mounted(stand) is None


def test_stand_that_is_half_made_is_nowhere(tmp_path: Path, stand: Path) -> None:
    """It would be read-only, and not locked, which is not to be told from one that is."""
    directory = tmp_path / "directory"
    directory.mkdir()
    stand.mkdir(parents=True)

    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_IT_IS_MADE, directory, stand], check=False, timeout=20
    )

    assert killed.returncode == -signal.SIGKILL
    assert find_mounted(stand) is None


def test_volume_of_a_name_that_another_had_shows_its_own_run(
    tmp_path: Path, records: VolumeRecords, driver: VolumeDriver, stand: Path
) -> None:
    records.save(volume_of(tmp_path / "first"))
    driver.mount("v")
    # What keeps the stand busy while the volume is removed.
    with stand.joinpath("first").open():
        driver.remove("v")
        assert find_mounted(stand) is not None
        records.save(volume_of(tmp_path / "second"))

        assert [path.name for path in driver.mount("v").iterdir()] == ["second"]


def test_stand_whose_making_was_cut_off_is_not_taken_for_a_read_only_one(
    tmp_path: Path,
    records: VolumeRecords,
    driver: VolumeDriver,
    stand: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cut_off(directory: Path, stand: Path, seconds_max: float) -> None:
        run_tool("mount", "--bind", directory, stand)
        raise TimeoutError(0, "not mounted after 4 s", str(stand))

    monkeypatch.setattr(volume_driver, "make_read_only_stand", cut_off)
    records.save(volume_of(tmp_path / "run"))

    with pytest.raises(VolumeRefused):
        driver.mount("v")

    assert find_mounted(stand) is None
