"""What `cloudai umount` does: waits for uploads, unmounts, and sees the mount daemon end."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.mount_table import find_mounted, is_dead, unmount
from cloudai_daemon.upload_wait import wait_durable

UNMOUNT_WAIT_SECONDS_DEFAULT: Final = 3600.0
"""An hour of uploads; then the mount stays, and the person decides."""

_END_SECONDS_MAX: Final = 30.0


def unmount_in_order(mount_point: Path, *, timeout_seconds: float) -> None:
    """Returns when everything is durable, the mount is gone and its daemon has ended.

    Raises NotDurable (75) when uploads did not finish in time, CommandFailed (32) when nothing is mounted
    or the mount is busy: the mount is as before then. A dead mount is cleared away.
    """
    if find_mounted(mount_point) is None:
        raise CommandFailed(ExitCode.MOUNT_FAILED, f"{mount_point}: not mounted")
    if is_dead(mount_point):
        unmount(mount_point, lazily=True)
        return
    entry = find_at(mount_point)
    if entry is None:
        raise CommandFailed(ExitCode.MOUNT_FAILED, f"{mount_point}: mounted, but not by CloudAI")
    wait_durable(mount_point, timeout_seconds=timeout_seconds)
    unmount_now(mount_point)


def unmount_now(mount_point: Path) -> None:
    """Unmounts without waiting for uploads: what is staged is sent by the next mount.

    Raises CommandFailed (32).
    """
    entry = find_at(mount_point)
    unmount(mount_point)
    if entry is not None and not entry.process.wait_gone(_END_SECONDS_MAX):
        raise CommandFailed(
            ExitCode.MOUNT_FAILED,
            f"{mount_point}: unmounted, but its daemon (pid {entry.process.pid}) has not ended",
        )
