"""Which of the directories that other mount namespaces have of a dead mount are given back by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cloudai_daemon.mount_table import find_mounted
from support.mount_process import WAIT_SECONDS_MAX, MakeMount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may enter the namespaces of others")


@contextmanager
def namespace_with_copies(*options: str) -> Iterator[int]:
    """A mount namespace with all that is mounted now, of which nothing is unmounted; a process in it."""
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", *options, "--", "sh", "-c", "echo made; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "made\n"
        yield keeper.pid
        keeper.communicate(timeout=WAIT_SECONDS_MAX)


def test_directories_are_given_back_to_who_had_them_from_this_mount_alone(make_mount: MakeMount) -> None:
    mount, other = make_mount(), make_mount("other")
    place = mount.mount_point
    with (
        namespace_with_copies() as ours,
        namespace_with_copies("--user", "--map-root-user") as foreign,
    ):
        before, other_before = find_mounted(place), find_mounted(other.mount_point, ours)
        assert before is not None
        os.kill(other.pid, signal.SIGKILL)
        other.wait_dead()
        mount.restart()

        after, given, kept = (find_mounted(place, process) for process in ("self", ours, foreign))

        assert after is not None
        assert given is not None
        assert kept is not None
        assert given.device == after.device != before.device
        assert kept.device == before.device
        # Of the same master and the same user, and yet another mount's.
        assert find_mounted(other.mount_point, ours) == other_before
    mount.umount()
