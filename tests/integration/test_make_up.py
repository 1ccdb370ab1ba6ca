"""`make up` and `make down`, the two commands of the README, with everything installed already."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.mount_process import PROGRAM, wait_until
from support.tools import run_tool

REPOSITORY = Path(__file__).parents[2]

Make = Callable[[str], str]


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    return tmp_path / "a place"


@pytest.fixture
def make(mount_point: Path, tmp_path: Path) -> Iterator[Make]:
    """`make TARGET` in a place of this test; what it printed. Nothing runs there afterwards."""

    def run(target: str) -> str:
        # env: whatever the `make` said that these tests run from. -o: a test installs nothing.
        command = ("env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "make", "-o", "setup", target)
        return run_tool(*command, f"MOUNT={mount_point}", f"STATE={tmp_path / 'state'}", cwd=REPOSITORY)

    yield run
    run("down")
    assert not mount_point.is_mount()


def test_up_shows_the_first_run_and_a_second_up_changes_nothing(
    make: Make, mount_point: Path, tmp_path: Path
) -> None:
    first = make("up")

    assert "master  started" in first
    assert "mount  started" in first
    (run,) = mount_point.glob("*/digits/2*")
    assert f"\n{run}\n" in first
    for name in ("metrics.csv", "last.safetensors", "training.png", "summary.json"):
        assert re.search(rf"^-rw\S* .* {name}$", first, re.MULTILINE), first
    (hint,) = re.findall(r"^  make down (.*) && make up (.*)$", first, re.MULTILINE)
    for words in hint:
        assert sorted(shlex.split(words)) == [f"MOUNT={mount_point}", f"STATE={tmp_path / 'state'}"]

    second = make("up")

    assert "master  running" in second
    assert "mount  running" in second
    assert f"\n{run}\n" in second
    assert list(mount_point.glob("*/digits/2*")) == [run]


def test_up_after_a_kill_and_after_down_shows_the_same_run(make: Make, mount_point: Path) -> None:
    make("up")
    (run,) = mount_point.glob("*/digits/2*")
    (answer,) = json.loads(run_tool(PROGRAM, "status", "--json", mount_point))
    os.kill(answer["pid"], signal.SIGKILL)
    wait_until(lambda: not os.path.exists(run), "the daemon's end")

    after_kill = make("up")

    assert "master  running" in after_kill
    assert "mount  started" in after_kill
    assert f"\n{run}\n" in after_kill

    assert make("down").startswith(f"unmounted {mount_point}\nstopped the master")

    assert list(mount_point.iterdir()) == []
    assert f"\n{run}\n" in make("up")
    assert list(mount_point.glob("*/digits/2*")) == [run]
