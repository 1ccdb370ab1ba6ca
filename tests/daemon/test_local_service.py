"""`cloudai up` and `down` with a real master and a real mount, as `make up` and `make down` use them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.mount_table import find_mounted
from cloudai_daemon.process_identity import ProcessIdentity
from support.fake_mount import RunCloudai

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def places(tmp_path: Path, cloudai: RunCloudai) -> Iterator[tuple[str, ...]]:
    """The --mount and --state of this test; nothing runs there afterwards."""
    yield ("--mount", str(tmp_path / "mnt"), "--state", str(tmp_path / "state"))
    assert cloudai("down", "--state", tmp_path / "state").returncode == 0
    assert find_mounted(tmp_path / "mnt") is None


def test_up_starts_both_and_a_second_changes_nothing(
    cloudai: RunCloudai, places: tuple[str, ...], tmp_path: Path
) -> None:
    first = bring_up(cloudai, "--user", "user-123", *places)
    assert first["master_started"] is True
    assert first["mount_started"] is True
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / "token").stat().st_mode & 0o777 == 0o600
    second = bring_up(cloudai, *places)
    assert second == {**first, "master_started": False, "mount_started": False}


def test_down_leaves_the_data_and_up_finds_it(
    cloudai: RunCloudai, places: tuple[str, ...], tmp_path: Path
) -> None:
    first = bring_up(cloudai, "--user", "user-123", *places)
    run = ["run", "--task", "digits", "--name", "2026-11-20_15-04-05", "--"]
    done = cloudai(*run, "sh", "-c", "echo kept > /output/file; exit 3")
    assert done.returncode == 3, done.stderr
    assert cloudai("down", "--state", tmp_path / "state").returncode == 0
    assert find_mounted(tmp_path / "mnt") is None
    assert cloudai("down", "--state", tmp_path / "state").stdout == "nothing was running\n"
    again = bring_up(cloudai, *places)
    assert again["address"] == first["address"]
    file = tmp_path / "mnt" / "user-123" / "digits" / "2026-11-20_15-04-05" / "file"
    assert file.read_text() == "kept\n"
    assert json.loads(cloudai("ls", "--json").stdout)[0]["exit_status"] == 3


def test_up_starts_again_what_was_killed(
    cloudai: RunCloudai, places: tuple[str, ...], tmp_path: Path
) -> None:
    first = bring_up(cloudai, *places)
    kill(first["mount_pid"])
    second = bring_up(cloudai, *places)
    assert second["mount_started"] is True
    assert second["master_pid"] == first["master_pid"]
    kill(second["master_pid"])
    third = bring_up(cloudai, *places)
    assert third["master_started"] is True
    assert third["address"] == first["address"]
    assert third["mount_pid"] == second["mount_pid"]


def test_up_elsewhere_with_the_same_state_is_refused(
    cloudai: RunCloudai, places: tuple[str, ...], tmp_path: Path
) -> None:
    assert cloudai("up", *places).returncode == 0
    done = cloudai("up", "--mount", tmp_path / "other", "--state", tmp_path / "state")
    assert done.returncode == 2
    assert f"is mounted at {tmp_path / 'mnt'}" in done.stderr


def test_up_on_a_mount_point_that_is_not_empty_is_refused(
    cloudai: RunCloudai, places: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "file").touch()
    done = cloudai("up", *places)
    assert done.returncode == 32, done.stderr
    assert "not empty" in done.stderr


def test_foreground_mount_serves_until_it_is_unmounted(
    cloudai: RunCloudai, places: tuple[str, ...], tmp_path: Path
) -> None:
    address = bring_up(cloudai, *places)["address"]
    mount_point = tmp_path / "second"
    mount_point.mkdir()
    options = f"insecure,token_file={tmp_path}/state/token,state_dir={tmp_path}/s2,cache_dir={tmp_path}/c2"
    command = [REPOSITORY / ".venv/bin/cloudai", "mount", address, mount_point, "-o", options, "--foreground"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "serving" not in process.stderr.readline():
            assert process.poll() is None
        assert find_at(mount_point) is not None
        assert cloudai("umount", mount_point).returncode == 0
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_example_runs_to_its_end_and_goes_on_after_a_checkpoint(tmp_path: Path) -> None:
    command = [REPOSITORY / ".venv/bin/python", REPOSITORY / "examples/train_digits.py"]
    environment = {**os.environ, "CLOUDAI_OUTPUT": str(tmp_path)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    first = json.loads((tmp_path / "summary.json").read_text())
    assert first["epochs"] == 10
    assert first["test_accuracy"] > 0.95
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "last.safetensors").write_bytes((tmp_path / "epoch-8.safetensors").read_bytes())
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert "going on after epoch 8" in done.stdout
    second = json.loads((tmp_path / "summary.json").read_text())
    assert second["test_accuracy"] == first["test_accuracy"]


def bring_up(cloudai: RunCloudai, *arguments: str) -> dict[str, Any]:
    done = cloudai("up", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def kill(pid: int) -> None:
    process = ProcessIdentity.of(pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait_gone(10)
