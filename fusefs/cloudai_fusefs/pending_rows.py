"""The journal's rows of pending nodes: what each has to say, so that the next mount finds what this one has promised.

A row that a full disk keeps from going is stale. It must not be taken for something to be committed again: a mark
beside where the staged file was says so until the row goes, or speaks of something newer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cloudai_fusefs.journal import Journal
from cloudai_fusefs.journal_rows import DiskState, JournalRecord
from cloudai_fusefs.node import Node, Pending
from cloudai_fusefs.staged_file import mark_of
from cloudai_fusefs.wire_manifests import encode_manifest
from cloudai_fusefs.wire_xattrs import xattrs_to_wire
from cloudai_model.chunks import Manifest
from cloudai_model.errors import CloudAIError, MasterUnavailable


class PendingRows:
    """The rows of one mount's pending nodes. Synchronous."""

    def __init__(self, journal: Journal, files_directory: Path) -> None:
        """`files_directory` has the marks of stale rows."""
        self._journal = journal
        self._files_directory = files_directory
        self._stale_rows: set[int] = set()
        self._replacing: dict[Node, Node] = {}  # files that the master is asked to replace, and by what
        self._removing: set[Node] = set()  # files that the master is asked to remove

    @property
    def stale_rows(self) -> Set[int]:
        """By node id: they should be gone."""
        return self._stale_rows

    def put(self, node: Node, pending: Pending, disk_state: DiskState) -> None:
        """Writes down the node as it is now. Raises OSError as Journal.put."""
        if node.is_attached:
            row = _row_of(node, pending, disk_state, with_xattrs=pending.xattrs or node in self._removing)
            by = self._replacing.get(node)
            self._journal.put(row if by is None else replace(row, parent_node_id=by.node_id))
            if node.node_id in self._stale_rows:
                self._forget_stale_row(node.node_id)
        else:
            # News have taken its last name: the next mount would look for it below none, or take the name back.
            self.remove(node.node_id)

    def rewrite(self, node: Node) -> None:
        """The same of what is pending already, if anything is: its commit keeps its time."""
        if node.pending is not None:
            self.put(node, node.pending, node.pending.disk_state)

    def remove(self, node_id: int) -> None:
        """Takes the row away, or remembers to do so when the disk has room again."""
        try:
            self._journal.remove(node_id)
        except OSError:
            self._stale_rows.add(node_id)

    @contextmanager
    def replacing(self, replaced: Node | None, by: Node) -> Iterator[None]:
        """Around asking the master to put a node in the place of this file.

        Should nobody be here to see its answer, the next mount sees from the row who has the place, and does not
        take it back; that holds of what is recorded of the file meanwhile, too. Raises OSError as put.
        """
        if replaced is None or replaced.is_directory or replaced.edge_count != 1:
            yield
            return
        self._replacing[replaced] = by
        try:
            self.rewrite(replaced)
            yield
        finally:
            del self._replacing[replaced]

    @contextmanager
    def removing(self, node: Node) -> Iterator[None]:
        """Around asking the master to remove the file's last name.

        Should nobody be here to see its answer, what is staged brings the file back: the row then has all that there is
        to it, also what only the master had.
        """
        if node.pending is None or not node.pending.content or not node.xattrs or node.edge_count != 1:
            yield
            return
        self._removing.add(node)
        is_refused = False
        try:
            with suppress(OSError):  # a full disk, on which `rm` may be there to make room
                self.rewrite(node)
            yield
        except MasterUnavailable:
            raise  # it may have been carried out all the same, as for one who was cancelled
        except CloudAIError:
            is_refused = True
            raise
        finally:
            self._removing.discard(node)
            if is_refused:
                with suppress(OSError):
                    self.rewrite(node)

    def tidy(self) -> None:
        """Removes the rows that a full disk kept. Raises OSError."""
        for node_id in list(self._stale_rows):
            self._journal.remove(node_id)
            self._forget_stale_row(node_id)

    def _forget_stale_row(self, node_id: int) -> None:
        """The row is gone, or speaks of something newer: the mark of what was acknowledged goes."""
        self._stale_rows.discard(node_id)
        for mark in self._files_directory.glob(f"*/{mark_of(Path(str(node_id)))}"):
            mark.unlink(missing_ok=True)


def _row_of(node: Node, pending: Pending, disk_state: DiskState, *, with_xattrs: bool) -> JournalRecord:
    staged = node.staged if pending.content else None
    edge = node.first_edge
    return JournalRecord(
        node_id=node.node_id,
        user=node.tree.user,
        task_id=node.tree.task_id,
        sequence=pending.sequence,
        kind=node.kind,
        path=node.tree.path_of(node),
        parent_node_id=edge[0].node_id if edge is not None else 0,
        place=pending.place,
        has_content=pending.content,
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime_ns=node.mtime_ns,
        ctime_ns=node.ctime_ns,
        atime_ns=node.atime_ns,
        symlink_target=node.symlink_target,
        base=b"" if staged is None else encode_manifest(staged.base),
        base_generation=0 if staged is None else staged.base_generation,
        committed=node.committed,
        disk_state=disk_state,
        xattrs=xattrs_to_wire(node.xattrs).SerializeToString() if with_xattrs else None,
    )


def fingerprint(manifest: Manifest) -> bytes:
    """Tells one manifest from another, in the journal."""
    return hashlib.blake2b(encode_manifest(manifest), digest_size=16).digest()
