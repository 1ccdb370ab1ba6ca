"""What an earlier mount left in the journal, laid over the trees as the master lists them.

A row waits here until its run's tree is loaded; then its node is pending again, wherever it is by now. What
cannot be recovered stays where it is, row and bytes, and is named.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

from google.protobuf.message import DecodeError

from cloudai_fusefs.journal_rows import DiskState, JournalRecord, RemovalRecord, StrayRecord
from cloudai_fusefs.node import DIRECTORY, Edge, Node, NodeAttributes, new_node_id
from cloudai_fusefs.run_nodes import is_uncommitted, stays
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.staged_file import StagedFile
from cloudai_fusefs.stray_names import places_of_row
from cloudai_fusefs.wire_manifests import manifest_from_wire
from cloudai_fusefs.wire_xattrs import xattrs_from_wire
from cloudai_model.errors import CloudAIError
from cloudai_proto.storage.v1 import types_pb2 as types

if TYPE_CHECKING:
    from cloudai_fusefs.staging import Staging

log = logging.getLogger(__name__)


class ContentInDoubt(CloudAIError):
    """Power was lost before a file's staged bytes were known to be on the disk. It needs a person."""

    reason = ""
    sentence = (
        "the machine went down before this was on its disk, and parts may be missing: look at it, then write "
        "it again, remove it, or `touch` it to have it uploaded as it is"
    )


