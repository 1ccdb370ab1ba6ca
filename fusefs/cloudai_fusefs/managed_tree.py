"""The levels above the runs: the root, users, tasks, `latest`, and the runs as they are known.

Pure state, kept exact by the watch of each user that has been looked at. A run's own tree is a RunTree, made
with the run and loaded when somebody looks inside.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

import trio

from cloudai_fusefs.node import Node, new_node_id
from cloudai_fusefs.run_nodes import Invalidation
from cloudai_fusefs.run_tree import RunTree
from cloudai_model.names import LATEST
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

ROOT_INO: Final = 1


class ManagedInode:
    """A directory or symlink above the runs. Its attributes are the mount's own; it cannot be changed."""

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.changed_at_ns = time.time_ns()
        self.lookup_count = 0
        self.kernel_attributes: Any = None

    @property
    def link_count(self) -> int:
        """Of a directory: itself, its name and each directory in it that is known."""
        return 2

    def touch(self) -> None:
        self.changed_at_ns = time.time_ns()
        self.kernel_attributes = None


class RootDirectory(ManagedInode):
    def __init__(self) -> None:
        super().__init__(ROOT_INO)
        self.users: dict[str, UserDirectory] = {}

    @property
    def link_count(self) -> int:
        return 2 + len(self.users)


class UserDirectory(ManagedInode):
    """A user's tasks. `is_loaded` once they have been listed; from then on a watch keeps them."""

    def __init__(self, ino: int, parent: RootDirectory, name: str) -> None:
        super().__init__(ino)
        self.parent = parent
        self.name = name
        self.tasks: dict[str, TaskDirectory] = {}
        self.is_loaded = False
        self.loading_lock = trio.Lock()
        self.revision = 0

    @property
    def link_count(self) -> int:
        return 2 + len(self.tasks)


class TaskDirectory(ManagedInode):
    """A task's runs by name."""

    def __init__(self, ino: int, parent: UserDirectory, name: str) -> None:
        super().__init__(ino)
        self.parent = parent
        self.name = name
        self.runs: dict[str, RunTree] = {}
        self.latest = LatestLink(ino + 1, self)

    @property
    def link_count(self) -> int:
        return 2 + len(self.runs)


class LatestLink(ManagedInode):
    """`latest`: a symlink to the task's newest run."""

    def __init__(self, ino: int, task: TaskDirectory) -> None:
        super().__init__(ino)
        self.task = task

    @property
    def link_count(self) -> int:
        return 1

    @property
    def target(self) -> str | None:
        """The newest run's name, which is the greatest; None while there is no run."""
        return max(self.task.runs, default=None)


