"""A directory bound somewhere else in a way that nobody can write to, not even who mounts it again.

A bind mount that is only marked read-only is writable in a container: podman has runc set the flags of what it binds,
and whatever is not named is taken back. The kernel keeps such a flag for good ("locked") in copies of a mount that a
user namespace of less privilege gets. So a child in one makes the copy, and hands it back.

Run as a program of its own (`python -m cloudai_daemon.read_only_stand DIRECTORY STAND`): it forks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from cloudai_daemon.mount_calls import (
    ATTRIBUTE_BY_WORD,
    enter_hidden_mount_namespace,
    enter_new_user_namespace,
    pick_up,
    put_down,
)

_MODULE_COMMAND: Final = (sys.executable, "-P", "-m", "cloudai_daemon.read_only_stand")


def make_read_only_stand(directory: Path, stand: Path, seconds_max: float) -> None:
    """Mounts the directory on the stand, an empty directory, in one step. Raises OSError, with the kernel's reason."""
    try:
        done = subprocess.run(
            [*_MODULE_COMMAND, directory, stand],
            capture_output=True,
            text=True,
            timeout=seconds_max,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(0, f"not mounted after {seconds_max:.0f} s", str(stand)) from error
    if done.returncode != 0:
        raise OSError(0, done.stderr.strip() or f"ended with status {done.returncode}", str(stand))


def main(directory: Path, stand: Path) -> None:
    put_down(_make_locked(directory, stand), _open(stand))


def _make_locked(directory: Path, stand: Path) -> int:
    """A read-only mount of the directory that is nowhere yet, with that flag locked. Raises OSError."""
    ours, childs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            socket.send_fds(childs, [b"."], [_lock_in_lesser_namespace(directory, stand)])
        finally:
            # Whatever was raised: what the callers do then is the parent's to do, once.
            os._exit(0)
    childs.close()
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(pid, 0)
    if not descriptors:
        raise OSError(0, "user namespaces are not allowed here: no read-only volume can be made")
    return descriptors[0]


def _lock_in_lesser_namespace(directory: Path, stand: Path) -> int:
    # What is marked has to be somewhere for a moment, as a new namespace gets copies of what is mounted. Where nobody
    # else sees it: were we killed now, what had been left on the stand would look like one that is locked.
    enter_hidden_mount_namespace()
    put_down(pick_up(_open(directory), ATTRIBUTE_BY_WORD["ro"]), _open(stand))
    enter_new_user_namespace()
    return pick_up(_open(stand), 0)


def _open(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except OSError as failure:
        sys.exit(failure.strerror)
