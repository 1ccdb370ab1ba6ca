"""What a mount holds for the kernel and for programs."""

from __future__ import annotations

from typing import NamedTuple

from support.mount_process import MountProcess


class Held(NamedTuple):
    files: int
    directories: int
    referenced_inodes: int
    known_inodes: int


def held_by(mount: MountProcess) -> Held:
    counters = mount.status()["counters"]
    return Held(
        counters["open_count"],
        counters["open_directory_count"],
        counters["referenced_inode_count"],
        counters["known_inode_count"],
    )
