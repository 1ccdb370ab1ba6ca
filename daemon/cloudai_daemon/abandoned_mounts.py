"""Mounts that nobody serves any more, one of whose daemon was killed and cannot leave among them.

A thread of the daemon that tells the kernel news may wait there for a directory which a rename() holds that waits for
the daemon's answer. Killed meanwhile, the daemon has ended but for this thread, its connection stays open, and whoever
asks it waits for ever, beyond SIGKILL. The kernel has to be told that no answer will come.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloudai_daemon.mount_calls import end_requests
from cloudai_daemon.mount_table import find_mounted, is_dead
from cloudai_daemon.places import runtime_dirs_to_search
from cloudai_daemon.registry import find_process

log = logging.getLogger(__name__)

_FUSE_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_GONE_SECONDS_MAX: Final = 5.0
_LOOK_SECONDS: Final = 0.02


def is_abandoned(mount_point: Path) -> bool:
    """Whether what is mounted there has no daemon. Requests of one that cannot leave are ended, as far as this user
    may: root, or who mounted it where fusectl is mounted.
    """
    for directory in runtime_dirs_to_search():
        process = find_process(directory, mount_point)
        if process is not None and process.is_stuck:
            let_go(mount_point)
            end_seconds = time.monotonic() + _GONE_SECONDS_MAX
            while process.is_stuck and time.monotonic() < end_seconds:
                time.sleep(_LOOK_SECONDS)
    return is_dead(mount_point)


def let_go(mount_point: Path) -> None:
    """Ends all requests of a mount with an error, for good; it stays mounted."""
    mounted = find_mounted(mount_point)
    if mounted is None:
        return
    log.warning("the daemon of %s was killed and cannot leave: requests to it are ended", mount_point)
    try:
        (_FUSE_CONNECTIONS / f"{os.minor(mounted.device)}" / "abort").write_text("1")
    except OSError:
        with suppress(OSError):
            end_requests(mount_point)
