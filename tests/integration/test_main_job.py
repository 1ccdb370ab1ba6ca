"""The main job, as its users do it: a training task through `cloudai run`, read on another mount."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from support.mount_process import MakeMount

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_digits.py"


def test_training_task_writes_to_output_and_people_read_it_elsewhere(make_mount: MakeMount) -> None:
    mount, other = make_mount(), make_mount("other")

    result = mount.cloudai(
        "run", "--mount", str(mount.mount_point), "--task", "digits", "--", sys.executable, str(EXAMPLE)
    )

    assert result.returncode == 0, result.stderr
    latest = other.mount_point / "user-123" / "digits" / "latest"
    names = {path.name for path in latest.iterdir()}
    assert names == {
        "metrics.csv",
        "train.log",
        "last.safetensors",
        "training.png",
        "summary.json",
        *(f"epoch-{epoch}.safetensors" for epoch in range(1, 11)),
    }
    assert len((latest / "metrics.csv").read_text().splitlines()) == 11
    assert (latest / "training.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((latest / "summary.json").read_text())["epochs"] == 10
    last, tenth = load_file(latest / "last.safetensors"), load_file(latest / "epoch-10.safetensors")
    assert last.keys() == tenth.keys()
    assert all((last[name] == tenth[name]).all() for name in last)
    with pytest.raises(OSError, match="Read-only file system"):
        (latest / "more").touch()
    listing = json.loads(other.cloudai("ls", "--json", str(other.mount_point)).stdout)
    (run,) = listing
    assert (run["sealed"], run["exit_status"]) == (True, 0)
    assert mount.status()["pending_count"] == 0


def test_failing_task_gives_its_status_and_its_output_is_kept(make_mount: MakeMount) -> None:
    mount = make_mount()
    script = "import os; open(os.environ['CLOUDAI_OUTPUT'] + '/log', 'w').write('it failed'); os._exit(7)"

    result = mount.cloudai(
        "run", "--mount", str(mount.mount_point), "--task", "failing", "--", sys.executable, "-c", script
    )

    assert result.returncode == 7
    latest = mount.mount_point / "user-123" / "failing" / "latest"
    assert (latest / "log").read_text() == "it failed"
    (run,) = json.loads(mount.cloudai("ls", "--json", str(mount.mount_point)).stdout)
    assert (run["sealed"], run["exit_status"]) == (True, 7)


@pytest.mark.skipif(os.geteuid() != 0, reason="/output needs the right to mount")
def test_output_is_the_run_in_the_commands_own_namespace_alone(make_mount: MakeMount) -> None:
    mount = make_mount()

    result = mount.cloudai(
        "run",
        "--mount",
        str(mount.mount_point),
        "--task",
        "where",
        "--",
        "sh",
        "-c",
        "echo here > /output/file",
    )

    assert result.returncode == 0, result.stderr
    assert (mount.mount_point / "user-123" / "where" / "latest" / "file").read_text() == "here\n"
    assert not Path("/output/file").exists()


@pytest.mark.parametrize("task", ["two\nlines", "\udcff", ".hidden", "a/b"])
def test_name_that_no_task_can_have_is_refused_in_one_line(make_mount: MakeMount, task: str) -> None:
    mount = make_mount()

    done = mount.cloudai("run", "--mount", str(mount.mount_point), "--task", task, "--", "true")

    assert done.returncode == 125
    assert done.stderr.count("\n") == 1
    assert "internal" not in done.stderr
    assert mount.cloudai("ls").stdout == ""