class ManagedTree:
    """All that is above the runs, and the inodes of the mount."""

    def __init__(self) -> None:
        self.inodes: dict[int, ManagedInode | Node] = {}
        self._next_ino = ROOT_INO + 1
        self.root = RootDirectory()
        self.inodes[ROOT_INO] = self.root
        self.runs: dict[str, RunTree] = {}

    def make_root(self, inode: ManagedInode | Node) -> None:
        """From here on the mount shows this directory alone: it takes the number that the kernel asks for first.

        Before the mount, so that nobody knows another number of it.
        """
        assert inode.lookup_count == 0
        if inode is self.root:
            return
        del self.inodes[inode.ino]
        self.root.ino = self._take_ino()
        inode.ino = ROOT_INO
        inode.lookup_count = 1  # the kernel's own: it is never given back
        inode.kernel_attributes = None
        self.inodes[ROOT_INO] = inode

    def take_users(self, users: Iterable[str]) -> None:
        """The users that the master shows."""
        for user in users:
            if user not in self.root.users:
                directory = UserDirectory(self._take_ino(), self.root, user)
                self.root.users[user] = directory
                self.inodes[directory.ino] = directory
                self.root.touch()

    def task_of(self, user: UserDirectory, name: str) -> TaskDirectory:
        """The task's directory, made if it was not known."""
        task = user.tasks.get(name)
        if task is None:
            task = user.tasks[name] = TaskDirectory(self._take_ino(), user, name)
            self.inodes[task.ino] = task
            self.inodes[task.latest.ino] = task.latest
            user.touch()
        return task

    def take_run(self, user: UserDirectory, run: types.Run) -> tuple[RunTree, list[Invalidation]]:
        """The run as the master says it is now; returns its tree and what the kernel must hear of it."""
        task = self.task_of(user, run.task)
        tree = self.runs.get(run.task_id)
        if tree is None:
            tree = RunTree(run, self.register, self.forget_inode)
            tree.user = user.name
            self.runs[run.task_id] = task.runs[run.name] = tree
            task.touch()
            return tree, [Invalidation(task.ino), Invalidation(task.ino, LATEST.encode())]
        if run.sealed and not tree.is_sealed:
            tree.note_sealed(run)
            return tree, [Invalidation(node.ino) for node in tree.nodes.values() if node.lookup_count]
        return tree, []

    def drop_run(self, user: UserDirectory, run: types.Run) -> list[Invalidation]:
        task = user.tasks.get(run.task)
        tree = self.runs.pop(run.task_id, None)
        if tree is None or task is None:
            return []
        tree.forget()
        task.runs.pop(run.name, None)
        task.touch()
        return [
            Invalidation(task.ino, run.name.encode(), tree.root.ino),
            Invalidation(task.ino, LATEST.encode()),
            Invalidation(task.ino),
        ]

    def drop_task(self, user: UserDirectory, name: str) -> list[Invalidation]:
        task = user.tasks.get(name)
        # The mount's root stays what it is: a task of this name that is made again is this one.
        if task is None or task.ino == ROOT_INO:
            return []
        del user.tasks[name]
        user.touch()
        self.forget_if_unused(task)
        self.forget_if_unused(task.latest)
        return [Invalidation(user.ino, name.encode(), task.ino), Invalidation(user.ino)]

    def apply_changes(self, user: UserDirectory, response: names.WatchResponse) -> list[Invalidation]:
        """What the user's watch brought."""
        told: list[Invalidation] = []
        for change in response.changes:
            match change.WhichOneof("change"):
                case "run_changed" if change.run_changed.removed:
                    told += self.drop_run(user, change.run_changed)
                case "run_changed":
                    told += self.take_run(user, change.run_changed)[1]
                case "task_changed" if change.task_changed.removed:
                    told += self.drop_task(user, change.task_changed.name)
                case "task_changed":
                    self.task_of(user, change.task_changed.name)
                    told.append(Invalidation(user.ino))
                case _:
                    pass  # a kind of change that this version does not know
        user.revision = max(user.revision, response.revision)
        return told

    def apply_lists(
        self, user: UserDirectory, tasks: Iterable[types.Task], runs: Iterable[types.Run]
    ) -> list[Invalidation]:
        """All of a user's tasks and runs as listed; what is not among them is gone."""
        told: list[Invalidation] = []
        task_names = set()
        for task in tasks:
            self.task_of(user, task.name)
            task_names.add(task.name)
        task_ids = set()
        for run in runs:
            told += self.take_run(user, run)[1]
            task_ids.add(run.task_id)
            task_names.add(run.task)
        for known in list(user.tasks.values()):
            for tree in list(known.runs.values()):
                if tree.task_id not in task_ids:
                    told += self.drop_run(
                        user, types.Run(task=tree.task, name=tree.name, task_id=tree.task_id)
                    )
            if known.name not in task_names:
                told += self.drop_task(user, known.name)
        user.is_loaded = True
        return told

    def register(self, inode: ManagedInode | Node) -> None:
        """Puts the inode into the table, under another number if its own is another's.

        Of nodes with one id only the last is in its tree. The kernel can still have an earlier one: a directory that
        has another id by now, or one that gave its id to another and is open. Both under one number, what the kernel
        gives back of the one would be taken from the other.
        """
        holder = self.inodes.get(inode.ino)
        if holder is inode:
            return
        if holder is not None:
            inode.ino = new_node_id()
            inode.kernel_attributes = None
        self.inodes[inode.ino] = inode

    def forget_inode(self, inode: ManagedInode | Node) -> None:
        """Takes an inode that nothing refers to out of the table."""
        if self.inodes.get(inode.ino) is inode and inode.lookup_count == 0:
            del self.inodes[inode.ino]

    def forget_if_unused(self, inode: ManagedInode) -> None:
        """Lets go of a task's directory or `latest` that nothing refers to any more."""
        task = inode.task if isinstance(inode, LatestLink) else inode
        if isinstance(task, TaskDirectory) and task.parent.tasks.get(task.name) is not task:
            self.forget_inode(inode)

    def _take_ino(self) -> int:
        # Two at a time: a task's directory and its `latest`.
        ino = self._next_ino
        self._next_ino += 2
        return ino
