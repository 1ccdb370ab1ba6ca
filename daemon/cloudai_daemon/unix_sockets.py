"""Unix sockets that only their owner may connect to."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloudai_daemon.places import make_private_dir

# sun_path of unix(7) is 108 bytes with the final NUL.
SOCKET_PATH_BYTES_MAX: Final = 107

_LISTEN_BACKLOG: Final = 16


def listen_at(path: Path) -> socket.socket:
    """A listening stream socket at any path, 0600; a socket there that nobody listens to is replaced.

    Raises OSError: EADDRINUSE where somebody does, EEXIST for anything but a socket.
    """
    make_private_dir(path.parent)
    remove_stale(path)
    return _listen(path)


def listen_in_own_directory(path: Path) -> socket.socket:
    """As listen_at, where whatever has the name is ours: who listened there before is replaced."""
    make_private_dir(path.parent)
    remove_socket(path)
    return _listen(path)


def remove_socket(path: Path) -> None:
    path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        # Before listen: until then nobody can connect, whatever the umask made of the mode.
        path.chmod(0o600)
        listening.listen(_LISTEN_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def remove_stale(path: Path) -> None:
    """Removes a socket that nobody listens to.

    Raises OSError: EADDRINUSE where somebody does, EEXIST for anything but a socket.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # a full backlog is somebody too
            try:
                probe.connect(str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink(missing_ok=True)
                return
            except BlockingIOError:
                pass
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
