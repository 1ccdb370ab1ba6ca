"""The operations on names: look up, list, make, rename, remove, link, set attributes.

Local first: what makes something is recorded here and committed later, and so is, as a rule, what takes a file
away. What else takes away or renames something that the master knows asks the master first, so that its refusal
reaches the program; what was removed here before goes before it.

An await may let any other operation in: after each, what was looked up before is looked up again.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Callable
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
    AlreadyExists,
    CloudAIError,
    DirectoryNotEmpty,
    InvalidName,
    InvalidRequest,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotFound,
    OutsideRun,
    PermissionRefused,
    ReadOnlyMount,
)
from cloudai_model.limits import NAME_BYTES_MAX, REQUEST_ID_BYTES, TIME_NS_MAX, TIME_NS_MIN
from cloudai_model.names import (
    LATEST,
    check_managed_name,
    check_name,
    check_run_name,
    check_symlink_target,
)
from cloudai_proto.storage.v1 import names_pb2 as names
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


def new_request_id() -> bytes:
    return secrets.token_bytes(REQUEST_ID_BYTES)


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
            child = _children(parent).get(name)
            if child is None:
                raise NotFound(name=name)
            return child
        found = await self._lookup_managed(parent, name)
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
        elif isinstance(directory, UserDirectory):
            await self._sync.load_user(directory)
        elif isinstance(directory, RootDirectory) and not directory.users:
            self._managed.take_users(await self._client.list_users())

    async def list(self, directory: Inode) -> list[tuple[bytes, Inode]]:
        """The names in the directory and what they stand for, in a fixed order, without `.` and `..`."""
        await self.load(directory)
        if isinstance(directory, Node):
            return list(_children(directory).items())
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
            if directory.edges:
                return directory.edges[0][0]
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
        directory = await self._directory_for_new_name(parent, name)
        node = self._new_node(directory, FILE, mode, owner)
        self._place(directory, name, node)
        return node

    async def make_symlink(self, parent: Inode, name: bytes, target: bytes, owner: Owner) -> Node:
        """Raises as make_file, and InvalidRequest for what cannot be a target."""
        directory = await self._directory_for_new_name(parent, name)
        check_symlink_target(target)
        node = self._new_node(directory, SYMLINK, 0o777, owner)
        node.symlink_target = target
        node.size_bytes = len(target)
        self._place(directory, name, node)
        return node

    async def make_directory(self, parent: Inode, name: bytes, mode: int, owner: Owner) -> Inode:
        """A directory in a run; at the managed levels a task or a run, which the master makes at once.

        Raises as make_file, InvalidRunName for a run, PermissionRefused for a user.
        """
        if not isinstance(parent, Node):
            return await self._make_managed(parent, name, mode, owner)
        directory = await self._directory_for_new_name(parent, name)
        node = self._new_node(directory, DIRECTORY, mode, owner)
        self._place(directory, name, node)
        return node

    async def create_run(self, user: str, request: names.CreateRunRequest) -> RunTree:
        """A run made by the master, in the tree before its watch tells of it."""
        self._check_writable()
        run = await self._client.create_run(request)
        directory = self._managed.root.users.get(user)
        if directory is None:
            raise NotFound(user=user)
        await self._sync.load_user(directory)
        tree, _ = self._managed.take_run(directory, run)
        return tree

    async def link(self, node: Inode, new_parent: Inode, new_name: bytes) -> Node:
        """A further name of a file or symlink, within its run. The master must answer: it is made there.

        Raises PermissionRefused for a directory, NotSupported across runs.
        """
        directory = await self._directory_for_new_name(new_parent, new_name)
        if not isinstance(node, Node):
            raise PermissionRefused("only files and symlinks in a run can be linked")
        if node.is_directory:
            raise PermissionRefused("a directory has one name")
        if node.tree is not directory.tree:
            raise CrossRun
        await self._uploader.make_durable([node, directory])
        tree = node.tree
        async with self._changing_names(tree):
            if not directory.is_attached:
                raise NotFound("the directory is removed")
            response = await self._client.link(
                names.LinkRequest(
                    request_id=new_request_id(),
                    task_id=tree.task_id,
                    node_id=node.node_id,
                    parent_node_id=directory.node_id,
                    name=new_name,
                    mtime_ns=time.time_ns(),
                )
            )
            # The watch may have told of the name before, or of the directory's end.
            if directory.is_attached and new_name not in _children(directory):
                tree.add(directory, new_name, node)
            directory.touch()
            self._staging.note_directory_times(directory)
            node.take_server_state(response.node)
        return node

    # --- taking away -------------------------------------------------------------------------------------

    def unlink_at_once(self, parent: Inode, name: bytes) -> Node | None:
        """Takes a file's or symlink's name away where nothing has to be waited for, as mostly; None: it is for
        `unlink`. Raises NotFound and IsADirectory.
        """
        if not isinstance(parent, Node) or not parent.tree.is_kept or parent.tree.mutation_lock.locked():
            return None
        self._check_open(parent.tree)
        return self._record_removal(parent, name)

    async def unlink(self, parent: Inode, name: bytes) -> Node:
        """Takes a file's or symlink's name away, here first where that may be.

        Raises IsADirectory, and the master's refusal where it is asked first.
        """
        directory = await self._writable_directory(parent, name)
        if self._staging.removals.may_be_recorded(directory, name, _find_file(directory, name)):
            # What is under way may be a rename of this very name.
            async with directory.tree.mutation_lock:
                self._check_open(directory.tree)
                removed = self._record_removal(directory, name)
            if removed is not None:
                return removed
        return await self._remove(directory, name, _find_file)

    async def rmdir(self, parent: Inode, name: bytes) -> None:
        """Removes an empty directory; of the managed levels a task without runs or an open, empty run."""
        if not isinstance(parent, Node):
            await self._remove_managed(parent, name)
            return
        directory = await self._writable_directory(parent, name)
        await self._remove(directory, name, _find_empty_directory)

    async def rename(
        self, old_parent: Inode, old_name: bytes, new_parent: Inode, new_name: bytes, *, no_replace: bool
    ) -> None:
        """rename(2) within one run, with its rules for what the new name stood for.

        Raises CrossRun between runs (mv then copies), OutsideRun at the managed levels.
        """
        if not isinstance(old_parent, Node) or not isinstance(new_parent, Node):
            raise OutsideRun("users, tasks and runs keep their names")
        if old_parent.tree is not new_parent.tree:
            raise CrossRun
        source = await self._writable_directory(old_parent, old_name)
        target = await self._writable_directory(new_parent, new_name)
        tree = source.tree
        while True:
            node = _find(source, old_name)
            replaced = _check_rename(node, target, new_name, no_replace=no_replace)
            if replaced is node:
                return
            tree.check_place(target, new_name, node)
            if node.pending is not None and node.pending.place:
                if node.pending.covered_ids:
                    await self._uncover(source, old_name, node)
                    continue
                self._rename_here(source, old_name, target, new_name, node)
                return
            # The master knows it under the old name. Its content goes first: a reader of the new name must
            # not find half of what was written here.
            await self._uploader.make_durable([node, target])
            async with self._changing_names(tree):
                if _children(source).get(old_name) is not node or (
                    node.pending is not None and node.pending.place
                ):
                    continue
                if _check_rename(node, target, new_name, no_replace=no_replace) is not replaced:
                    continue
                if replaced is not None:
                    self._staging.note_replacing(replaced, node)
                moment_ns = time.time_ns()
                response = await self._client.rename(
                    names.RenameRequest(
                        request_id=new_request_id(),
                        task_id=tree.task_id,
                        node_id=node.node_id,
                        old_parent_node_id=source.node_id,
                        old_name=old_name,
                        new_parent_node_id=target.node_id,
                        new_name=new_name,
                        no_replace=no_replace,
                        mtime_ns=moment_ns,
                    )
                )
                tree.note_answered(node.node_id, response.revision)
                if replaced is not None:
                    tree.note_answered(replaced.node_id, response.revision)
                self._finish_rename(source, old_name, target, new_name, node, replaced)
                for renamed in (node, replaced):
                    if renamed is not None:
                        renamed.note_change(moment_ns)
                return

    # --- attributes --------------------------------------------------------------------------------------

    async def set_attributes(self, inode: Inode, change: AttributeChange) -> None:
        """Raises PermissionRefused above the runs, RunSealed, OSError when it cannot be recorded."""
        self._check_writable()
        if not isinstance(inode, Node):
            raise PermissionRefused("users, tasks and `latest` keep their attributes")
        await self.load(inode)
        self._check_open(inode.tree)
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

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnlyMount

    def _check_open(self, tree: RunTree) -> None:
        self._check_writable()
        tree.check_writable()

    async def _writable_directory(self, parent: Inode, name: bytes) -> Node:
        self._check_writable()
        if not isinstance(parent, Node):
            raise OutsideRun(name=name)
        check_name(name)
        await self.load(parent)
        self._check_open(parent.tree)
        if not parent.is_directory:
            raise NotADirectory(name=name)
        return parent

    async def _directory_for_new_name(self, parent: Inode, name: bytes) -> Node:
        directory = await self._writable_directory(parent, name)
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
            raise
        self._staging.note_directory_times(directory)

    def _record_removal(self, directory: Node, name: bytes) -> Node | None:
        """The node that had the name, which is removed here; None: the master is to be asked first."""
        removals = self._staging.removals
        node = _find_file(directory, name)
        if removals.may_be_recorded(directory, name, node):
            with suppress(OSError):  # a full disk, on which `rm` may be there to make room
                removals.record(directory, name, node)
                return node
        return None

    async def _remove(self, directory: Node, name: bytes, find: Callable[[Node, bytes], Node]) -> Node:
        """`find` says what the name stands for, or raises what speaks against removing it."""
        tree = directory.tree
        node = find(directory, name)
        moment_ns = time.time_ns()
        if node.ids_at_master or node.stray_ids:
            async with self._changing_names(tree):
                node = find(directory, name)
                moment_ns = time.time_ns()
                for node_id in node.ids_at_master:
                    await self._remove_at_master(directory, name, node_id, moment_ns)
                for node_id in node.stray_ids:
                    await self._remove_everywhere(tree, node_id, moment_ns)
                    self._staging.forget_stray(node_id)
                if _children(directory).get(name) is not node:
                    # The watch was faster: it does not tell of the node, nor of what has a change pending.
                    node.note_change(moment_ns)
                    directory.touch()
                    self._staging.note_directory_times(directory)
                    return node
        tree.detach(directory, name)
        node.note_change(moment_ns)
        if not node.edges:
            self._staging.discard(node)
        self._staging.note_directory_times(directory)
        return node

    @asynccontextmanager
    async def _changing_names(self, tree: RunTree) -> AsyncIterator[None]:
        """Names of the run are changed at the master in here, by nobody else of this mount, and all that it was sent
        before is done. Raises MasterUnavailable.
        """
        async with tree.mutation_lock:
            await self._uploader.send_unanswered(tree)
            await self._uploader.send_removals(tree)
            yield

    async def _uncover(self, directory: Node, name: bytes, node: Node) -> None:
        """Removes at the master what the node's commit would have replaced, before the node loses the name."""
        async with self._changing_names(directory.tree):
            pending = node.pending
            if pending is None or _children(directory).get(name) is not node:
                return
            for node_id in pending.covered_ids:
                await self._remove_at_master(directory, name, node_id, time.time_ns())
            pending.covered_ids = ()

    async def _remove_at_master(self, directory: Node, name: bytes, node_id: int, moment_ns: int) -> None:
        request = names.RemoveRequest(
            request_id=new_request_id(),
            task_id=directory.tree.task_id,
            node_id=node_id,
            parent_node_id=directory.node_id,
            name=name,
            mtime_ns=moment_ns,
        )
        with suppress(NotFound):  # it had not arrived after all, or somebody else was faster
            response = await self._client.remove(request)
            directory.tree.note_answered(node_id, response.revision)

    async def _remove_everywhere(self, tree: RunTree, node_id: int, moment_ns: int) -> None:
        request = names.RemoveRequest(
            request_id=new_request_id(), task_id=tree.task_id, node_id=node_id, mtime_ns=moment_ns
        )
        with suppress(NotFound):  # as above: either way it is gone
            response = await self._client.remove(request)
            tree.note_answered(node_id, response.revision)

    def _rename_here(self, source: Node, old_name: bytes, target: Node, new_name: bytes, node: Node) -> None:
        """Renames what the master has not placed yet; the commit will place it. Raises OSError: nothing changed."""
        tree = source.tree
        replaced = tree.move(source, old_name, target, new_name)
        pending = tree.note_pending(node)
        pending.covered_ids = replaced.ids_at_master if replaced is not None else ()
        strays_before = pending.stray_ids
        if replaced is not None:
            pending.stray_ids += replaced.stray_ids
        try:
            self._staging.note_moved(node, replaced)
        except OSError:
            tree.move(target, new_name, source, old_name)
            pending.covered_ids = ()
            pending.stray_ids = strays_before
            if replaced is not None:
                tree.add(target, new_name, replaced)
            raise
        self._note_moved(source, target, replaced)

    def _finish_rename(
        self,
        source: Node,
        old_name: bytes,
        target: Node,
        new_name: bytes,
        node: Node,
        replaced: Node | None,
    ) -> None:
        """The master has renamed. The watch may have told of all of it before, or of a part."""
        tree = source.tree
        if _children(source).get(old_name) is node:
            tree.detach(source, old_name)
        if _children(target).get(new_name) is not node:
            if new_name in _children(target):
                tree.detach(target, new_name)
            tree.add(target, new_name, node)
        source.touch()
        target.touch()
        with suppress(OSError):  # a full disk: the master has it under the new name, whatever the row says
            self._staging.note_path(node)
        self._note_moved(source, target, replaced)

    def _note_moved(self, source: Node, target: Node, replaced: Node | None) -> None:
        if replaced is not None and not replaced.edges:
            self._staging.discard(replaced)
        self._staging.note_directory_times(source)
        if target is not source:
            self._staging.note_directory_times(target)

    async def _lookup_managed(self, parent: ManagedInode, name: bytes) -> Inode | None:
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

    async def _make_managed(self, parent: ManagedInode, name: bytes, mode: int, owner: Owner) -> Inode:
        self._check_writable()
        if await self._lookup_managed(parent, name) is not None:
            raise AlreadyExists(name=name)
        try:
            text = name.decode()
        except UnicodeDecodeError:
            raise InvalidName("the name of a task or run is UTF-8", name=name) from None
        if isinstance(parent, UserDirectory):
            check_managed_name(text)
            request = names.CreateTaskRequest(request_id=new_request_id(), user=parent.name, task=text)
            await self._client.create_task(request)
            return self._managed.task_of(parent, text)
        if isinstance(parent, TaskDirectory):
            check_run_name(text)
            now_ns = time.time_ns()
            tree = await self.create_run(
                parent.parent.name,
                names.CreateRunRequest(
                    request_id=new_request_id(),
                    user=parent.parent.name,
                    task=parent.name,
                    name=text,
                    attributes=types.Attributes(
                        mode=mode & MODE_BITS,
                        uid=owner.uid,
                        gid=owner.gid,
                        mtime_ns=now_ns,
                        ctime_ns=now_ns,
                        atime_ns=now_ns,
                    ),
                ),
            )
            return tree.root
        raise PermissionRefused("users are made at the master, with their first token")

    async def _remove_managed(self, parent: ManagedInode, name: bytes) -> None:
        self._check_writable()
        inode = await self._lookup_managed(parent, name)
        if inode is None:
            raise NotFound(name=name)
        if isinstance(inode, TaskDirectory):
            if inode.runs:
                raise DirectoryNotEmpty(name=name)
            await self._client.remove_task(
                names.RemoveTaskRequest(request_id=new_request_id(), user=inode.parent.name, task=inode.name)
            )
            self._managed.drop_task(inode.parent, inode.name)
        elif isinstance(inode, Node) and isinstance(parent, TaskDirectory):
            tree = inode.tree
            await self._sync.load_run(tree)
            self._check_open(tree)
            if inode.children:
                raise DirectoryNotEmpty(name=name)
            async with self._changing_names(tree):
                if inode.children:
                    raise DirectoryNotEmpty(name=name)  # the master kept what was removed here
                await self._client.remove_run(
                    names.RemoveRunRequest(request_id=new_request_id(), task_id=tree.task_id)
                )
                run = types.Run(task=tree.task, name=tree.name, task_id=tree.task_id)
                self._managed.drop_run(parent.parent, run)
        elif isinstance(inode, LatestLink):
            raise PermissionRefused("`latest` follows the newest run by itself")
        else:
            raise PermissionRefused("users are removed at the master")


