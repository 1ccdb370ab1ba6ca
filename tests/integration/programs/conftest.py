"""What is copied into runs, and the run as the master has it afterwards."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

from cloudai_model.limits import MIB
from support.mount_process import MountProcess
from support.tools import run_tool
from support.tree_snapshot import AtMaster, assert_same_elsewhere, place_in


@pytest.fixture
def at_master(run: Path, shared_mount: MountProcess, second_mount: MountProcess) -> AtMaster:
    """Call it when the programs have ended: where another machine has the run.

    It is durable then, and that machine, which looks into the run for the first time, sees all of it as it is seen
    here: names, contents, modes, owners, times. What the programs should have made is then looked for there.
    """

    def look() -> Path:
        assert_same_elsewhere(run, shared_mount, second_mount)
        return place_in(shared_mount, run, second_mount)

    return look


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree on a local disk: files of many sizes, directories, a symlink, times and modes."""
    root = tmp_path / "source"
    (root / "checkpoints" / "old").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "metrics.csv").write_text("epoch,loss\n1,0.5\n")
    (root / "config.yaml").write_text("lr: 0.1\n")
    (root / "checkpoints" / "epoch-1.bin").write_bytes(os.urandom(5 * MIB + 17))
    (root / "checkpoints" / "old" / "epoch-0.bin").write_bytes(b"\0" * 100_000)
    (root / "nothing").touch()
    (root / "last").symlink_to("checkpoints/epoch-1.bin")
    (root / "config.yaml").chmod(0o600)
    (root / "metrics.csv").chmod(0o444)
    for number, path in enumerate([*sorted(root.rglob("*")), root], start=1):
        moment_ns = 1_700_000_000_000_000_000 + number * 1_000_000_007
        os.utime(path, ns=(moment_ns, moment_ns), follow_symlinks=False)
    return root


@pytest.fixture
def large_source(tmp_path: Path) -> Path:
    """A large source tree on a local disk: 2,000 files in 160 directories, 40 MB."""
    return _copy_python_sources(tmp_path / "large", "matplotlib", "numpy", "scipy")


@pytest.fixture
def small_source(tmp_path: Path) -> Path:
    """A small one: some thirty files in a few directories."""
    return _copy_python_sources(tmp_path / "small", "numpy/random") / "random"


def _copy_python_sources(place: Path, *packages: str) -> Path:
    """Of packages that `make setup` installs whatever else the machine has."""
    filters = ("--include=*/", "--include=*.py", "--include=*.pyi", "--exclude=*", "--prune-empty-dirs")
    installed = Path(sysconfig.get_path("purelib"))
    run_tool("rsync", "-a", *filters, *(installed / package for package in packages), f"{place}/")
    return place
