"""The changes above the runs: tasks and runs are made and removed at the master, which is asked at once.

An await may let any other operation in: after each, what was looked up before is looked up again.
"""

from __future__ import annotations

import time

from cloudai_fusefs.managed_tree import LatestLink, ManagedInode, ManagedTree, TaskDirectory, UserDirectory
from cloudai_fusefs.master_client import MasterClient, new_request_id
from cloudai_fusefs.namespace import MODE_BITS, Inode, Namespace, Owner
from cloudai_fusefs.node import Node
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.tree_sync import TreeSync
from cloudai_model.errors import AlreadyExists, DirectoryNotEmpty, InvalidName, NotFound, PermissionRefused
from cloudai_model.names import check_managed_name, check_run_name
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types


class ManagedChanges:
    """Changes of the levels that one mount's master manages."""

    def __init__(
        self, client: MasterClient, managed: ManagedTree, sync: TreeSync, namespace: Namespace
    ) -> None:
        self._client = client
        self._managed = managed
        self._sync = sync
        self._namespace = namespace

    async def make_directory(self, parent: ManagedInode, name: bytes, mode: int, owner: Owner) -> Inode:
        """A task or a run.

        Raises AlreadyExists, InvalidName, InvalidRunName, PermissionRefused for a user, ReadOnlyMount, and the
        client's errors.
        """
        self._namespace.check_writable()
        if await self._namespace.find_managed(parent, name) is not None:
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

    async def create_run(self, user: str, request: names.CreateRunRequest) -> RunTree:
        """A run made by the master, in the tree before its watch tells of it. Raises ReadOnlyMount, and the client's
        errors.
        """
        self._namespace.check_writable()
        run = await self._client.create_run(request)
        directory = self._managed.root.users.get(user)
        if directory is None:
            raise NotFound(user=user)
        await self._sync.load_user(directory)
        tree, _ = self._managed.take_run(directory, run)
        return tree

    async def remove_directory(self, parent: ManagedInode, name: bytes) -> None:
        """A task without runs or an open, empty run.

        Raises NotFound, DirectoryNotEmpty, RunSealed, PermissionRefused for what has no end here, and the client's
        errors.
        """
        self._namespace.check_writable()
        inode = await self._namespace.find_managed(parent, name)
        if inode is None:
            raise NotFound(name=name)
        if isinstance(inode, TaskDirectory):
            await self._remove_task(inode)
        elif isinstance(inode, Node) and isinstance(parent, TaskDirectory):
            await self._remove_run(parent, inode.tree)
        elif isinstance(inode, LatestLink):
            raise PermissionRefused("`latest` follows the newest run by itself")
        else:
            raise PermissionRefused("users are removed at the master")

    async def _remove_task(self, task: TaskDirectory) -> None:
        if task.runs:
            raise DirectoryNotEmpty(name=task.name.encode())
        await self._client.remove_task(
            names.RemoveTaskRequest(request_id=new_request_id(), user=task.parent.name, task=task.name)
        )
        self._managed.drop_task(task.parent, task.name)

    async def _remove_run(self, task: TaskDirectory, tree: RunTree) -> None:
        await self._sync.load_run(tree)
        self._namespace.check_open(tree)
        _check_empty(tree)
        async with self._namespace.changing_names(tree):
            _check_empty(tree)  # the master may have kept what was removed here
            await self._client.remove_run(
                names.RemoveRunRequest(request_id=new_request_id(), task_id=tree.task_id)
            )
            run = types.Run(task=tree.task, name=tree.name, task_id=tree.task_id)
            self._managed.drop_run(task.parent, run)


def _check_empty(tree: RunTree) -> None:
    if tree.root.children:
        raise DirectoryNotEmpty(name=tree.name.encode())
