"""What a program can see of its directory and of its open files, as values that two filesystems must agree on.

Left out is what POSIX leaves to the filesystem: inode numbers, the sizes of directories, blocks, and access times that
nobody has set.
"""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

from conformance.program import Program
from support.xattrs import xattrs_of

_CLOCK_BEGINS_NS: Final = 10**18
"""Later times come from the clock, earlier ones were set by the test."""


class Status(NamedTuple):
    """Of a name or an open file."""

    mode: int
    uid: int
    gid: int
    link_count: int
    size_bytes: int
    target: bytes
    same_as: bytes
    """The first name or open file that is the same inode."""
    modified_ns: int | None
    """None: by the clock."""
    xattrs: tuple[tuple[str, bytes], ...]
    """In the order of their names: tmpfs lists them in none."""


class Times(NamedTuple):
    modified_ns: int
    changed_ns: int


class Observation:
    """`statuses` by relative path, and by `slot N` for an open file."""

    def __init__(self, program: Program) -> None:
        self.statuses: dict[bytes, Status] = {}
        self.times: dict[bytes, Times] = {}
        self._inodes: dict[bytes, int] = {}
        self._first_places: dict[int, bytes] = {}
        with program.in_directory():
            self._note(b".", os.stat(b"."), b"", tuple(sorted(xattrs_of(b".").items())))
            self._walk(b"")
        for slot, descriptor in sorted(program.slots.items()):
            self._note(
                b"slot %d" % slot, os.fstat(descriptor), b"", tuple(sorted(xattrs_of(descriptor).items()))
            )

    def moved_since(self, before: Observation) -> dict[bytes, tuple[bool, bool]]:
        """Whether the modification and the change time differ, of each inode that was there before."""
        earlier = {before._inodes[place]: times for place, times in before.times.items()}
        return {
            place: (
                times.modified_ns != earlier[inode].modified_ns,
                times.changed_ns != earlier[inode].changed_ns,
            )
            for place, times in self.times.items()
            if (inode := self._inodes[place]) in earlier
        }

    def _walk(self, directory: bytes) -> None:
        for name in sorted(os.listdir(directory or b".")):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            is_symlink = stat.S_ISLNK(status.st_mode)
            target = os.readlink(path) if is_symlink else b""
            self._note(path, status, target, () if is_symlink else tuple(sorted(xattrs_of(path).items())))
            if stat.S_ISDIR(status.st_mode):
                self._walk(path)

    def _note(
        self, place: bytes, status: os.stat_result, target: bytes, xattrs: tuple[tuple[str, bytes], ...]
    ) -> None:
        self._inodes[place] = status.st_ino
        self.times[place] = Times(status.st_mtime_ns, status.st_ctime_ns)
        self.statuses[place] = Status(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            link_count=status.st_nlink,
            size_bytes=0 if stat.S_ISDIR(status.st_mode) else status.st_size,
            target=target,
            same_as=self._first_places.setdefault(status.st_ino, place),
            modified_ns=status.st_mtime_ns if status.st_mtime_ns < _CLOCK_BEGINS_NS else None,
            xattrs=xattrs,
        )
