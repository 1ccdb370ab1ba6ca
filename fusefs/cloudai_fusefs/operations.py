"""The kernel's requests: translated, and nothing else. What a handler raises is seen to around it (`handler_guard`)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, cast

import pyfuse3
import trio

from cloudai_fusefs.extended_attributes import ExtendedAttributes
from cloudai_fusefs.handler_guard import handler, prompt_handler, to_fuse_error
from cloudai_fusefs.handler_patience import HandlerPatience
from cloudai_fusefs.kernel_attributes import KernelAttributes
from cloudai_fusefs.late_answers import LateAnswers
from cloudai_fusefs.managed_changes import ManagedChanges
from cloudai_fusefs.managed_tree import ManagedTree
from cloudai_fusefs.namespace import AttributeChange, Inode, Namespace, Owner
from cloudai_fusefs.node import Node
from cloudai_fusefs.open_directories import DOT_COUNT, OpenDirectories
from cloudai_fusefs.open_files import Opened, OpenFiles
from cloudai_fusefs.rearrangements import Rearrangements
from cloudai_fusefs.request_counters import RequestCounters
from cloudai_model.errors import InvalidRequest, IsADirectory, NotFound, PermissionRefused
from cloudai_model.limits import NAME_BYTES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names

STATFS_UNIT_BYTES: Final = 4096

_UNBOUND: Final = nullcontext()

_GRACE_SECONDS: Final = 1.0
"""Beyond timeo: what waits within a request has its own bound there, and says better why it gave up."""


class Operations(pyfuse3.Operations):
    """The handlers of one mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        managed: ManagedTree,
        namespace: Namespace,
        rearrangements: Rearrangements,
        managed_changes: ManagedChanges,
        files: OpenFiles,
        directories: OpenDirectories,
        usage: Callable[[], Awaitable[names.GetUsageResponse]],
        patience: HandlerPatience,
        late_answers: LateAnswers,
        xattrs: ExtendedAttributes | None,
        attributes: KernelAttributes,
        *,
        timeo_seconds: float,
    ) -> None:
        super().__init__()
        self._managed = managed
        self._namespace = namespace
        self._rearrangements = rearrangements
        self._managed_changes = managed_changes
        self._files = files
        self._directories = directories
        self._usage = usage
        self.patience = patience
        self._late_answers = late_answers
        self._xattrs = xattrs
        self._attributes = attributes
        self.wait_seconds_max = timeo_seconds + _GRACE_SECONDS
        self.counters = RequestCounters()
        self._unprivileged: set[int] = (
            set()
        )  # handles past the pages that somebody other than root has opened

    # --- names -------------------------------------------------------------------------------------------

    @prompt_handler
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._namespace.inode(parent_inode)
        try:
            with self._bound_of(parent):
                return self._entry(await self._namespace.lookup(parent, name))
        except NotFound:
            absence = self._attributes.absent(parent)
            if absence is None:
                raise
            return absence

    @prompt_handler
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        found = self._namespace.inode(inode)
        await self._namespace.load_attributes(found)
        return self._attributes.of(found)

    @prompt_handler
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._namespace.readlink(self._namespace.inode(inode))

    @prompt_handler
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent, owner = self._namespace.inode(parent_inode), self._owner(ctx)
        with self._bound_of(parent):
            made: Inode
            if isinstance(parent, Node):
                made = await self._namespace.make_directory(parent, name, mode & ~ctx.umask, owner)
            else:
                made = await self._managed_changes.make_directory(parent, name, mode & ~ctx.umask, owner)
        self._late_answers.note_changed(parent)
        return self._entry(made)

    @handler
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if not stat.S_ISREG(mode):
            raise PermissionRefused("devices, fifos and sockets cannot be kept in a run", name=name)
        parent = self._namespace.inode(parent_inode)
        node = await self._namespace.make_file(parent, name, mode & ~ctx.umask, self._owner(ctx))
        self._late_answers.note_changed(parent)
        return self._entry(node)

    @prompt_handler
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._namespace.inode(parent_inode)
        with self._bound_of(parent):
            made = await self._namespace.make_symlink(parent, name, target, self._owner(ctx))
        self._late_answers.note_changed(parent)
        return self._entry(made)

    @handler
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        new_parent = self._namespace.inode(new_parent_inode)
        linked = await self._rearrangements.link(self._namespace.inode(inode), new_parent, new_name)
        self._late_answers.note_changed(new_parent)
        return self._entry(linked)

    @prompt_handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        parent = self._namespace.inode(parent_inode)
        node = self._rearrangements.unlink_at_once(parent, name)
        if node is None:
            with trio.fail_after(self.wait_seconds_max):
                node = await self._rearrangements.unlink(parent, name)
        self._late_answers.note_changed(parent)
        self._forget_if_unused(node)

    @handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        parent = self._namespace.inode(parent_inode)
        if isinstance(parent, Node):
            await self._rearrangements.rmdir(parent, name)
        else:
            await self._managed_changes.remove_directory(parent, name)
        self._late_answers.note_changed(parent)

    @handler
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise InvalidRequest("of rename's flags only RENAME_NOREPLACE is offered", flags=flags)
        old_parent = self._namespace.inode(parent_inode_old)
        new_parent = self._namespace.inode(parent_inode_new)
        no_replace = bool(flags & pyfuse3.RENAME_NOREPLACE)
        await self._rearrangements.rename(old_parent, name_old, new_parent, name_new, no_replace=no_replace)
        self._late_answers.note_changed(old_parent, new_parent)

    @handler
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        target = self._files.node_of(fh) if fh is not None else self._namespace.inode(inode)
        if fields.update_size and isinstance(target, Node):
            await self._namespace.load(target)
            await self._files.truncate(target, attr.st_size)
        change = AttributeChange(
            mode=attr.st_mode if fields.update_mode else None,
            uid=self._new_owner(attr.st_uid, self._attributes.uid) if fields.update_uid else None,
            gid=self._new_owner(attr.st_gid, self._attributes.gid) if fields.update_gid else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
        )
        if change != AttributeChange():
            await self._namespace.set_attributes(target, change)
        return self._attributes.of(target)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            try:
                self._forget(ino, count)
            except Exception as error:  # noqa: BLE001 - the kernel expects no answer, and an errno would end the mount
                to_fuse_error("forget", error, self.counters)

    # --- directories -------------------------------------------------------------------------------------

    @prompt_handler
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        directory = self._namespace.inode(inode)
        with self._bound_of(directory):
            return await self._directories.open(directory)

    @prompt_handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if self._directories.needs_look(fh, start_id):
            with self._bound_of(self._directories.directory_of(fh)):
                await self._directories.look(fh)
        for position, name, inode in self._directories.entries(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, self._attributes.of(inode), position + 1):
                return
            if position >= DOT_COUNT:
                self._refer_to(inode)  # its number stays what was answered: what has a name is in the table

    @prompt_handler
    async def releasedir(self, fh: int) -> None:
        self._directories.close(fh)

    @handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        directory = self._directories.directory_of(fh)
        if isinstance(directory, Node):
            await self._files.fsync(directory)

    # --- contents ----------------------------------------------------------------------------------------

    @prompt_handler
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        node = self._namespace.inode(inode)
        if not isinstance(node, Node):
            raise IsADirectory
        if flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY:  # waits for nobody
            return self._file_info(await self._files.open(node, flags), ctx)
        with trio.fail_after(self.wait_seconds_max):
            if flags & os.O_TRUNC and ctx.uid != 0:
                # Before writes and truncations the kernel does so itself, and leaves this one to its filesystem.
                await self._namespace.clear_privileges(node)
            return self._file_info(await self._files.open(node, flags), ctx)

    @prompt_handler
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        parent = self._namespace.inode(parent_inode)
        with self._bound_of(parent):
            node = await self._namespace.make_file(parent, name, mode & ~ctx.umask, self._owner(ctx))
        self._late_answers.note_changed(parent)
        return self._file_info(self._files.open_new(node, flags), ctx), self._entry(node)

    @prompt_handler
    async def read(self, fh: int, off: int, size: int) -> bytes:
        # pyfuse3 takes any buffer, whatever its annotation says: a view of a cached chunk costs no copy.
        return cast("bytes", await self._files.read(fh, off, size))

    @prompt_handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        if fh in self._unprivileged:
            # What the kernel does itself where its pages are written.
            node = self._files.node_of(fh)
            with self._bound_of(node):
                await self._namespace.clear_privileges(node)
        if not self._files.write_at_once(fh, off, buf):
            with trio.fail_after(self.wait_seconds_max):
                await self._files.write(fh, off, buf)
        return len(buf)

    async def flush(self, fh: int) -> None:
        # close(2) of one descriptor. What write(2) acknowledged is recorded by then, so there is nothing to do;
        # answered so the kernel never asks again, which is one of four round trips that a small file takes.
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.fsync(self._files.node_of(fh))

    @prompt_handler
    async def release(self, fh: int) -> None:
        self._unprivileged.discard(fh)
        self._forget_if_unused(self._files.release(fh))

    # --- the mount ---------------------------------------------------------------------------------------

    @handler
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        usage = await self._usage()
        size_bytes, free_bytes = usage.store_size_bytes, usage.store_free_bytes
        if usage.limit_bytes:
            size_bytes = min(size_bytes, usage.limit_bytes)
            free_bytes = min(free_bytes, max(0, usage.limit_bytes - usage.used_bytes))
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = STATFS_UNIT_BYTES
        data.f_blocks = size_bytes // STATFS_UNIT_BYTES
        data.f_bfree = data.f_bavail = free_bytes // STATFS_UNIT_BYTES
        data.f_files = data.f_ffree = data.f_favail = 1 << 32
        data.f_namemax = NAME_BYTES_MAX
        return data

    # Switched off they are answered with ENOSYS, and the kernel never asks again: `ls -l` asks for three of these
    # per file, 1.2-1.7 s for 10,000 files against 0.05 s.

    @prompt_handler
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if self._xattrs is None:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        found = self._namespace.inode(inode)
        with self._bound_of(found):
            return await self._xattrs.get(found, name)

    @prompt_handler
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        if self._xattrs is None:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        found = self._namespace.inode(inode)
        with self._bound_of(found):
            return await self._xattrs.list(found)

    @prompt_handler
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        # XATTR_CREATE and XATTR_REPLACE do not come here: pyfuse3 asks getxattr first. Nothing comes in between, as the
        # kernel holds the inode's lock around both.
        if self._xattrs is None:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        found = self._namespace.inode(inode)
        with self._bound_of(found):
            await self._xattrs.set(found, name, value)

    @prompt_handler
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        if self._xattrs is None:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        found = self._namespace.inode(inode)
        with self._bound_of(found):
            await self._xattrs.remove(found, name)

    # --- translation -------------------------------------------------------------------------------------

    def _file_info(self, opened: Opened, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if opened.passes_pages and ctx.uid != 0:
            self._unprivileged.add(opened.handle)
        return pyfuse3.FileInfo(
            fh=opened.handle, keep_cache=opened.keeps_pages, direct_io=opened.passes_pages
        )

    def _bound_of(self, directory: Inode) -> AbstractContextManager[object]:
        """A bound for what has to know the directory: one costs 10-25 us, a sixth of a small request, and what is
        known already is not waited for.
        """
        if isinstance(directory, Node) and directory.tree.is_kept:
            return _UNBOUND
        return trio.fail_after(self.wait_seconds_max)

    def _entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """The attributes, as the answer that gives the kernel one more reference."""
        self._refer_to(inode)
        return self._attributes.of(inode)

    def _refer_to(self, inode: Inode) -> None:
        """The kernel has one reference more, which it gives back with forget."""
        self.counters.referenced_inode_count += not inode.lookup_count
        inode.lookup_count += 1
        self._managed.register(inode)

    def _forget(self, ino: int, count: int) -> None:
        """The kernel gives so many references to the inode back."""
        inode = self._managed.inodes.get(ino)
        if inode is None:
            return
        inode.lookup_count -= count
        self.counters.referenced_inode_count -= not inode.lookup_count
        if isinstance(inode, Node):
            if not inode.lookup_count:
                self._files.note_forgotten(inode)
            self._forget_if_unused(inode)
        else:
            self._managed.forget_if_unused(inode)

    def _forget_if_unused(self, node: Node) -> None:
        node.tree.forget_if_unused(node)

    def _owner(self, ctx: pyfuse3.RequestContext) -> Owner:
        return Owner(ctx.uid, ctx.gid)

    @staticmethod
    def _new_owner(wanted: int, shown: int | None) -> int | None:
        """The owner to store. Where one owner is shown for all, setting it again is fine and no other."""
        if shown is None:
            return wanted
        if wanted != shown:
            raise PermissionRefused("this mount shows one owner for everything")
        return None
