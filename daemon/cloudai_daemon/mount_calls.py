"""The kernel's calls that pick a mounted directory up here and put it down in another mount namespace.

Relies on Linux 5.12 and on root. They have been in the kernel for longer than in its libraries: glibc has no name for
them before 2.36, and Python none at all. Their numbers are the same on every architecture that Linux has had since.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_OPENAT2: Final = 437
_MOUNT_SETATTR: Final = 442

_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 0x1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_CLONE_FS: Final = 0x200
_CLONE_NEWNS: Final = 0x20000
_CLONE_NEWUSER: Final = 0x10000000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 0x80000
_MNT_FORCE: Final = 0x1
_MNT_DETACH: Final = 0x2
_UMOUNT_NOFOLLOW: Final = 0x8

ATTRIBUTE_BY_WORD: Final = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8}
"""What mountinfo calls the restrictions of one mount, and mount_setattr(2) too."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def open_beneath(directory: int, path: str) -> int:
    """A descriptor of the directory that a path names below an open one, whoever may change what is there meanwhile:
    no symlink is followed, and `..` does not lead out. Gives no access to what is in it. Raises OSError.
    """
    how = _OpenHow(os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)
    name = os.fsencode(path.lstrip("/") or ".")
    return _call(_OPENAT2, directory, name, ctypes.byref(how), ctypes.sizeof(how))


def pick_up(directory: int, attributes: int) -> int:
    """A mount of an open directory that is nowhere yet, with these attributes besides those that it has there.

    Gone once its descriptor is closed, if it was not put down. Raises OSError.
    """
    tree = _call(_OPEN_TREE, directory, b"", _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH)
    try:
        change = _MountAttributes(attr_set=attributes)
        _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(change), ctypes.sizeof(change))
    except BaseException:
        os.close(tree)
        raise
    return tree


def put_down(tree: int, directory: int) -> None:
    """Mounts what was picked up on an open directory of this thread's mount namespace. Raises OSError."""
    _call(_MOVE_MOUNT, tree, b"", directory, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)


def take_off(place: Path) -> None:
    """Takes the topmost mount of a place away; what is open in it stays open. Raises OSError."""
    _check(_libc.umount2(os.fsencode(place), _MNT_DETACH | _UMOUNT_NOFOLLOW))


def take_off_unused(place: Path) -> None:
    """The same for one that nobody uses, without asking what is mounted there: its daemon may hang. Raises OSError,
    EBUSY where somebody has something open in it.
    """
    _check(_libc.umount2(os.fsencode(place), _UMOUNT_NOFOLLOW))


def end_requests(place: Path) -> None:
    """Ends all requests of the FUSE file system that is mounted there, which stays mounted. Raises OSError."""
    # Open, so that it is in use: what is not would be unmounted as well.
    descriptor = os.open(place, os.O_PATH | os.O_DIRECTORY)
    try:
        _check(_libc.umount2(os.fsencode(place), _MNT_FORCE | _UMOUNT_NOFOLLOW))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    finally:
        os.close(descriptor)


def leave_shared_paths() -> None:
    """Gives the calling thread a root and working directory of its own: without, it may enter no mount namespace.

    Cannot be taken back: for a thread that ends with its task. Raises OSError.
    """
    _check(_libc.unshare(_CLONE_FS))


def enter_mount_namespace(namespace: int) -> None:
    """The calling thread sees the namespace's mounts from here on, and its root is the namespace's. Raises OSError."""
    _check(_libc.setns(namespace, _CLONE_NEWNS))


def enter_hidden_mount_namespace() -> None:
    """The calling process is in a mount namespace of its own: what it mounts is seen nowhere else, and what is
    unmounted elsewhere is gone there too. Raises OSError.
    """
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None))


def enter_new_user_namespace() -> None:
    """The calling process, which has one thread, is in user and mount namespaces of its own. Raises OSError."""
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))


def _call(number: int, *arguments: object) -> int:
    words = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *words))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
