"""What every process that runs tests does first. With `-n` there are several at once, on one machine."""

from __future__ import annotations

import errno
import getpass
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import xdist


def pytest_sessionstart(session: pytest.Session) -> None:
    # A shell's background job ignores them, and so would every program that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    # Before there are workers: a mount that is dead now is not one that a test has just killed.
    if not xdist.is_xdist_worker(session):
        _take_dead_mounts_away()


def _take_dead_mounts_away() -> None:
    """Those that a run of the tests which was killed has left: pytest could not remove their folders."""
    own = Path(tempfile.gettempdir()) / f"pytest-of-{getpass.getuser()}"
    for line in Path("/proc/mounts").read_text().splitlines():
        mount_point, kind = line.split()[1:3]
        if kind != "fuse.cloudai" or not mount_point.startswith(f"{own}/"):
            continue
        try:
            os.statvfs(mount_point)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                subprocess.run(["umount", "-l", mount_point], check=False, timeout=10)


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    """A registry of mounts that no other process's mounts are in, nor those of whoever runs the tests.

    Not below pytest's folders: a socket's path has at most 107 bytes, and those can be deep.
    """
    with pytest.MonkeyPatch.context() as environment:
        directory = Path(tempfile.mkdtemp(prefix="cloudai-"))
        environment.setenv("CLOUDAI_RUNTIME_DIR", str(directory))
        # The threads of a training task spin while they wait: half of its time, and taken from other tests.
        environment.setenv("OMP_NUM_THREADS", "1")
        yield
        shutil.rmtree(directory, ignore_errors=True)
