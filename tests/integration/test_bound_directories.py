"""Which of the directories that other mount namespaces have of a dead mount are given back by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudai_daemon.mount_table import find_mounted
from support.mount_process import WAIT_SECONDS_MAX, MakeMount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may enter the namespaces of others")


@contextmanager
def namespace_with(bound: Mapping[Path, Path], *options: str) -> Iterator[int]:
    """A mount namespace in which directories are bound at other places, as in a container; a process in it.

    What is unmounted outside is unmounted in it: else the daemons of other tests would wait for its end.
    """
    script = 'while [ $# -gt 0 ]; do mount --bind "$1" "$2" && shift 2; done && echo made && exec cat'
    places = [str(path) for pair in bound.items() for path in pair]
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "slave", *options, "--", "sh", "-c", script, "sh", *places],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "made\n"
        yield keeper.pid
        keeper.communicate(timeout=WAIT_SECONDS_MAX)


def test_directories_are_given_back_to_who_had_them_from_this_mount_alone(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    mount, other = make_mount(), make_mount("other")
    place, other_place = tmp_path / "place", tmp_path / "other-place"
    place.mkdir()
    other_place.mkdir()
    bound = {mount.mount_point: place, other.mount_point: other_place}
    with namespace_with(bound) as ours, namespace_with(bound, "--user", "--map-root-user") as foreign:
        before, other_before = find_mounted(place, ours), find_mounted(other_place, ours)
        assert before is not None
        assert other_before is not None
        os.kill(other.pid, signal.SIGKILL)
        other.wait_dead()
        mount.restart()

        after = find_mounted(mount.mount_point)
        given, kept = find_mounted(place, ours), find_mounted(place, foreign)

        assert after is not None
        assert given is not None
        assert kept is not None
        assert given.device == after.device != before.device
        assert kept.device == before.device
        # Of the same master and the same user, and yet another mount's.
        assert find_mounted(other_place, ours) == other_before
    mount.umount()
