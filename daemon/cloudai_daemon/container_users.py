"""Who a container's command is for the mount, and whether that user may write to a run there.

A container without user namespaces has the machine's user numbers: root in it is root, 1000 in it is 1000. A run's
directory is made as its owner's, and a mount lets nobody in but who mounted it, unless it was mounted with allow_other.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_table import find_mounted
from cloudai_daemon.places import is_root

_ROOT_NAMES: Final = ("", "0", "root")
_NUMBERS: Final = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?")
_NUMBER_MAX: Final = 2**32 - 2


@dataclass(frozen=True, kw_only=True)
class ContainerUser:
    uid: int
    gid: int


def parse_container_user(text: str) -> ContainerUser | None:
    """Whom `UID[:GID]` means; None for root, in any way that it is written. Without a group it is the user's number.

    Raises ValueError with a sentence for anything else: a name means somebody in an image alone.
    """
    if text.partition(":")[0] in _ROOT_NAMES:
        return None
    numbers = _NUMBERS.fullmatch(text)
    if numbers is None or any(number and int(number) > _NUMBER_MAX for number in numbers.groups()):
        raise ValueError(f"{text!r} is no UID[:GID]")
    uid = int(numbers[1])
    return ContainerUser(uid=uid, gid=int(numbers[2]) if numbers[2] else uid)


def require_access(mount_point: Path, user: ContainerUser | None) -> None:
    """Accept a user who may write to a run of this mount once it is theirs.

    Raises CommandFailed (125) with what to do about it.
    """
    if user is None:
        return
    if not is_root():
        raise CommandFailed(
            ExitCode.NOT_STARTED,
            f"user {user.uid} of a container may not look into {mount_point}, which is yours alone: "
            "let the container run as its root (--user 0), who is you outside",
        )
    mounted = find_mounted(mount_point)
    if mounted is not None and mounted.owner_uid is not None and not mounted.lets_others_in:
        raise CommandFailed(
            ExitCode.NOT_STARTED,
            f"user {user.uid} may not look into {mount_point}: mount it with -o allow_other",
        )


def give_to(run_dir: Path, user: ContainerUser | None) -> None:
    """Makes the run's directory the user's. Raises CommandFailed (125)."""
    if user is None:
        return
    try:
        os.chown(run_dir, user.uid, user.gid)
    except OSError as error:
        raise CommandFailed(
            ExitCode.NOT_STARTED, f"{run_dir} cannot be given to user {user.uid}: {error.strerror}"
        ) from error
