"""What stands under a supervised mount: an empty file system that takes no writes.

Between a daemon's death and the next one's start nothing else covers the mount point, and what root's programs write
into a bare directory is on the disk below, out of sight once it is mounted again. Only root can make one.
"""

from __future__ import annotations

import logging
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloudai_daemon.exit_codes import CommandFailed
from cloudai_daemon.mount_table import SHIELD_SOURCE, has_shield, is_shield, unmount
from cloudai_daemon.places import is_root

log = logging.getLogger(__name__)

_MOUNT_SECONDS_MAX: Final = 30.0
_OPTIONS: Final = "ro,nosuid,nodev,noexec,size=4k,mode=000"


def raise_shield(mount_point: Path) -> bool:
    """Whether there is one now. Where there can be none, the log says so."""
    if has_shield(mount_point):
        return True
    if not is_root():
        return False
    command = ["mount", "-t", "tmpfs", "-o", _OPTIONS, "--", SHIELD_SOURCE, str(mount_point)]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=_MOUNT_SECONDS_MAX, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s is not shielded while no daemon serves it: %s", mount_point, error)
        return False
    return True


def take_shield_away(mount_point: Path) -> None:
    """Where nothing is mounted over it."""
    if is_shield(mount_point):
        with suppress(CommandFailed):  # somebody was faster, or has his working directory in it
            unmount(mount_point)
