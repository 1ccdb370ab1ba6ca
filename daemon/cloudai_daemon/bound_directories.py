"""Gives containers back what they have of a mount whose daemon has died, once it is mounted again.

A container's `/output` is a directory of the mount, bound in the container's own mount namespace. The kernel ties it
to the file system of the daemon that died, and no new mount outside is ever seen in its place. So who mounts looks
through the machine's mount namespaces for such directories and mounts the same ones, of the new mount, over them.
What was open in them fails (ENOTCONN); what is opened from then on is the run again.

Relies on root and on Linux 5.12, and does nothing elsewhere. A directory is only ever given back to who had it: the
state directory remembers which file systems its mounts were, and whatever is of another, of somebody else's or in a
namespace of somebody else's is left alone.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from cloudai_daemon.mount_calls import (
    ATTRIBUTE_BY_WORD,
    enter_mount_namespace,
    leave_shared_paths,
    open_beneath,
    pick_up,
    put_down,
)
from cloudai_daemon.mount_table import MountedTree, find_mounted, list_mounted, within_bound
from cloudai_daemon.places import is_root
from cloudai_model.boots import current_boot_id

log = logging.getLogger(__name__)

_PROC: Final = Path("/proc")
# ioctl_ns(2): the user namespace that a namespace belongs to.
_NS_GET_USERNS: Final = 0xB701
_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)


# In a state directory: a line for each of its mounts, the boot and the number that the kernel gave the file system.
_DEVICES_FILE: Final = "devices"
# A container that outlives more daemons than these keeps what it has.
_DEVICES_MAX: Final = 256


class LostInNamespace(OSError):
    """The thread could not come back from another mount namespace: it must do nothing more."""


def mend_bound_directories(mount_point: Path, state_dir: Path) -> None:
    """Returns once all other mount namespaces have this mount's directories in place of those of a dead daemon.

    What cannot be given back is named in the log. Returns as well when the tree has not answered for some seconds.
    """
    mounted = find_mounted(mount_point)
    if mounted is None or not mounted.file_system_type.startswith("fuse.") or not is_root():
        return
    try:
        # A thread of its own, which ends with this: it leaves our mount namespace.
        within_bound(lambda: _mend(mounted, _note_device(state_dir, mounted.device)))
    except OSError as error:
        log.warning("containers could not be given %s back: %s", mount_point, error.strerror)


def _note_device(state_dir: Path, device: int) -> set[int]:
    """Adds a number to those that the state directory's mounts have had since the machine was started; the others.

    The kernel gives a number again once nothing is left of a file system: not while a container still has a part of it.
    """
    path = state_dir / _DEVICES_FILE
    boot = current_boot_id()
    line = f"{boot} {device}"
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        lines = []
    lines = [known for known in lines if known.startswith(boot) and known != line][1 - _DEVICES_MAX :]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{known}\n" for known in [*lines, line]))
    temporary.replace(path)
    return {int(known.rpartition(" ")[2]) for known in lines}


def _mend(mounted: MountedTree, earlier_devices: set[int]) -> None:
    with ExitStack() as opened:
        tree = _open_path(mounted.mount_point)
        opened.callback(os.close, tree)
        leave_shared_paths()
        for process in _one_process_of_each_namespace():
            for bound in _find_like(mounted, earlier_devices, process):
                _try_to_give_back(tree, bound, process)


def _try_to_give_back(tree: int, bound: MountedTree, process: int) -> None:
    try:
        if _give_back(tree, bound, process):
            log.info("gave %s of process %d back: %s", bound.mount_point, process, bound.root)
    except LostInNamespace:
        raise
    except OSError as error:
        # A container that has just ended, a directory that is no more.
        log.warning("%s of process %d stays dead: %s", bound.mount_point, process, error.strerror)


def _one_process_of_each_namespace() -> list[int]:
    """Of each mount namespace but ours that our user namespace owns, a process in it."""
    found: dict[int, int] = {}
    own = _PROC.joinpath("self/ns/mnt").stat().st_ino
    for process in (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()):
        with suppress(OSError):  # it may have ended
            namespace = _PROC.joinpath(str(process), "ns/mnt").stat().st_ino
            if namespace != own and namespace not in found and _has_our_namespace(process):
                found[namespace] = process
    return list(found.values())


def _has_our_namespace(process: int) -> bool:
    with ExitStack() as opened:
        namespace = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY)
        opened.callback(os.close, namespace)
        return _is_of_our_user_namespace(namespace)


def _is_of_our_user_namespace(namespace: int) -> bool:
    """In one of their own, users mount what they like, and say what they like of whose it is."""
    owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
    try:
        return os.fstat(owner).st_ino == _PROC.joinpath("self/ns/user").stat().st_ino
    finally:
        os.close(owner)


def _find_like(mounted: MountedTree, earlier_devices: set[int], process: int) -> list[MountedTree]:
    """The topmost mounts in the process's namespace that are directories of an earlier mount of ours."""
    try:
        topmost = {tree.mount_point: tree for tree in list_mounted(process)}
    except OSError:
        return []
    same = (mounted.file_system_type, mounted.source, mounted.owner_uid)
    return [
        tree
        for tree in topmost.values()
        if (tree.file_system_type, tree.source, tree.owner_uid) == same and tree.device in earlier_devices
    ]


def _give_back(tree: int, bound: MountedTree, process: int) -> bool:
    """Mounts the directory of our tree over the bound one of the same name; False where that one is alive.

    Raises OSError.
    """
    with ExitStack() as opened:

        def keep(descriptor: int) -> int:
            opened.callback(os.close, descriptor)
            return descriptor

        namespace = keep(os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY))
        if not _is_of_our_user_namespace(namespace):
            return False  # another process has the number by now
        place = keep(open_beneath(keep(_open_path(Path(f"/proc/{process}/root"))), str(bound.mount_point)))
        if _mount_id_of(place) != bound.mount_id or not _is_dead(place):
            return False
        attributes = sum(ATTRIBUTE_BY_WORD.get(word, 0) for word in bound.words)
        directory = keep(pick_up(keep(open_beneath(tree, bound.root)), attributes))
        own_namespace = keep(os.open("/proc/self/ns/mnt", os.O_RDONLY))
        enter_mount_namespace(namespace)
        try:
            put_down(directory, place)
        finally:
            try:
                enter_mount_namespace(own_namespace)
            except OSError as error:
                raise LostInNamespace(error.errno, error.strerror) from error
        return True


def _is_dead(place: int) -> bool:
    try:
        os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place))
    except OSError as error:
        return error.errno in _DEAD
    return False


def _mount_id_of(descriptor: int) -> int:
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    )
    return int(fields["mnt_id"])


def _open_path(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY)