class Recovery:
    """The rows that an earlier mount left. Synchronous."""

    def __init__(
        self,
        staging: Staging,
        records: Sequence[JournalRecord],
        strays: Sequence[StrayRecord],
        removals: Sequence[RemovalRecord],
    ) -> None:
        self._staging = staging
        self.failed_records: list[tuple[JournalRecord, Exception]] = []
        self.ids_with_content = {record.node_id for record in records if record.has_content}
        """Nodes whose staged files are to be kept."""
        self._unread: dict[str, list[JournalRecord]] = defaultdict(list)
        for record in records:
            self._unread[record.task_id].append(record)
        self._ids_with_changes = {record.node_id for record in records}
        self._placed_by_path: set[Node] = set()  # or beside the name in their rows
        # Of what has a name to be committed, and was not looked at yet: where that is.
        self._unread_places = {
            record.node_id: record.path for record in records if record.place and record.path
        }
        self._moving: dict[Node, Edge] = {}  # which the master has where another row has put something else
        self._stray_edges: dict[int, tuple[Edge, ...]] = {}  # where the master has what has no name here
        self._became: dict[int, Node] = {}  # directories of rows that the master has under other ids
        self._strays: dict[str, list[StrayRecord]] = defaultdict(list)
        for stray in strays:
            self._strays[stray.task_id].append(stray)
        self._removals: dict[str, list[RemovalRecord]] = defaultdict(list)
        for removal in removals:
            self._removals[removal.task_id].append(removal)

    @property
    def unread_records(self) -> Sequence[JournalRecord]:
        """The rows that are not yet laid over their tree."""
        return [record for records in self._unread.values() for record in records]

    @property
    def unread_task_ids(self) -> dict[str, str]:
        """The runs with rows that are not yet laid over their tree: task id to user."""
        rows: list[JournalRecord | StrayRecord | RemovalRecord] = [
            *(records[0] for records in self._unread.values()),
            *(strays[0] for strays in self._strays.values()),
            *(removals[0] for removals in self._removals.values()),
        ]
        return {row.task_id: row.user for row in rows}

    def has_changes(self, task_id: str) -> bool:
        """Whether the run has more to it than names to be removed at the master."""
        return task_id in self._unread

    def recover(self, tree: RunTree, records_max: int) -> bool:
        """Lays what is left over the tree as the master lists it, a part of it at once. Once per tree, until it
        returns that nothing more is left to do: nobody may see the tree before.
        """
        if self._recover_removals(tree, records_max):
            return True
        for stray in self._strays.get(tree.task_id, ()):
            self._hide_stray(tree, stray)
        unread = self._unread.pop(tree.task_id, [])
        records, rest = unread[:records_max], unread[records_max:]
        if rest:
            self._unread[tree.task_id] = rest
        for record in records:
            try:
                self._recover_node(tree, record)
            except (CloudAIError, OSError, DecodeError) as error:
                # Row and bytes stay for a person to look at, and keep no other from going on.
                log.error("%s: cannot be recovered: %s", record.path, error)  # noqa: TRY400
                self.failed_records.append((record, error))
        if rest:
            return True
        for stray in self._strays.pop(tree.task_id, []):
            self._recover_stray(tree, stray)
        if self._became:
            self._staging.rewrite_strays_in(tree, set(self._became.values()))
        # Not before: what one row replaced, another may give a name again.
        tree.forget_all_unused()
        self._placed_by_path = {node for node in self._placed_by_path if node.tree is not tree}
        self._moving = {node: edge for node, edge in self._moving.items() if node.tree is not tree}
        self._became = {node_id: node for node_id, node in self._became.items() if node.tree is not tree}
        if records:
            # At the end, so that it goes in full batches.
            for node in list(tree.pending):
                self._staging.note_recovered(node)
            log.info("%s: the changes of an earlier mount go on uploading", tree.path)
        return False

    def _recover_removals(self, tree: RunTree, records_max: int) -> bool:
        """Before what was put in the place of what was removed. True: there are more."""
        unread = self._removals.pop(tree.task_id, [])
        records, rest = unread[:records_max], unread[records_max:]
        if rest:
            self._removals[tree.task_id] = rest
        void: list[int] = []
        for record in records:
            directory = tree.nodes.get(record.parent_node_id)
            node = (directory.children or {}).get(record.name) if directory is not None else None
            if (
                directory is None
                or node is None
                or (node.node_id, node.generation) != (record.node_id, record.generation)
                or node.node_id in self._ids_with_changes
            ):
                void.append(record.node_id)  # it arrived, or somebody has written the file since
            elif tree.is_sealed:
                log.warning("%s: was removed, and is shown again: the run is sealed", tree.label_of(node))
                void.append(record.node_id)
            else:
                self._staging.removals.record_again(record, directory, node)
        if void:
            self._staging.removals.forget_rows(void)
        return bool(rest)

    def _hide_stray(self, tree: RunTree, stray: StrayRecord) -> None:
        """Where the master still has it, it has had no name here since before the death, and others may have that."""
        node = tree.nodes.get(stray.node_id)
        if node is None or node.first_edge is None or tree.is_sealed:
            return  # of a sealed run it stays, and is shown again
        edges = node.edges
        if stray.places is not None:
            places = self._find_places(tree, stray.places)
            edges = tuple(edge for edge in edges if edge in places)
        if edges:
            self._stray_edges[stray.node_id] = (*self._stray_edges.get(stray.node_id, ()), *edges)
            tree.drop_names(node, edges)

    def _find_places(self, tree: RunTree, row: bytes) -> Sequence[Edge]:
        """Those whose directory is known."""
        directories = (
            (tree.nodes.get(parent_id) or self._became.get(parent_id), name)
            for parent_id, name in places_of_row(row)
        )
        return [(directory, name) for directory, name in directories if directory is not None]

    def _recover_stray(self, tree: RunTree, stray: StrayRecord) -> None:
        if self._became and stray.places is not None:
            self._hide_stray(tree, stray)  # in directories too of which a row has told what they have become
        edges = self._stray_edges.pop(stray.node_id, ())
        if stray.places is not None:
            tree.stray_names.note(stray.node_id, self._find_places(tree, stray.places))
        else:
            tree.stray_names.note_anywhere(stray.node_id)
        after = tree.nodes.get(stray.after_node_id)
        if after is not None and after.pending is not None and after.pending.place:
            # A reader elsewhere must not see neither.
            after.pending.stray_ids += (stray.node_id,)
            for edge in edges:
                tree.left_names.note(after, edge)
        else:
            self._staging.note_stray(tree, stray.node_id)

    def _recover_node(self, tree: RunTree, record: JournalRecord) -> None:
        self._unread_places.pop(record.node_id, None)
        node = tree.nodes.get(record.node_id)
        # Of a version that wrote such rows.
        is_nameless = not record.path and record.node_id != tree.root.node_id
        is_lost = is_nameless and (node is None or not node.is_attached)
        if is_lost or (node is None and (_was_replaced(tree, record) or _has_only_attributes(record))):
            self._staging.rows.remove(record.node_id)
            return  # its staged file is a leftover
        if node is None:
            node = Node(tree, record.node_id, cast(types.NodeKind, record.kind))
        has_content = record.has_content
        staged = self._recover_staged(node, record) if has_content else None
        covered_ids: tuple[int, ...] = ()
        if has_content and staged is None and node.generation:
            # The staged file goes after the master's acknowledgement alone. A loss of power can keep that
            # from the journal, and the row must not make an empty file of an acknowledged one.
            if node.size_bytes:  # (one that was made and never written to has no staged file)
                log.warning("%s: its content is at the master already", tree.label_of(node))
            has_content = False
        is_misplaced = record.place and not is_nameless and tree.path_of(node) != record.path
        former_edge = node.first_edge
        if not node.is_attached or is_misplaced:
            taken, replaced = self._recover_place(tree, node, record)
            if taken is not node:
                # The directory is there already: it was replaced here, or made by somebody else too.
                self._became[record.node_id] = taken
                taken.attributes = _attributes_of(record)
                self._staging.note_attributes(taken)
                if record.xattrs is not None:
                    taken.xattrs = _xattrs_of(record.xattrs)
                    self._staging.note_xattrs(taken)
                self._staging.rows.remove(record.node_id)
                return
            if replaced is not None and replaced.is_directory == node.is_directory:
                covered_ids = replaced.ids_at_master
        pending = tree.note_pending(node)
        pending.sequence = record.sequence
        tree.next_sequence = max(tree.next_sequence, record.sequence + 1)
        pending.covered_ids = covered_ids
        for left in (self._moving.get(node), former_edge):
            if left is not None and left != node.first_edge:
                tree.left_names.note(node, left)
        pending.place |= record.place  # or it was given a name beside
        pending.sent = True  # nobody knows any more
        pending.content = has_content
        pending.is_recovered = True
        pending.disk_state = DiskState(record.disk_state)
        if pending.disk_state == DiskState.MAYBE_LOST:
            pending.failure = ContentInDoubt()
            log.warning("%s: %s", tree.label_of(node), pending.failure)
        node.staged = staged
        node.committed = record.committed
        node.attributes = _attributes_of(record)
        if record.xattrs is not None:
            pending.xattrs = True
            node.xattrs = _xattrs_of(record.xattrs)
        node.symlink_target = record.symlink_target
        if record.symlink_target:
            node.size_bytes = len(record.symlink_target)
        elif has_content:
            node.size_bytes = staged.size_bytes if staged is not None else 0
            if staged is not None and staged.written_at_ns > record.written_at_ns:
                node.mtime_ns = node.ctime_ns = staged.written_at_ns
        node.kernel_attributes = None
        if record.parent_node_id not in tree.nodes or tree.path_of(node) != record.path:
            with suppress(OSError):  # a full disk: the next mount does as this one
                self._staging.rows.rewrite(node)

    def _recover_staged(self, node: Node, record: JournalRecord) -> StagedFile | None:
        base = types.Manifest.FromString(record.base)
        return self._staging.open_left(node, manifest_from_wire(base.chunks), record.base_generation)

    def _recover_place(self, tree: RunTree, node: Node, record: JournalRecord) -> tuple[Node, Node | None]:
        """Puts the node into its recorded directory, wherever that is now, or else at its recorded path,
        making directories that are gone. Returns what is there, and what was there and had to go.

        A file hides a directory that others have made under its name, as before the death, until it or the other is
        moved: its commit is refused for so long. Where something below that is to be committed too, and where another
        that is to be committed would lose its last name by a path of which nobody knows whether it was still true, it
        gets a name beside.
        """
        parent_path, _, own_name = record.path.rpartition(b"/")
        name = own_name
        directory = tree.nodes.get(record.parent_node_id)
        is_by_path = directory is None or not directory.is_directory or not directory.is_attached
        if directory is None or is_by_path:
            directory = self._make_directories(tree, parent_path)
        self._let_move(tree, directory, name, node)
        holder = (directory.children or {}).get(name)
        if holder is node:
            return node, None
        is_new = node.first_edge is None and node not in self._moving
        if holder is not None and holder.is_directory and node.is_directory and is_new:
            return holder, None
        # Of two rows for one name in one directory, the first lost it by news before the death.
        is_guessed = is_by_path or holder in self._placed_by_path
        if holder is not None and _needs_name(holder, is_guessed=is_guessed):
            if node.first_edge is not None:
                return node, None  # it stays where it is
            if node.is_directory:
                self._give_way(tree, directory, name)
            else:
                name = tree.give_name_beside(directory, name, node)
            holder = None
        elif holder is not None and holder.children:
            # Others have filled a directory of that name.
            if node.first_edge is not None:
                return node, None
            with _keeping_times(directory):
                tree.drop_names(holder)
                tree.add(directory, name, node)
            return node, holder
        if node.first_edge is not None:
            # Its first commit arrived, and it was renamed here after that had left.
            old_directory, old_name = node.first_edge
            with _keeping_times(old_directory):
                tree.detach(old_directory, old_name)
        with _keeping_times(directory):
            if holder is not None:
                tree.detach(directory, name)
            tree.add(directory, name, node)
        if is_by_path or name != own_name:
            self._placed_by_path.add(node)
        return node, holder

    def _let_move(self, tree: RunTree, directory: Node, name: bytes, node: Node) -> None:
        """What the master has under the name was renamed before the node was given it: its own row has its place."""
        holder = (directory.children or {}).get(name)
        if holder is None or holder is node:
            return
        path = self._unread_places.get(holder.node_id)
        if path is not None and path != tree.path_of(holder):
            with _keeping_times(directory):
                tree.detach(directory, name)
            self._moving[holder] = directory, name

    def _give_way(self, tree: RunTree, directory: Node, name: bytes) -> None:
        node = (directory.children or {})[name]
        tree.give_way(directory, name)
        self._placed_by_path.add(node)
        with suppress(OSError):  # a full disk: the next mount does as this one
            self._staging.rows.rewrite(node)

    def _make_directories(self, tree: RunTree, path: bytes) -> Node:
        directory = tree.root
        for name in path.split(b"/") if path else ():
            child = (directory.children or {}).get(name)
            if child is None or not child.is_directory:
                with _keeping_times(directory):
                    if child is not None and _needs_name(child, is_guessed=True):
                        self._give_way(tree, directory, name)
                    elif child is not None:
                        tree.detach(directory, name)
                    child = Node(tree, new_node_id(), DIRECTORY)
                    child.touch()
                    tree.add(directory, name, child)
                self._staging.note_made(child)
            directory = child
        return directory


