"""What the kernel says is mounted, and taking a mount away.

Relies on /proc/self/mountinfo and on umount(8), or fusermount3 for who is not root. Never touches a
mounted tree without a bound: the daemon behind it may hang.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.places import is_root

FILE_SYSTEM_TYPE: Final = "fuse.cloudai"
"""Of our mounts, as the kernel lists them."""

PROBE_SECONDS_MAX: Final = 5.0
"""The longest wait for an answer of a mounted tree: a healthy one takes well under a millisecond."""

SHIELD_SOURCE: Final = "cloudai-shield"
"""What stands under a supervised mount, see mount_shield."""

_UNMOUNT_SECONDS_MAX: Final = 30.0
_TRIGGER_TYPE: Final = "autofs"
_FUSE_OWNER: Final = re.compile(rb"(?:^|,)user_id=(\d+)")
# What the kernel adds to a bound directory that it has lost sight of, as it has of those of a daemon that is gone.
_DELETED: Final = "//deleted"
_OCTAL_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class MountedTree:
    mount_point: Path
    file_system_type: str
    source: str
    device: int
    """Its number, as stat's st_dev, without asking the tree."""
    mount_id: int = 0
    root: str = "/"
    """What of the file system is mounted: another directory than "/" where that was bound."""
    words: frozenset[str] = frozenset()
    """What this mount restricts, as mount(8) says it: ro, nosuid."""
    owner_uid: int | None = None
    """Of a FUSE file system: who mounted it."""
    lets_others_in: bool = False
    """Whether a FUSE file system answers others than who mounted it."""


def list_mounted(process: int | str = "self") -> list[MountedTree]:
    """All mounts of a process's mount namespace, in the order in which they were made."""
    found = []
    for line in Path(f"/proc/{process}/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        major, _, minor = fields[2].partition(b":")
        file_system_type, source, file_system_words, *_ = after.split(b" ")
        owner = _FUSE_OWNER.search(file_system_words)
        found.append(
            MountedTree(
                mount_point=Path(_decode(fields[4])),
                file_system_type=file_system_type.decode(),
                source=_decode(source),
                device=os.makedev(int(major), int(minor)),
                mount_id=int(fields[0]),
                root=_decode(fields[3]).removesuffix(_DELETED),
                words=frozenset(fields[5].decode().split(",")),
                owner_uid=int(owner[1]) if owner else None,
                lets_others_in=b"allow_other" in file_system_words.split(b","),
            )
        )
    return found


def find_mounted(mount_point: Path, process: int | str = "self") -> MountedTree | None:
    """The topmost mount at exactly this absolute path; one that is mounted when it is looked into is none yet, and a
    shield is none either.
    """
    found = _find_topmost(mount_point, process)
    if found is None or found.file_system_type == _TRIGGER_TYPE or _is_shield(found):
        return None
    return found


def is_shield(mount_point: Path) -> bool:
    """Whether a shield is the topmost mount there."""
    found = _find_topmost(mount_point, "self")
    return found is not None and _is_shield(found)


def has_shield(mount_point: Path) -> bool:
    """Whether a shield is there, whatever is mounted over it."""
    return any(tree.mount_point == mount_point and _is_shield(tree) for tree in list_mounted())


def _is_shield(tree: MountedTree) -> bool:
    return (tree.file_system_type, tree.source) == ("tmpfs", SHIELD_SOURCE)


def is_trigger(mount_point: Path) -> bool:
    """Whether something will be mounted here when somebody looks into it, as with x-systemd.automount.

    To look is to wait for that, except in the process group of who will mount.
    """
    found = _find_topmost(mount_point, "self")
    return found is not None and found.file_system_type == _TRIGGER_TYPE


def _find_topmost(mount_point: Path, process: int | str) -> MountedTree | None:
    found = [tree for tree in list_mounted(process) if tree.mount_point == mount_point]
    return found[-1] if found else None


def is_dead(mount_point: Path) -> bool:
    """Whether the daemon behind a FUSE mount is gone: "Transport endpoint is not connected". False for one that does
    not answer.
    """
    with suppress(TimeoutError):
        return is_answered_dead(mount_point)
    return False


def is_answered_dead(mount_point: Path) -> bool:
    """The same; raises TimeoutError where the daemon does not answer."""
    try:
        # Opened: a stat is answered by the kernel for as long as it remembers the attributes.
        within_bound(lambda: os.close(os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY)))
    except TimeoutError:
        raise
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def unmount(mount_point: Path, *, lazily: bool = False) -> None:
    """Takes the topmost mount away; a busy one is refused unless lazily.

    Raises CommandFailed (32) with the reason.
    """
    if is_root():
        command = ["umount", *(["--lazy"] if lazily else []), "--", str(mount_point)]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazily else []), "--", str(mount_point)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_UNMOUNT_SECONDS_MAX, check=False
        )
    except FileNotFoundError as error:
        raise CommandFailed(ExitCode.MOUNT_FAILED, f"{command[0]} is missing: install fuse3") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(
            ExitCode.MOUNT_FAILED, f"{mount_point}: unmounting took over {_UNMOUNT_SECONDS_MAX:.0f} s"
        ) from error
    if done.returncode != 0:
        raise CommandFailed(ExitCode.MOUNT_FAILED, f"{mount_point}: {_why_not_unmounted(done)}")


def _why_not_unmounted(done: subprocess.CompletedProcess[str]) -> str:
    last_line = done.stderr.strip().splitlines()[-1:]
    if not last_line:
        return f"unmounting ended with status {done.returncode}"
    if "busy" in last_line[0].lower():
        return "busy: a program has a file or its working directory there (`fuser -vm` names it)"
    return last_line[0].rpartition(": ")[2]


def within_bound(probe: Callable[[], Answer], seconds: float = PROBE_SECONDS_MAX) -> Answer:
    """What the probe of a mounted tree returns or raises; TimeoutError when no answer came in time.

    A thread that still waits is left behind: it ends with its answer, or when the mount's connection does.
    """
    outcome: list[Answer] = []
    failure: list[OSError] = []

    def ask() -> None:
        try:
            outcome.append(probe())
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=ask, name="mount-probe", daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    return outcome[0]


def _decode(field: bytes) -> str:
    # The kernel writes space, tab, newline and backslash as \ooo.
    return os.fsdecode(_OCTAL_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))
