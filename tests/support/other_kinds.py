"""What may stand in the place of a file of ours and is no regular file."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Final

OTHER_KINDS: Final = ("fifo", "symlink", "dangling", "socket", "device", "directory")


def put_in_place(path: Path, kind: str) -> None:
    """Puts one of the OTHER_KINDS where the path is; a symlink leads to what was there."""
    original = path.with_name(f"{path.name}.original")
    if path.exists():
        path.rename(original)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind in ("symlink", "dangling"):
        path.symlink_to(original if kind == "symlink" else path.with_name("absent"))
    elif kind == "socket":
        # By its descriptor's name: a socket's own may not be as long as a path.
        directory = os.open(path.parent, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: bytes without end
        except PermissionError:
            path.symlink_to("/dev/zero")  # what anybody but root can do
    else:
        path.mkdir()
