"""A staged volume at the place of a pod: a bind mount of the mount's root.

Nothing here asks the mounted tree without a bound. Raises CommandFailed or OSError, with the kernel's reason.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_calls import ATTRIBUTE_BY_WORD, pick_up, put_down, take_off, take_off_unused
from cloudai_daemon.mount_table import (
    FILE_SYSTEM_TYPE,
    MountedTree,
    find_mounted,
    is_answered_dead,
    within_bound,
)
from cloudai_daemon.read_only_stand import make_read_only_stand

log = logging.getLogger(__name__)

_BIND_SECONDS_MAX: Final = 10.0
# What a driver that was killed again and again can have left on top of each other at one place.
_STACKED_MAX: Final = 16
# Who looks at a place for a moment, as for `df`, uses it.
_BUSY_SECONDS_MAX: Final = 3.0
_BUSY_LOOK_SECONDS: Final = 0.05


def find_bound(place: Path) -> MountedTree | None:
    """What is mounted at the place. Raises CommandFailed when it is not of ours."""
    mounted = find_mounted(place)
    if mounted is not None and mounted.file_system_type != FILE_SYSTEM_TYPE:
        raise CommandFailed(
            ExitCode.MOUNT_FAILED, f"{place}: something else is mounted there: {mounted.source}"
        )
    return mounted


def is_bound(place: Path, staging: Path, *, is_read_only: bool) -> bool:
    """Whether the mount that is at the staging path now is at the place, as it is to be."""
    return is_bind_of(find_mounted(place), find_mounted(staging), is_read_only=is_read_only)


def is_bind_of(bound: MountedTree | None, staged: MountedTree | None, *, is_read_only: bool) -> bool:
    """The same of what the kernel says of both."""
    return (
        bound is not None
        and staged is not None
        and bound.device == staged.device
        and ("ro" in bound.words) == (is_read_only or "ro" in staged.words)
    )


def bind(staging: Path, place: Path, *, is_read_only: bool) -> None:
    """What an earlier mount of the volume has left at the place is taken away first."""
    if is_bound(place, staging, is_read_only=is_read_only):
        return
    take_off_all(place)
    place.mkdir(mode=0o750, parents=True, exist_ok=True)
    if is_read_only:
        _bind_read_only(staging, place)
    else:
        within_bound(lambda: _bind(staging, place), _BIND_SECONDS_MAX)


def _bind_read_only(staging: Path, place: Path) -> None:
    try:
        make_read_only_stand(staging, place, _BIND_SECONDS_MAX)
    except OSError as error:
        # A machine without user namespaces. Kubernetes tells the runtime that the volume is read-only as well, so
        # that whoever is in the container cannot take it back there either.
        log.warning("%s can be made writable again by root of this machine: %s", place, error.strerror)
        take_off_all(place)
        within_bound(lambda: _bind(staging, place, attributes=ATTRIBUTE_BY_WORD["ro"]), _BIND_SECONDS_MAX)


def _bind(staging: Path, place: Path, attributes: int = 0) -> None:
    source = os.open(staging, os.O_PATH | os.O_DIRECTORY)
    try:
        tree = pick_up(source, attributes)
        try:
            target = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                put_down(tree, target)
            finally:
                os.close(target)
        finally:
            os.close(tree)
    finally:
        os.close(source)


def take_off_all(place: Path) -> None:
    """All of ours that is mounted at the place. What somebody has open in it is refused, of a dead mount let go."""
    deadline = time.monotonic() + _BUSY_SECONDS_MAX
    for _ in range(_STACKED_MAX):
        while find_bound(place) is not None and not _is_taken_off(place):
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "busy: a program has a file or its working directory there", place)
            time.sleep(_BUSY_LOOK_SECONDS)


def _is_taken_off(place: Path) -> bool:
    """False: it is in use. Raises TimeoutError where that may be by who waits for a daemon that does not answer, as for
    `df`: perhaps no program is there.
    """
    try:
        take_off_unused(place)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        try:
            if not is_answered_dead(place):
                return False
        except TimeoutError as unanswered:
            raise TimeoutError(
                errno.ETIMEDOUT, "busy, and its mount daemon does not answer", place
            ) from unanswered
        take_off(place)
    return True


def release(place: Path) -> None:
    """The same, and the directory. Never removes anything that is in it."""
    take_off_all(place)
    with suppress(FileNotFoundError):
        place.rmdir()
