"""The operations on names: look up, list, make, set attributes. What takes names away is in `rearrangements`, what is
changed above the runs in `managed_changes`.

Local first: what makes something is recorded here and committed later.

An await may let any other operation in: after each, what was looked up before is looked up again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import trio

from cloudai_fusefs.managed_tree import (
    ROOT_INO,
    LatestLink,
    ManagedInode,
    ManagedTree,
    RootDirectory,
    TaskDirectory,
    UserDirectory,
)
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.node import DIRECTORY, FILE, SYMLINK, Node, new_node_id
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.staging import Staging
from cloudai_fusefs.tree_sync import TreeSync
from cloudai_fusefs.uploader import Uploader
from cloudai_model.errors import (
    CloudAIError,
    InvalidRequest,
    NameTooLong,
    NotADirectory,
    NotFound,
    OutsideRun,
    PermissionRefused,
    ReadOnlyMount,
)
from cloudai_model.limits import NAME_BYTES_MAX, TIME_NS_MAX, TIME_NS_MIN
from cloudai_model.names import LATEST, check_name, check_symlink_target
from cloudai_proto.storage.v1 import types_pb2 as types

Inode = ManagedInode | Node

MODE_BITS: Final = 0o7777

RUN_LOOK_SECONDS_MAX: Final = 1.0
"""A run's own times and link count are exact once its tree is known; a look at them waits no longer for it."""


@dataclass(frozen=True)
class Owner:
    """Who asks: the numeric owner of what is made."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class AttributeChange:
    """What setattr changes; None: kept."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None


