"""What of a mount is not yet at the master, below a path: the state of each file, and their counts.

Read by `cloudai status`, `wait` and `umount`; changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import trio

from cloudai_fusefs.journal_rows import JournalRecord
from cloudai_fusefs.managed_tree import ManagedTree
from cloudai_fusefs.mount_control import FileState, FileStatus, UploadCounts
from cloudai_fusefs.node import Node, Pending
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.tree_sync import TreeSync
from cloudai_fusefs.uploader import Uploader
from cloudai_fusefs.waiting_removals import Removal

NODES_AT_ONCE: Final = 500
"""Looked at between two chances for others to run: about a millisecond."""


class PendingFiles:
    """Paths are those of the master's tree, "" is all of it."""

    def __init__(self, managed: ManagedTree, sync: TreeSync, uploader: Uploader) -> None:
        self._managed = managed
        self._sync = sync
        self._uploader = uploader

    def trees(self, path: str) -> list[RunTree]:
        """The runs below the path, or the one that it is in."""
        return [
            tree for tree in self._uploader.trees if is_below(tree.path, path) or is_below(path, tree.path)
        ]

    def below(self, path: str) -> Iterator[Node]:
        """The pending nodes at and below the path; those without a name, too, when it is a run or above."""
        for tree in self._uploader.trees:
            if is_below(tree.path, path):
                yield from list(tree.pending)
            elif is_below(path, tree.path):
                place = _find(tree, path)
                if place is not None:
                    yield from [node for node in tree.pending if _is_in(node, place)]

    def statuses(self, path: str) -> list[FileStatus]:
        """Of all that is pending below the path."""
        found = [
            _status_of(node, node.pending)
            for node in self.below(path)
            if node.first_edge is not None and node.pending is not None
        ]
        found += [_removal_status_of(removal) for removal in self._removals(path)]
        return found + [
            FileStatus(
                path=label,
                state=FileState.STAGED if failure is None else FileState.FAILED,
                size_bytes=0,
                uploaded_bytes=0,
                reason="" if failure is None else str(failure),
            )
            for label, failure in self.unread(path)
        ]

    async def counts(self, path: str, *, is_connected: bool) -> UploadCounts:
        """The same without names. Lets others run in between."""
        pending_count = pending_bytes = uploaded_bytes = failed_count = 0
        for number, node in enumerate(self.below(path), start=1):
            if number % NODES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            if node.first_edge is not None and node.pending is not None:
                size_bytes, stored_bytes = _progress_of(node, node.pending)
                pending_count += 1
                pending_bytes += size_bytes
                uploaded_bytes += stored_bytes
                failed_count += node.pending.failure is not None
        for number, removal in enumerate(self._removals(path), start=1):
            if number % NODES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            pending_count += 1
            failed_count += removal.node.tree.removals.failure is not None
        for _, failure in self.unread(path):
            pending_count += 1
            failed_count += failure is not None
        return UploadCounts(
            connected=is_connected,
            pending_count=pending_count,
            pending_bytes=pending_bytes,
            uploaded_bytes=uploaded_bytes,
            failed_count=failed_count,
        )

    def _removals(self, path: str) -> Iterator[Removal]:
        """What was removed here below the path, and not yet at the master."""
        for tree in self.trees(path):
            # Of a copy: some may be answered while a caller lets others run.
            for removal in list(tree.removals):
                if is_below(removal.label, path):
                    yield removal

    def unread(self, path: str) -> Iterator[tuple[str, Exception | None]]:
        """What an earlier mount left and what is not yet, or cannot be, gone on with: its path, and why."""
        errors = self._sync.recovery_errors
        staging = self._uploader.staging
        for record in staging.recovery.unread_records:
            label = self._label_of(record)
            if is_below(label, path):
                yield label, errors.get(record.task_id)
        for record, failure in staging.recovery.failed_records:
            label = self._label_of(record)
            if is_below(label, path):
                yield label, failure

    def state_at(self, path: str) -> FileStatus | None:
        """Of the file that the path names, durable or not; None where it names none that is known."""
        node = self._node_at(path)
        if node is None or not node.is_file:
            return None
        if node.pending is not None:
            return _status_of(node, node.pending)
        size_bytes = node.size_bytes
        return FileStatus(
            path=path, state=FileState.DURABLE, size_bytes=size_bytes, uploaded_bytes=size_bytes
        )

    def count_durable(self, path: str) -> int:
        """How many files at and below a path in a run are at the master as they are here."""
        node = self._node_at(path)
        if node is None or not node.tree.is_loaded:
            return 0
        return sum(member.is_file and member.pending is None for member in node.tree.walk(node))

    def _node_at(self, path: str) -> Node | None:
        for tree in self._managed.runs.values():
            if is_below(path, tree.path):
                return _find(tree, path)
        return None

    def _label_of(self, record: JournalRecord) -> str:
        tree = self._managed.runs.get(record.task_id)
        run_path = tree.path if tree is not None else f"{record.user}/{record.task_id}"
        return f"{run_path}/{record.path.decode(errors='surrogateescape')}"


def is_below(path: str, ancestor: str) -> bool:
    """Whether the path is the ancestor or something in it; "" holds everything."""
    return not ancestor or path == ancestor or path.startswith(ancestor + "/")


def _find(tree: RunTree, path: str) -> Node | None:
    """What a path in the run stands for, by any of its names."""
    node: Node | None = tree.root
    inside = path[len(tree.path) + 1 :]
    for name in inside.encode(errors="surrogateescape").split(b"/") if inside else ():
        node = (node.children or {}).get(name) if node is not None else None
    return node


def _is_in(node: Node, place: Node) -> bool:
    if node is place:
        return True
    return any(_is_in(directory, place) for directory, _ in node.edges)


def _progress_of(node: Node, pending: Pending) -> tuple[int, int]:
    """The size of what is to be uploaded, and how much of it the master has."""
    if not pending.content:
        return 0, 0
    changed_bytes = node.staged.layout.changed_bytes if node.staged is not None else node.size_bytes
    return node.size_bytes, max(0, node.size_bytes - changed_bytes)


def _status_of(node: Node, pending: Pending) -> FileStatus:
    size_bytes, uploaded_bytes = _progress_of(node, pending)
    if pending.failure is not None:
        state = FileState.FAILED
    elif pending.uploading or uploaded_bytes > 0:
        state = FileState.UPLOADING
    else:
        state = FileState.STAGED
    return FileStatus(
        path=node.tree.label_of(node),
        state=state,
        size_bytes=size_bytes,
        uploaded_bytes=uploaded_bytes,
        reason=str(pending.failure) if pending.failure is not None else "",
    )


def _removal_status_of(removal: Removal) -> FileStatus:
    failure = removal.node.tree.removals.failure
    return FileStatus(
        path=removal.label,
        state=FileState.REMOVED if failure is None else FileState.FAILED,
        size_bytes=0,
        uploaded_bytes=0,
        reason="" if failure is None else f"it is removed here alone: {failure}",
    )
