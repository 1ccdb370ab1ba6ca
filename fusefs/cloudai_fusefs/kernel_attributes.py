"""What the kernel is told of an inode, and for how long it may believe it.

The one place where attributes become the kernel's own.
"""

from __future__ import annotations

import os
import stat
from typing import Final

import pyfuse3

from cloudai_fusefs.managed_tree import LatestLink, ManagedInode
from cloudai_fusefs.namespace import Inode
from cloudai_fusefs.node import DIRECTORY, FILE, SYMLINK, Node

_TIMEOUT_SEALED_SECONDS: Final = 3600.0
"""A sealed run never changes; its removal is told through the watch of its user."""
_TIMEOUT_WATCHED_SECONDS: Final = 30.0
"""While the watch is healthy the kernel is told of each change."""
_TIMEOUT_SHORT_SECONDS: Final = 1.0
_TIMEOUT_ABSENT_SECONDS: Final = 0.5
"""News of a name can overtake the answer that there was none, and would find nothing to correct."""

_TYPE_BITS: Final = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK}


class KernelAttributes:
    """Of one mount. With `uid` or `gid` one owner is shown for everything; `umask` takes bits from every mode."""

    def __init__(self, *, uid: int | None, gid: int | None, umask: int | None) -> None:
        self.uid = uid
        self.gid = gid
        self._mode_mask = ~(umask or 0)

    def of(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """Of what is there. The object is kept, and not to be changed."""
        # Building one is half of a listing's cost: kept until the inode changes.
        entry: pyfuse3.EntryAttributes | None = inode.kernel_attributes
        if entry is None:
            entry = inode.kernel_attributes = self._build(inode)
        return entry

    def _build(self, inode: Inode) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode.ino)
        entry.st_blksize = 128 * 1024
        entry.st_rdev = 0
        if isinstance(inode, ManagedInode):
            self._fill_managed(entry, inode)
        else:
            self._fill_node(entry, inode)
        if self.uid is not None:
            entry.st_uid = self.uid
        if self.gid is not None:
            entry.st_gid = self.gid
        entry.st_blocks = (entry.st_size + 511) // 512
        return entry

    def _fill_managed(self, entry: pyfuse3.EntryAttributes, inode: ManagedInode) -> None:
        is_link = isinstance(inode, LatestLink)
        mode = stat.S_IFLNK | 0o777 if is_link else stat.S_IFDIR | (0o755 & self._mode_mask)
        entry.st_mode = pyfuse3.ModeT(mode)
        entry.st_nlink = inode.link_count
        entry.st_size = len((inode.target or "").encode()) if isinstance(inode, LatestLink) else 0
        entry.st_uid = os.getuid()
        entry.st_gid = os.getgid()
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = inode.changed_at_ns
        entry.entry_timeout = entry.attr_timeout = _TIMEOUT_SHORT_SECONDS

    def _fill_node(self, entry: pyfuse3.EntryAttributes, node: Node) -> None:
        mode = node.mode if node.kind == SYMLINK else node.mode & self._mode_mask
        entry.st_mode = pyfuse3.ModeT(_TYPE_BITS[node.kind] | mode)
        entry.st_nlink = node.link_count
        entry.st_uid = node.uid
        entry.st_gid = node.gid
        entry.st_size = node.kernel_size_bytes
        entry.st_mtime_ns = node.mtime_ns
        entry.st_ctime_ns = node.ctime_ns
        entry.st_atime_ns = node.atime_ns
        tree = node.tree
        if node is tree.root:
            timeout_seconds = _TIMEOUT_SHORT_SECONDS  # its name may go with the run
        elif tree.is_sealed:
            timeout_seconds = _TIMEOUT_SEALED_SECONDS
        elif tree.watch_is_healthy:
            timeout_seconds = _TIMEOUT_WATCHED_SECONDS
        else:
            timeout_seconds = _TIMEOUT_SHORT_SECONDS
        entry.entry_timeout = entry.attr_timeout = timeout_seconds

    @staticmethod
    def absent(parent: Inode) -> pyfuse3.EntryAttributes | None:
        """An answer that lets the kernel remember that there is no such name; None: it may come unseen."""
        if not isinstance(parent, Node) or not (parent.tree.is_sealed or parent.tree.watch_is_healthy):
            return None
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(0)
        entry.entry_timeout = _TIMEOUT_SEALED_SECONDS if parent.tree.is_sealed else _TIMEOUT_ABSENT_SECONDS
        return entry