class Namespace:
    """Names of one mount."""

    def __init__(
        self,
        client: MasterClient,
        managed: ManagedTree,
        sync: TreeSync,
        staging: Staging,
        uploader: Uploader,
        *,
        read_only: bool,
    ) -> None:
        self._client = client
        self._managed = managed
        self._sync = sync
        self._staging = staging
        self._uploader = uploader
        self._read_only = read_only

    # --- looking -----------------------------------------------------------------------------------------

    def inode(self, ino: int) -> Inode:
        """Raises NotFound for a number that the kernel should not have any more."""
        try:
            return self._managed.inodes[ino]
        except KeyError:
            raise NotFound(ino=ino) from None

    async def lookup(self, parent: Inode, name: bytes) -> Inode:
        """What the name stands for.

        Raises NotFound, NameTooLong, NotADirectory, and the client's errors on a first look.
        """
        if len(name) > NAME_BYTES_MAX:
            raise NameTooLong(name=name)
        if isinstance(parent, Node):
            await self.load(parent)
            child = children_of(parent).get(name)
            if child is None:
                raise NotFound(name=name)
            return child
        found = await self.find_managed(parent, name)
        if found is None:
            raise NotFound(name=name)
        await self.load_attributes(found)
        return found

    async def load_attributes(self, inode: Inode) -> None:
        """The inode's own attributes are exact afterwards, or as they were listed while the master is slow.

        Only an open run that has not been looked into needs it: rsync compares its time before it lists it.
        A sealed run's are those of its listing, for good, so that `ls -l` of many asks for none of their trees.
        """
        if isinstance(inode, Node) and not inode.tree.is_loaded and not inode.tree.is_sealed:
            with trio.move_on_after(RUN_LOOK_SECONDS_MAX), suppress(CloudAIError):
                await self._sync.load_run(inode.tree)

    async def load(self, directory: Inode) -> None:
        """What is in the directory is known afterwards."""
        if isinstance(directory, Node):
            if not directory.tree.is_kept:
                await self._sync.load_run(directory.tree)
            directory.tree.looked_at_seconds = trio.current_time()
        elif isinstance(directory, UserDirectory):
            await self._sync.load_user(directory)
        elif isinstance(directory, RootDirectory) and not directory.users:
            self._managed.take_users(await self._client.list_users())

    async def list(self, directory: Inode) -> list[tuple[bytes, Inode]]:
        """The names in the directory and what they stand for, in a fixed order, without `.` and `..`."""
        await self.load(directory)
        if isinstance(directory, Node):
            return list(children_of(directory).items())
        entries: dict[str, Inode] = {}
        if isinstance(directory, RootDirectory):
            entries.update(directory.users)
        elif isinstance(directory, UserDirectory):
            entries.update(directory.tasks)
        elif isinstance(directory, TaskDirectory):
            entries.update((name, tree.root) for name, tree in directory.runs.items())
            if directory.runs:
                entries[LATEST] = directory.latest
        else:
            raise NotADirectory
        return [(name.encode(), inode) for name, inode in entries.items()]

    async def find(self, path: str) -> Inode:
        """What a path from the tree's root stands for, "" the root itself. Raises as lookup; NotFound has the path."""
        inode: Inode = self._managed.root
        try:
            for name in filter(None, path.split("/")):
                inode = await self.lookup(inode, os.fsencode(name))
        except NotFound as error:
            raise NotFound(path=path) from error
        return inode

    def parent(self, directory: Inode) -> Inode:
        """What `..` stands for; of the mount's root it is itself."""
        if directory.ino == ROOT_INO:
            return directory
        if isinstance(directory, Node):
            if directory.first_edge is not None:
                return directory.first_edge[0]
            user = self._managed.root.users.get(directory.tree.user)
            task = user.tasks.get(directory.tree.task) if user is not None else None
            return task if task is not None else self._managed.root
        if isinstance(directory, TaskDirectory):
            return directory.parent
        return self._managed.root

    def readlink(self, inode: Inode) -> bytes:
        if isinstance(inode, LatestLink):
            target = inode.target
            if target is None:
                raise NotFound(name=LATEST)
            return target.encode()
        if isinstance(inode, Node) and inode.kind == SYMLINK:
            return inode.symlink_target
        raise InvalidRequest("not a symlink")

    # --- making ------------------------------------------------------------------------------------------

    async def make_file(self, parent: Inode, name: bytes, mode: int, owner: Owner) -> Node:
        """A new, empty file. Raises AlreadyExists, OutsideRun, RunSealed, OSError when the disk is full."""
        directory = await self.directory_for_new_name(parent, name)
        node = self._new_node(directory, FILE, mode, owner)
        self._place(directory, name, node)
        return node

    async def make_symlink(self, parent: Inode, name: bytes, target: bytes, owner: Owner) -> Node:
        """Raises as make_file, and InvalidRequest for what cannot be a target."""
        directory = await self.directory_for_new_name(parent, name)
        check_symlink_target(target)
        node = self._new_node(directory, SYMLINK, 0o777, owner)
        node.symlink_target = target
        node.size_bytes = len(target)
        self._place(directory, name, node)
        return node

    async def make_directory(self, parent: Inode, name: bytes, mode: int, owner: Owner) -> Node:
        """A directory in a run. Raises as make_file."""
        directory = await self.directory_for_new_name(parent, name)
        node = self._new_node(directory, DIRECTORY, mode, owner)
        self._place(directory, name, node)
        return node

    # --- attributes --------------------------------------------------------------------------------------

    async def set_attributes(self, inode: Inode, change: AttributeChange) -> None:
        """Raises PermissionRefused above the runs, RunSealed, OSError when it cannot be recorded."""
        self.check_writable()
        if not isinstance(inode, Node):
            raise PermissionRefused("users, tasks and `latest` keep their attributes")
        await self.load(inode)
        self.check_open(inode.tree)
        before = inode.attributes
        if change.mode is not None:
            inode.mode = change.mode & MODE_BITS
        if change.uid is not None:
            inode.uid = change.uid
        if change.gid is not None:
            inode.gid = change.gid
        if change.mtime_ns is not None:
            inode.mtime_ns = _kept_time_ns(change.mtime_ns)
        if change.atime_ns is not None:
            inode.atime_ns = _kept_time_ns(change.atime_ns)
        inode.touch(mtime=False)
        if inode.is_attached:
            try:
                self._staging.note_attributes(inode)
            except OSError:
                inode.attributes = before
                raise

    async def clear_privileges(self, node: Node) -> None:
        """Takes the setuid bit from a file, and the setgid bit where it is one: its content becomes another's.

        Without execution for the group that bit means no privilege. Raises as set_attributes.
        """
        mode = node.mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            mode &= ~stat.S_ISGID
        if node.is_file and mode != node.mode:
            await self.set_attributes(node, AttributeChange(mode=mode))

    # --- within ------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Raises ReadOnlyMount."""
        if self._read_only:
            raise ReadOnlyMount

    @asynccontextmanager
    async def changing_names(self, tree: RunTree) -> AsyncIterator[None]:
        """Names of the run are changed at the master in here, by nobody else of this mount, and all that it was sent
        before is done. Raises MasterUnavailable.
        """
        async with tree.mutation_lock:
            await self._uploader.send_unanswered(tree)
            await self._uploader.send_removals(tree)
            yield

    def check_open(self, tree: RunTree) -> None:
        """Raises ReadOnlyMount, RunSealed, or NotFound for a run that is removed."""
        self.check_writable()
        tree.check_writable()

    async def writable_directory(self, parent: Inode, name: bytes) -> Node:
        """The directory in a run in which the name may be changed, once what is in it is known.

        Raises OutsideRun at the managed levels, InvalidName, NotADirectory, as check_open, and the client's errors.
        """
        self.check_writable()
        if not isinstance(parent, Node):
            raise OutsideRun(name=name)
        check_name(name)
        await self.load(parent)
        self.check_open(parent.tree)
        if not parent.is_directory:
            raise NotADirectory(name=name)
        return parent

    async def directory_for_new_name(self, parent: Inode, name: bytes) -> Node:
        """The same for a name that comes to be. Raises NotFound for a removed directory, NameTooLong."""
        directory = await self.writable_directory(parent, name)
        if not directory.is_attached:
            raise NotFound("the directory is removed")
        directory.tree.check_place(directory, name)
        return directory

    @staticmethod
    def _new_node(directory: Node, kind: types.NodeKind, mode: int, owner: Owner) -> Node:
        node = Node(directory.tree, new_node_id(), kind)
        node.mode = mode & MODE_BITS
        node.uid = owner.uid
        # A directory with the setgid bit hands its group down (mkdir(2)).
        node.gid = directory.gid if directory.mode & 0o2000 else owner.gid
        if directory.mode & 0o2000 and kind == DIRECTORY:
            node.mode |= 0o2000
        node.touch()
        node.atime_ns = node.mtime_ns
        return node

    def _place(self, directory: Node, name: bytes, node: Node) -> None:
        directory.tree.add(directory, name, node)
        try:
            self._staging.note_made(node)
        except OSError:
            directory.tree.detach(directory, name)
            self._staging.discard(node)
            directory.tree.forget_if_unused(node)
            raise
        self._staging.note_times(directory)

    async def find_managed(self, parent: ManagedInode, name: bytes) -> Inode | None:
        """What the name stands for above the runs; None: nothing. Raises as lookup, but for NotFound."""
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return None
        if isinstance(parent, RootDirectory):
            await self.load(parent)
            return parent.users.get(text)
        if isinstance(parent, UserDirectory):
            await self._sync.load_user(parent)
            return parent.tasks.get(text)
        if isinstance(parent, TaskDirectory):
            if text == LATEST and parent.runs:
                return parent.latest
            tree = parent.runs.get(text)
            return tree.root if tree is not None else None
        raise NotADirectory


def _kept_time_ns(moment_ns: int) -> int:
    """The moment, or the nearest that can be kept, as local file systems do."""
    return min(max(moment_ns, TIME_NS_MIN), TIME_NS_MAX)


def children_of(node: Node) -> dict[bytes, Node]:
    if node.children is None:
        raise NotADirectory
    return node.children
