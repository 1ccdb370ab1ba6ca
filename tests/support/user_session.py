"""Somebody other than root on this machine, in a mount namespace where that user can do what Debian lets them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from support.mount_namespace import MountNamespace
from support.mount_process import PROGRAM

# Debian's `nobody`: fusermount3 wants a name for who unmounts, and every machine has this one.
UID, GID = 65534, 65534

_REPOSITORY = Path(__file__).parents[2]
# What the program consists of: the interpreter, its libraries, ours.
_PROGRAM_PLACES = (Path(sys.base_prefix), Path(sys.prefix), _REPOSITORY)


class UserSession:
    """A user with a home, and what they run. A context: at its end the home and all of the user's mounts are gone.

    In its mount namespace /dev/fuse is as udev makes it, 0666 (the kernel's own is root's alone), and
    /etc/fuse.conf says what the test wants.
    """

    def __init__(self, *, fuse_conf: str = "", fuse_mode: int = 0o666) -> None:
        self._fuse_conf = fuse_conf
        self._fuse_mode = fuse_mode

    def __enter__(self) -> UserSession:
        with ExitStack() as made:
            # Not below pytest's directories, which nobody but root may enter.
            directory = Path(tempfile.mkdtemp(prefix="cloudai-user-", dir="/tmp"))
            made.callback(shutil.rmtree, directory)
            directory.chmod(0o755)
            self.home = directory / "home"
            self.mount_point = self.home / "cloudai"
            for path in (self.home, self.mount_point):
                path.mkdir(mode=0o700)
                os.chown(path, UID, GID)
            self.namespace = made.enter_context(MountNamespace())
            self._furnish(directory / "scratch")
            made.callback(self._unmount)
            self._made = made.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._made.close()

    def write_file(self, name: str, text: str) -> Path:
        """A file in the home that is the user's alone."""
        path = self.home / name
        path.touch(mode=0o600)
        path.write_text(text)
        os.chown(path, UID, GID)
        return path

    def as_root(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """What root gets in the same namespace; the status is not checked."""
        return self.namespace.run(*command, environment={"HOME": str(self.home)})

    def as_user(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return self.as_root("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups", "--", *command)

    def cloudai(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The command line program, as the user."""
        return self.as_user(PROGRAM, *arguments)

    def statuses(self) -> list[dict[str, Any]]:
        """`cloudai status --json`, as the user: one of each mount."""
        return list(json.loads(self.cloudai("status", "--json").stdout))

    def _unmount(self) -> None:
        # In order, so that the daemon has ended; and then whatever the test has left.
        self.cloudai("umount", "--now", self.mount_point)
        self.as_root("umount", "--lazy", self.mount_point)

    def _furnish(self, scratch: Path) -> None:
        scratch.mkdir()
        self.namespace.mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", scratch)
        device, configuration = scratch / "fuse", scratch / "fuse.conf"
        self.namespace.must("cp", "--archive", "/dev/fuse", device)
        self.namespace.must("chmod", f"{self._fuse_mode:o}", device)
        self.namespace.mount("--bind", device, "/dev/fuse")
        self.namespace.must(
            "sh", "-c", 'echo "$1" > "$2"; chmod 644 "$2"', "sh", self._fuse_conf, configuration
        )
        self.namespace.mount("--bind", configuration, "/etc/fuse.conf")
        self._open_way_to_program(scratch)

    def _open_way_to_program(self, scratch: Path) -> None:
        """Root's interpreter may be below root's home: there the user gets a way to it, and to nothing else."""
        barriers = {barrier for place in _PROGRAM_PLACES if (barrier := _find_barrier(place))}
        kept = {place: scratch / str(number) for number, place in enumerate(_PROGRAM_PLACES)}
        for place, keeping in kept.items():
            self.namespace.must("mkdir", keeping)
            self.namespace.mount("--bind", place, keeping)
        for barrier in barriers:
            self.namespace.mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", barrier)
        for place, keeping in kept.items():
            if any(place.is_relative_to(barrier) for barrier in barriers):
                self.namespace.must("mkdir", "--parents", place)
                self.namespace.mount("--bind", keeping, place)


def _find_barrier(place: Path) -> Path | None:
    """The first directory on the way to the place that others may not enter."""
    way = [*reversed(place.parents), place]
    return next((directory for directory in way if not directory.stat().st_mode & 0o001), None)
