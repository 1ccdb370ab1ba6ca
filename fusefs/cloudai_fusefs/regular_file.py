"""Opening our own files where something else may have taken their place.

A fifo without a writer would hold whoever opens it for ever, a symlink would lead anywhere. Blocking; callers
run it in a thread.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_OF_OTHER_KINDS: Final = frozenset({errno.ELOOP, errno.ENXIO, errno.EISDIR})
"""What open(2) says to our flags where a symlink, a fifo or socket, or a directory is."""


class NotRegular(OSError):
    """What is there under the name is no regular file."""


@contextmanager
def open_regular(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of the file, closed afterwards; if the flags make one, it is for the owner alone.

    Raises NotRegular, FileNotFoundError where nothing is, and OSError as open(2) does. Waits for nobody.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _OF_OTHER_KINDS:
            raise NotRegular(error.errno, error.strerror, str(path)) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegular(errno.EINVAL, "no regular file", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def is_regular(path: Path) -> bool:
    """Whether a regular file has the name itself. Raises OSError for anything but its absence."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False
