"""What `cloudai umount` does: waits for uploads within a bound, unmounts, and sees the mount daemon end.

What is not durable by then stays staged, and the next mount goes on with it.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloudai_daemon.abandoned_mounts import is_abandoned
from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError, StatusReport
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.mount_shield import take_shield_away
from cloudai_daemon.mount_table import find_mounted, unmount
from cloudai_daemon.places import runtime_dirs_to_search
from cloudai_daemon.registry import RegistryEntry, list_live, supervisor_dir
from cloudai_daemon.upload_wait import (
    DESCRIPTION_SECONDS_MAX,
    NotDurable,
    open_display,
    show_until_answered,
    wait_durable,
)

_END_SECONDS_MAX: Final = 30.0
# The longest `drain=` that a mount takes.
UNMOUNT_DRAIN_SECONDS_MAX: Final = 7 * 86400.0
# For the answer of a drain that has come to its end.
_ANSWER_SECONDS_MAX: Final = 30.0


def unmount_when_durable(
    mount_point: Path, *, timeout_seconds: float, description_seconds_max: float = DESCRIPTION_SECONDS_MAX
) -> None:
    """Returns when everything is durable, the mount is gone and its daemon has ended. The times are `wait_durable`'s.

    Raises NotDurable (75) when uploads did not finish in time, CommandFailed (32) when nothing is mounted
    or the mount is busy: the mount is as before then. A dead mount is cleared away.
    """
    if _find_living(mount_point) is not None:
        wait_durable(
            mount_point, timeout_seconds=timeout_seconds, description_seconds_max=description_seconds_max
        )
        drain_and_unmount(mount_point, timeout_seconds=0)


def drain_and_unmount(mount_point: Path, *, timeout_seconds: float | None) -> StatusReport | None:
    """Waits at most that long for uploads, unmounts, and returns when the daemon has ended: what is left.

    None for the time: the mount's own `drain=`, or an hour. Nothing is left to say of a dead mount, which is
    cleared away. Raises CommandFailed (32) when nothing is mounted or the mount is busy: it goes on as before.
    """
    entry = _find_living(mount_point)
    if entry is None:
        return None
    try:
        with ControlClient.of_living(entry) as client:
            left = _drain(client, timeout_seconds)
            try:
                unmount(mount_point)
            except CommandFailed:
                with suppress(DaemonUnreachable, RemoteError):
                    client.call("resume", {})
                raise
    except (DaemonUnreachable, RemoteError) as error:
        if not entry.process.is_alive and is_abandoned(mount_point):
            unmount(mount_point, lazily=True)
        raise NotDurable(f"{error}; what it staged is sent by the next `cloudai mount`") from error
    if not entry.process.wait_gone(_END_SECONDS_MAX):
        raise CommandFailed(
            ExitCode.MOUNT_FAILED,
            f"{mount_point}: unmounted, but its daemon (pid {entry.process.pid}) has not ended",
        )
    _end_supervisor(mount_point)
    return left


def _end_supervisor(mount_point: Path) -> bool:
    """Whether there was one, which would mount again. Raises CommandFailed where it does not end."""
    was_there = False
    for entry in list_live([supervisor_dir(directory) for directory in runtime_dirs_to_search()]):
        if entry.mount_point == mount_point:
            was_there = True
            entry.process.send_signal(signal.SIGTERM)
            if not entry.process.wait_gone(_END_SECONDS_MAX):
                raise CommandFailed(
                    ExitCode.MOUNT_FAILED,
                    f"{mount_point}: its supervisor (pid {entry.process.pid}) has not ended",
                )
    take_shield_away(mount_point)  # of one that was killed
    return was_there


def _find_living(mount_point: Path) -> RegistryEntry | None:
    """The mount there; None: it was a dead one, and is gone."""
    if find_mounted(mount_point) is None:
        if _end_supervisor(mount_point):
            return None
        raise CommandFailed(ExitCode.MOUNT_FAILED, f"{mount_point}: not mounted")
    if is_abandoned(mount_point):
        _end_supervisor(mount_point)
        if find_mounted(mount_point) is not None:
            unmount(mount_point, lazily=True)
        take_shield_away(mount_point)
        return None
    entry = find_at(mount_point)
    if entry is None:
        raise CommandFailed(ExitCode.MOUNT_FAILED, f"{mount_point}: mounted, but not by CloudAI")
    return entry


def _drain(client: ControlClient, timeout_seconds: float | None) -> StatusReport:
    with open_display() as display:
        # Without a time the mount takes its own.
        params = {} if timeout_seconds is None else {"timeout_seconds": timeout_seconds}
        request_id = client.send("drain", {**params, "progress": display.is_shown})
        bound_seconds = UNMOUNT_DRAIN_SECONDS_MAX if timeout_seconds is None else timeout_seconds
        show_until_answered(
            client, request_id, display, time.monotonic() + bound_seconds + _ANSWER_SECONDS_MAX
        )
        if not client.poll(request_id, 0):
            raise DaemonUnreachable(client.entry.mount_point, "its drain does not end")
        return StatusReport.from_json(client.take(request_id))
