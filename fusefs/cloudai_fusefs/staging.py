"""Everything of this mount that the master has not acknowledged: pending nodes, their journal rows and their
staged files, kept in step.

The order that makes it safe: a change is in the journal and the staged file before the kernel's request is
answered, and leaves them only after the master's answer. Synchronous but for reading a base; the uploader
does the waiting.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from cloudai_fusefs.chunk_reader import ChunkReader, FileContent
from cloudai_fusefs.journal import Journal, JournalRecord
from cloudai_fusefs.node import DIRECTORY, Node, NodeAttributes, Pending, new_node_id
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.staged_file import StagedFile, mark_of
from cloudai_fusefs.wire_manifests import manifest_from_wire, manifest_to_wire
from cloudai_model.chunks import Manifest
from cloudai_model.errors import CloudAIError
from cloudai_proto.storage.v1 import types_pb2 as types

logger = logging.getLogger(__name__)


class Staging:
    """The state directory's content: `journal.sqlite` and `staged/<task id>/<node id>`."""

    def __init__(self, directory: Path, reader: ChunkReader, on_change: Callable[[Node], None]) -> None:
        """Opens the journal; `on_change` is called with each node that has something new to upload, or
        nothing any more.

        Raises JournalUnusable, or OSError when the directory cannot be used.
        """
        self._files_directory = directory / "staged"
        self._files_directory.mkdir(mode=0o700, exist_ok=True)
        self._reader = reader
        self._on_change = on_change
        self._journal = Journal(directory / "journal.sqlite")
        self.failed_records: list[tuple[JournalRecord, Exception]] = []
        self._stale_rows: set[int] = set()
        self._unread: dict[str, list[JournalRecord]] = defaultdict(list)
        acknowledged = {
            path.name.removesuffix(".acknowledged") for path in self._files_directory.glob("*/*.acknowledged")
        }
        for record in self._journal.records():
            if str(record.node_id) in acknowledged:
                self.remove_row(record.node_id)
            else:
                self._unread[record.task_id].append(record)
        self._remove_orphans()

    @property
    def unread_records(self) -> Sequence[JournalRecord]:
        """The rows of an earlier mount that are not yet laid over their tree."""
        return [record for records in self._unread.values() for record in records]

    @property
    def unread_task_ids(self) -> dict[str, str]:
        """The runs with rows of an earlier mount that are not yet laid over their tree: task id to user."""
        return {task_id: records[0].user for task_id, records in self._unread.items()}

    # --- recording ---------------------------------------------------------------------------------------

    def note_made(self, node: Node) -> None:
        """A node was made here, or given another place before the master put it at its first.

        Raises OSError (ENOSPC) when it cannot be recorded.
        """
        pending = node.tree.note_pending(node)
        pending.place = True
        if node.is_file and node.generation == 0:
            pending.content = True
        self._record(node, pending)

    def note_attributes(self, node: Node) -> None:
        """Mode, owner or times were set. Raises OSError as note_made."""
        self._record(node, node.tree.note_pending(node))

    def note_directory_times(self, node: Node) -> None:
        """Names came or went. Not worth a journal row of its own: after a crash the old time is shown."""
        node.tree.note_pending(node)
        self._on_change(node)

    def note_content(self, node: Node) -> None:
        """The staged file changed. Raises OSError as note_made, the first time.

        A file whose last name is gone has nothing to tell the master.
        """
        if not node.is_attached:
            return
        pending = node.pending
        if pending is not None and pending.content:
            pending.change_count += 1
            pending.failure = None
            pending.is_recovered = False
            self._on_change(node)
            return
        is_new = pending is None
        pending = node.tree.note_pending(node)
        pending.content = True
        try:
            self._record(node, pending)
        except OSError:
            # Without a row the next mount would take the bytes for a leftover: they must not be accepted.
            pending.content = False
            if is_new:
                node.tree.forget_pending(node)
            raise

    def note_path(self, node: Node, replaced: Node | None = None) -> None:
        """What is pending at the node and below has another path now, and what it replaced there has none.

        A crash finds all of it or nothing: with a part of it, a file would be looked for in a directory that is
        elsewhere, or the replaced one would take its name back. Raises OSError as note_made: nothing changed.
        """
        with self._journal.together():
            for below in node.tree.walk(node):
                if below.pending is not None:
                    self._record(below, below.pending)
            if replaced is None or replaced.pending is None or replaced.edges:
                return
            if replaced.stray_ids:
                # A commit without an answer may have left it at the master under another name: a row without a
                # name says so until it has been removed there.
                row = self._row_of(replaced, replaced.pending)
                self._journal.put(dataclasses.replace(row, place=False, has_content=False))
            else:
                self._journal.remove(replaced.node_id)

    def note_replacing(self, replaced: Node, by: Node) -> None:
        """The master is about to be asked to put a node in the place of this file.

        Should nobody be here to see its answer, the next mount sees from the row who has the place, and does not
        take it back. Raises OSError as note_made.
        """
        if replaced.pending is not None and not replaced.is_directory and len(replaced.edges) == 1:
            row = self._row_of(replaced, replaced.pending)
            self._journal.put(dataclasses.replace(row, parent_node_id=by.node_id))

    def record(self, node: Node) -> None:
        """Writes down the node's times and place as they are, if anything of it is pending.

        Raises OSError as note_made; the row then says what it said before.
        """
        if node.pending is not None:
            self._record(node, node.pending)

    def stage(self, node: Node, base: Manifest) -> StagedFile:
        """The node's staged file, opened over the base manifest of its present generation.

        An empty base means that nothing of the earlier content is kept.
        """
        if node.staged is None:
            node.staged = self._open_staged(node, base, node.generation)
        return node.staged

    # --- letting go --------------------------------------------------------------------------------------

    def acknowledge(self, node: Node) -> None:
        """The master has acknowledged all of the node's changes."""
        node.tree.forget_pending(node)
        self.remove_row(node.node_id)
        self.drop_staged_if_idle(node)

    def discard(self, node: Node) -> None:
        """The node's last name is gone: what is pending of it needs no master. Open handles read on."""
        self.acknowledge(node)
        self._on_change(node)

    def discard_replaced(self, node: Node) -> None:
        """The same of a node whose row `note_path` has seen to."""
        node.tree.forget_pending(node)
        self.drop_staged_if_idle(node)
        self._on_change(node)

    def remove_row(self, node_id: int) -> None:
        """Takes the row away, or remembers to do so when the disk has room again."""
        try:
            self._journal.remove(node_id)
        except OSError:
            self._stale_rows.add(node_id)

    def drop_staged_if_idle(self, node: Node) -> None:
        """Removes the staged file once nothing is pending and nobody can write to it."""
        if node.staged is None or node.pending is not None:
            return
        if node.writer_count == 0 and (node.is_attached or node.open_count == 0):
            try:
                node.staged.drop(leave_mark=node.node_id in self._stale_rows)
            except OSError as error:
                # A leftover without a row is removed by the next mount.
                logger.warning("a staged file cannot be removed: %s", error)
            node.staged = None
            if node.is_attached:
                # Somebody else may have committed while the file was open here.
                node.set_size(node.published_size_bytes)

    def close(self) -> None:
        """Closes the journal; every row and staged file stays for the next mount."""
        self._journal.close()

    async def tidy(self) -> None:
        """Removes rows that a full disk kept, and moves the journal's log into its database."""
        try:
            for node_id in list(self._stale_rows):
                self._journal.remove(node_id)
                self._forget_stale_row(node_id)
            await self._journal.checkpoint()
        except OSError as error:
            logger.warning("the state directory cannot be tidied: %s", error)

    def _forget_stale_row(self, node_id: int) -> None:
        """The row is gone, or speaks of something newer: the mark of what was acknowledged goes."""
        self._stale_rows.discard(node_id)
        for mark in self._files_directory.glob(f"*/{mark_of(Path(str(node_id)))}"):
            mark.unlink(missing_ok=True)

    # --- the next mount ----------------------------------------------------------------------------------

    def recover(self, tree: RunTree) -> None:
        """Lays what an earlier mount left over the tree as the master lists it. Once per tree."""
        records = self._unread.pop(tree.task_id, [])
        for record in records:
            try:
                node = self._recover_node(tree, record)
            except (CloudAIError, OSError) as error:
                # Row and bytes stay for a person to look at, and keep no other from going on.
                logger.error("%s: cannot be recovered: %s", record.path, error)  # noqa: TRY400
                self.failed_records.append((record, error))
                continue
            if node is not None:
                self._on_change(node)
        if records:
            logger.info("%s: %d changes of an earlier mount go on uploading", tree.path, len(records))

    def _recover_node(self, tree: RunTree, record: JournalRecord) -> Node | None:
        node = tree.nodes.get(record.node_id)
        if not record.path and node is not tree.root:
            return self._recover_stray(
                tree, node or Node(tree, record.node_id, cast(types.NodeKind, record.kind))
            )
        if node is None and _was_replaced(tree, record):
            self.remove_row(record.node_id)
            return None  # its staged file is a leftover
        if node is None:
            node = Node(tree, record.node_id, cast(types.NodeKind, record.kind))
        has_content = record.has_content
        staged = self._recover_staged(node, record) if has_content else None
        covered_ids: tuple[int, ...] = ()
        if has_content and staged is None and node.generation:
            # The staged file goes after the master's acknowledgement alone. A loss of power can keep that
            # from the journal, and the row must not make an empty file of an acknowledged one.
            logger.warning("%s: its content is at the master already", tree.label_of(node))
            has_content = False
        is_misplaced = record.place and tree.path_of(node) != record.path
        if not node.is_attached or is_misplaced:
            taken, replaced = self._recover_place(tree, node, record)
            if taken is not node:
                # The directory is there already: it was replaced here, or made by somebody else too.
                taken.attributes = _attributes_of(record)
                self.note_attributes(taken)
                self.remove_row(record.node_id)
                return None
            covered_ids = replaced.ids_at_master if replaced is not None else ()
        pending = tree.note_pending(node)
        pending.covered_ids = covered_ids
        pending.place = record.place
        pending.sent = True  # nobody knows any more
        pending.content = has_content
        pending.is_recovered = True
        node.staged = staged
        node.committed = record.committed
        node.attributes = _attributes_of(record)
        node.symlink_target = record.symlink_target
        if record.symlink_target:
            node.size_bytes = len(record.symlink_target)
        elif has_content:
            node.size_bytes = staged.size_bytes if staged is not None else 0
            if staged is not None and staged.written_at_ns > record.written_at_ns:
                node.mtime_ns = node.ctime_ns = staged.written_at_ns
        node.kernel_attributes = None
        return node

    @staticmethod
    def _recover_stray(tree: RunTree, node: Node) -> Node:
        """It has no name here, and is to lose at the master what name it may have there."""
        for directory, name in list(node.edges):
            tree.detach(directory, name)
        tree.note_pending(node).stray_ids = (node.node_id,)
        return node

    def _recover_staged(self, node: Node, record: JournalRecord) -> StagedFile | None:
        if not self._path_of(node).exists():
            return None
        base = types.Manifest.FromString(record.base)
        return self._open_staged(node, manifest_from_wire(base.chunks), record.base_generation)

    def _recover_place(self, tree: RunTree, node: Node, record: JournalRecord) -> tuple[Node, Node | None]:
        """Puts the node into its recorded directory, wherever that is now, or else at its recorded path,
        making directories that are gone. Returns what is there, and what was there and had to go.
        """
        parent_path, _, name = record.path.rpartition(b"/")
        directory = tree.nodes.get(record.parent_node_id)
        if directory is None or not directory.is_directory or not directory.is_attached:
            directory = self._make_directories(tree, parent_path)
        holder = (directory.children or {}).get(name)
        if holder is node:
            return node, None
        is_taken = holder is not None and holder.is_directory
        if is_taken and node.is_directory and not node.edges:
            return holder or node, None
        if holder is not None and holder.children:
            return node, None  # others have filled a directory of that name: the node stays where it is
        if node.edges:
            # Its first commit arrived, and it was renamed here after that had left.
            tree.detach(*node.edges[0])
        attributes = directory.attributes
        if holder is not None:
            tree.detach(directory, name)
        tree.add(directory, name, node)
        directory.attributes = attributes  # the name came before the death, not now
        return node, holder

    def _make_directories(self, tree: RunTree, path: bytes) -> Node:
        directory = tree.root
        for name in path.split(b"/") if path else ():
            child = (directory.children or {}).get(name)
            if child is None or not child.is_directory:
                if child is not None:
                    tree.detach(directory, name)
                child = Node(tree, new_node_id(), DIRECTORY)
                child.touch()
                tree.add(directory, name, child)
                self.note_made(child)
            directory = child
        return directory

    def _remove_orphans(self) -> None:
        known = {
            str(record.node_id)
            for records in self._unread.values()
            for record in records
            if record.has_content
        } | {f"{node_id}.acknowledged" for node_id in self._stale_rows}
        for path in self._files_directory.glob("*/*"):
            if path.name.removesuffix(".extents") not in known:
                path.unlink(missing_ok=True)

    # --- bytes on disk -----------------------------------------------------------------------------------

    def _path_of(self, node: Node) -> Path:
        return self._files_directory / node.tree.task_id / str(node.node_id)

    def _open_staged(self, node: Node, base: Manifest, base_generation: int) -> StagedFile:
        path = self._path_of(node)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        content = FileContent(
            task_id=node.tree.task_id,
            node_id=node.node_id,
            generation=base_generation,
            manifest=base,
            label=node.tree.label_of(node),
        )

        async def read_base(offset_bytes: int, length_bytes: int) -> bytes | memoryview:
            return await self._reader.read(content, offset_bytes, length_bytes)

        return StagedFile(path, base, base_generation, read_base)

    def _record(self, node: Node, pending: Pending) -> None:
        self._journal.put(self._row_of(node, pending))
        if node.node_id in self._stale_rows:
            self._forget_stale_row(node.node_id)
        self._on_change(node)

    @staticmethod
    def _row_of(node: Node, pending: Pending) -> JournalRecord:
        staged = node.staged if pending.content else None
        return JournalRecord(
            node_id=node.node_id,
            user=node.tree.user,
            task_id=node.tree.task_id,
            sequence=pending.sequence,
            kind=node.kind,
            path=node.tree.path_of(node),
            parent_node_id=node.edges[0][0].node_id if node.edges else 0,
            place=pending.place,
            has_content=pending.content,
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            mtime_ns=node.mtime_ns,
            ctime_ns=node.ctime_ns,
            atime_ns=node.atime_ns,
            symlink_target=node.symlink_target,
            base=b"" if staged is None else manifest_to_wire(staged.base).SerializeToString(),
            base_generation=0 if staged is None else staged.base_generation,
            committed=node.committed,
        )


def _was_replaced(tree: RunTree, record: JournalRecord) -> bool:
    """Whether the master has put in the file's place what it was asked to, see `note_replacing`."""
    by = tree.nodes.get(record.parent_node_id)
    return by is not None and not by.is_directory and by.is_attached and tree.path_of(by) == record.path


def _attributes_of(record: JournalRecord) -> NodeAttributes:
    return NodeAttributes(
        record.mode, record.uid, record.gid, record.mtime_ns, record.ctime_ns, record.atime_ns
    )


def fingerprint(manifest: Manifest) -> bytes:
    """Tells one manifest from another, in the journal."""
    return hashlib.blake2b(manifest_to_wire(manifest).SerializeToString(), digest_size=16).digest()