class CrossRun(InvalidRequest):
    """The two names are in different runs; programs copy instead."""

    reason = ""
    sentence = "names cannot be shared between runs"


def _kept_time_ns(moment_ns: int) -> int:
    """The moment, or the nearest that can be kept, as local file systems do."""
    return min(max(moment_ns, TIME_NS_MIN), TIME_NS_MAX)


def _children(node: Node) -> dict[bytes, Node]:
    if node.children is None:
        raise NotADirectory
    return node.children


def _find_file(directory: Node, name: bytes) -> Node:
    """The file or symlink of this name."""
    node = _find(directory, name)
    if node.is_directory:
        raise IsADirectory(name=name)
    return node


def _find_empty_directory(directory: Node, name: bytes) -> Node:
    node = _find(directory, name)
    if not node.is_directory:
        raise NotADirectory(name=name)
    if node.children:
        raise DirectoryNotEmpty(name=name)
    return node


def _find(directory: Node, name: bytes) -> Node:
    node = _children(directory).get(name)
    if node is None:
        raise NotFound(name=name)
    return node


def _check_rename(node: Node, target: Node, new_name: bytes, *, no_replace: bool) -> Node | None:
    """What the new name stands for now. Raises by the rules of rename(2)."""
    ancestor = target
    while True:
        if ancestor is node:
            raise InvalidRequest("a directory cannot be moved into itself")
        if not ancestor.edges:
            break
        ancestor = ancestor.edges[0][0]
    if not target.is_attached:
        raise NotFound("the directory is removed")
    replaced = _children(target).get(new_name)
    if replaced is None or replaced is node:
        return replaced
    if no_replace:
        raise AlreadyExists(name=new_name)
    if replaced.is_directory and not node.is_directory:
        raise IsADirectory(name=new_name)
    if node.is_directory and not replaced.is_directory:
        raise NotADirectory(name=new_name)
    if replaced.children:
        raise DirectoryNotEmpty(name=new_name)
    return replaced