@contextmanager
def _keeping_times(directory: Node) -> Iterator[None]:
    """Names come and go in it that did so before the death, not now: a time of now would be told to nobody."""
    attributes = directory.attributes
    yield
    directory.attributes = attributes


def _attributes_of(record: JournalRecord) -> NodeAttributes:
    return NodeAttributes(
        record.mode, record.uid, record.gid, record.mtime_ns, record.ctime_ns, record.atime_ns
    )


def _xattrs_of(written: bytes) -> Mapping[bytes, bytes]:
    return xattrs_from_wire(types.Xattrs.FromString(written))


def _needs_name(holder: Node, *, is_guessed: bool) -> bool:
    """Whether something is to be committed that would be lost with this name, which another is to have.

    A file may have lost it before the death, if that is not guessed.
    """
    if holder.is_directory:
        return stays(holder)
    return is_guessed and holder.edge_count == 1 and is_uncommitted(holder)


def _has_only_attributes(record: JournalRecord) -> bool:
    """Whether nothing of it outlives the removal of its last name elsewhere."""
    return not (record.place or record.has_content or record.kind == DIRECTORY)


def _was_replaced(tree: RunTree, record: JournalRecord) -> bool:
    """Whether the master has put in the file's place what it was asked to, see PendingRows.replacing."""
    by = tree.nodes.get(record.parent_node_id)
    return by is not None and not by.is_directory and by.is_attached and tree.path_of(by) == record.path
