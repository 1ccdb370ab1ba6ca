"""The daemons behind mounts that are mounted again by themselves: by a supervisor, by the CSI driver."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.process_identity import ProcessIdentity
from support.mount_process import COMMAND_SECONDS_MAX, wait_until


def find_daemon(mount_point: Path) -> ProcessIdentity | None:
    """The one that serves the mount now."""
    entry = find_at(mount_point)
    return entry.process if entry is not None and entry.process.is_alive else None


def require_daemon(mount_point: Path) -> ProcessIdentity:
    found = find_daemon(mount_point)
    assert found is not None, f"nobody serves {mount_point}"
    return found


def kill_daemon(mount_point: Path) -> ProcessIdentity:
    """kill -9; which one it was, once it is gone."""
    killed = require_daemon(mount_point)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait_gone(COMMAND_SECONDS_MAX)
    return killed


def wait_for_another_daemon(mount_point: Path, killed: ProcessIdentity) -> ProcessIdentity:
    """The one that serves the mount in the place of one that was killed."""
    wait_until(
        lambda: find_daemon(mount_point) not in (None, killed),
        "another daemon",
        seconds_max=COMMAND_SECONDS_MAX,
    )
    return require_daemon(mount_point)


@contextmanager
def stopped(process: ProcessIdentity) -> Iterator[None]:
    """It is there and does nothing."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
