"""Everything of this mount that the master has not acknowledged: pending nodes, their journal rows and their
staged files, kept in step.

The order that makes it safe: a change is in the journal and the staged file before the kernel's request is
answered, and leaves them only after the master's answer. Synchronous but for reading a base; the uploader
does the waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.file_content import FileContent
from cloudai_fusefs.journal_rescue import (
    FILES_NAME,
    directories_set_aside,
    open_journal,
    set_files_aside,
    staged_node_ids,
)
from cloudai_fusefs.journal_rows import DiskState, JournalRecord, StrayRecord
from cloudai_fusefs.node import Node, Pending
from cloudai_fusefs.pending_rows import PendingRows, fingerprint
from cloudai_fusefs.recorded_removals import RecordedRemovals
from cloudai_fusefs.recovery import Recovery
from cloudai_fusefs.run_nodes import is_uncommitted
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.settling import Settling
from cloudai_fusefs.spare_files import SpareFiles
from cloudai_fusefs.staged_descriptors import StagedDescriptors
from cloudai_fusefs.staged_file import StagedFile, mark_of
from cloudai_fusefs.staging_space import StagingSpace
from cloudai_fusefs.write_pace import WritePace
from cloudai_model.boots import current_boot_id
from cloudai_model.chunks import Manifest

log = logging.getLogger(__name__)


class Staging:
    """The state directory's content: `journal.sqlite` and `staged/<task id>/<node id>`."""

    def __init__(
        self, directory: Path, reader: ChunkReader, on_change: Callable[[Node], None], *, bytes_max: int = 0
    ) -> None:
        """Opens the journal; `on_change` is called with each node that has something new to upload, or
        nothing any more.

        A damaged journal is set aside, and what can be read of it goes on. Raises JournalTooNew, or OSError
        when the directory cannot be used.
        """
        self._files_directory = directory / FILES_NAME
        self._files_directory.mkdir(mode=0o700, exist_ok=True)
        self._reader = reader
        self._on_change = on_change
        self._journal = open_journal(directory)
        with ExitStack() as on_failure:
            on_failure.callback(self._journal.close)
            self.rows = PendingRows(self._journal, self._files_directory)
            self.removals = RecordedRemovals(self._journal, on_change)
            self._descriptors = StagedDescriptors()
            self._spares = SpareFiles(directory / "spare")
            self.space = StagingSpace(self._files_directory, bytes_max)
            self.pace = WritePace()
            marks = self._files_directory.glob(f"*/{mark_of(Path('*'))}")
            acknowledged = {int(path.name.partition(".")[0]) for path in marks}
            self.settling = Settling(self._journal, self._files_directory, self.rows.put)
            records = self._journal.records()
            removals = self._journal.removals()
            removed_at_ns = {removal.node_id: removal.removed_at_ns for removal in removals}
            for record in records:
                if record.written_at_ns <= removed_at_ns.get(record.node_id, 0):
                    acknowledged.add(record.node_id)  # or it would not have been removed
                if record.node_id in acknowledged:
                    self.rows.remove(record.node_id)
            boot_id = current_boot_id()
            has_lost_power = self._journal.boot_id not in ("", boot_id)
            left = [record for record in records if record.node_id not in acknowledged]
            self.recovery = Recovery(self, left, self._journal.strays(), removals)
            self._directory = directory
            self._clear_orphans(has_lost_power=has_lost_power)
            # Not before: a start that ends in between must not leave the orphans to one that knows of no loss.
            self._note_boot(boot_id, left if has_lost_power else ())
            on_failure.pop_all()

    def list_set_aside(self) -> list[Path]:
        """Directories with what could not be used, of this mount's start or an earlier one, until removed."""
        return directories_set_aside(self._directory)

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
        self._record_accepted(node, node.tree.note_pending(node))

    def note_xattrs(self, node: Node) -> None:
        """Extended attributes were set or removed. Raises OSError as note_made."""
        pending = node.tree.note_pending(node)
        were_changed, pending.xattrs = pending.xattrs, True
        try:
            self._record_accepted(node, pending)
        except OSError:
            pending.xattrs = were_changed
            raise

    def note_times(self, node: Node) -> None:
        """Names in it, or of it, came or went. Not worth a row of its own: after a crash the old time is shown."""
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
            if pending.disk_state == DiskState.MAYBE_LOST:
                self._record_accepted(node, pending)
            pending.change_count += 1
            pending.failure = None
            pending.is_recovered = False
            self._on_change(node)
            return
        is_new = pending is None
        pending = node.tree.note_pending(node)
        pending.content = True
        pending.is_recovered = False
        try:
            self._record(node, pending)
        except OSError:
            # Without a row the next mount would take the bytes for a leftover: they must not be accepted.
            pending.content = False
            if is_new:
                node.tree.forget_pending(node)
            raise

    def note_path(self, node: Node) -> None:
        """What is pending at the node and below has another path now, which a crash must find."""
        for below in node.tree.walk(node):
            if below.pending is not None:
                self._record(below, below.pending)

    def note_news(self, tree: RunTree) -> None:
        """News have been laid over the tree: its rows follow.

        Of directories that have another path now, or the id that the master has them under, the next mount is to find
        there what is staged in them, also where the master has them no more, and not where they were. What has no name
        any more needs no master, and is not to come back: unless that is in doubt, in which only a listing tells.
        """
        moved, tree.directories_with_stale_rows = tree.directories_with_stale_rows, set()
        for node in list(tree.pending) if moved else ():
            if is_uncommitted(node) and _is_below_any(node, moved):
                with suppress(OSError):  # a full disk: the row as it was has to do
                    self.rows.rewrite(node)
        if moved:
            self.rewrite_strays_in(tree, moved)
        if not tree.is_in_doubt:
            self._discard_nameless(tree)

    def note_listing(self, tree: RunTree) -> None:
        """The same of a listing."""
        self.note_news(tree)
        self._discard_nameless(tree)

    def _discard_nameless(self, tree: RunTree) -> None:
        nameless, tree.nameless = tree.nameless, set()
        for node in nameless:
            if node.pending is not None and not node.is_attached:
                self.discard(node)

    def note_content_leaves(self, node: Node, manifest: Manifest) -> None:
        """A commit with this content is about to be sent.

        Should nobody be here to see its answer, what its row says was committed last may be so no more.
        """
        if node.committed and node.committed != fingerprint(manifest):
            node.committed = b""
            with suppress(OSError):  # a full disk, on which uploads are to make room
                self.rows.rewrite(node)

    def record(self, node: Node) -> None:
        """Writes down the node's times and place as they are, if anything of it is pending.

        Raises OSError as note_made; the row then says what it said before.
        """
        if node.pending is not None:
            self._record(node, node.pending)

    def note_recovered(self, node: Node) -> None:
        """What an earlier mount left of the node is pending again; its row is there."""
        self.settling.note_staged(node)
        self._on_change(node)

    def stage(self, node: Node, base: Manifest) -> StagedFile:
        """The node's staged file, opened over the base manifest of its present generation.

        An empty base means that nothing of the earlier content is kept.
        """
        if node.staged is None:
            path = self._path_of(node)
            if not base.chunks and node.generation == 0:  # else something may be there that was not recovered
                self._spares.take(path)
            node.staged = self._open_staged(node, path, base, node.generation)
        return node.staged

    def note_moved(self, node: Node, replaced: Node | None) -> None:
        """The node has a new place, where another was perhaps; the journal has all of it or nothing.

        Of what was replaced, names that the master may have are removed once the node is there.
        Raises OSError as note_made: the rows then say what they said before.
        """
        with self._journal.together():
            self.note_path(node)
            if node.pending is not None:
                for stray_id in node.pending.stray_ids:
                    self._put_stray(node.tree, stray_id, node.node_id)
            if replaced is not None and replaced.first_edge is None:
                # With the same stroke: two rows for one name would leave it to the next mount which counts.
                self._journal.remove(replaced.node_id)

    def note_stray(self, tree: RunTree, node_id: int) -> None:
        """The node has no name here, and one at the master: removed there soon, or by the next mount."""
        tree.stray_ids.append(node_id)
        with suppress(OSError):  # a full disk: this mount still removes it
            self._put_stray(tree, node_id, 0)
        self._on_change(tree.root)

    def rewrite_strays_in(self, tree: RunTree, directories: set[Node]) -> None:
        """These directories have other ids by now, by which the rows of what is to be removed in them speak of them."""
        strays = [(stray_id, 0) for stray_id in tree.stray_ids]
        strays += [(stray_id, node.node_id) for node, of in tree.pending.items() for stray_id in of.stray_ids]
        for stray_id, after_node_id in strays:
            if any(parent in directories for parent, _ in tree.stray_names.of(stray_id) or ()):
                with suppress(OSError):  # a full disk: the next mount does not find what is to be removed
                    self._put_stray(tree, stray_id, after_node_id)

    def forget_stray(self, tree: RunTree, node_id: int) -> None:
        """The node has no name at the master any more that is to be removed there."""
        tree.stray_names.forget(node_id)
        with suppress(OSError):  # a full disk: the next mount asks once more, and is told that it is gone
            self._journal.remove_stray(node_id)

    # --- letting go --------------------------------------------------------------------------------------

    def acknowledge(self, node: Node) -> None:
        """The master has acknowledged all of the node's changes."""
        pending = node.pending
        node.tree.forget_pending(node)
        self.settling.forget(node, pending.disk_state if pending is not None else DiskState.UNKNOWN)
        for former_id in pending.former_ids if pending is not None else ():
            self.rows.remove(former_id)
        self.rows.remove(node.node_id)
        self.drop_staged_if_idle(node)

    def discard(self, node: Node) -> None:
        """The node's last name is gone: what is pending of it needs no master. Open handles read on."""
        self.acknowledge(node)
        self._on_change(node)

    def drop_staged_if_idle(self, node: Node) -> None:
        """Removes the staged file once nothing is pending and nobody can write to it.

        Of what has no name any more it is all that there is: whoever has looked the name up before may be about to open
        it, and it stays until the kernel refers to it no longer.
        """
        if node.staged is None or node.pending is not None:
            return
        is_in_use = node.open_count or node.lookup_count
        if node.writer_count == 0 and (node.is_attached or not is_in_use):
            try:
                if node.node_id in self.rows.stale_rows:
                    node.staged.drop(leave_mark=True)
                elif self.settling.may_change_at_once(node):
                    node.staged.recycle(self._spares)
                else:
                    # A loss of power may bring the row back, which must not find an empty file.
                    node.staged.drop()
            except OSError as error:
                # A leftover without a row is removed by the next mount.
                log.warning("a staged file cannot be removed: %s", error)
            self.space.note_dropped(node.staged)
            node.staged = None
            # Somebody else may have committed while the file was open here, or it may come back as the master has it.
            node.set_size(node.published_size_bytes)

    def unstage(self, node: Node) -> None:
        """Takes back `stage` of a file of which nothing was staged before: its row was refused. Raises OSError."""
        assert node.staged is not None
        self.space.note_dropped(node.staged)
        staged, node.staged = node.staged, None
        staged.drop()

    def close(self) -> None:
        """Closes the journal; every row and staged file stays for the next mount."""
        self._journal.close()
        self._descriptors.closer.stop()

    async def tidy(self) -> None:
        """Puts on the disk what has waited for long, removes rows that a full disk kept, and moves the
        journal's log into its database.
        """
        try:
            await self.settling.settle()
            self.rows.tidy()
            self.removals.tidy()
            await self._journal.checkpoint()
        except OSError as error:
            log.warning("the state directory cannot be tidied: %s", error)

    # --- the last mount's leftovers ---------------------------------------------------------------------

    def _note_boot(self, boot_id: str, maybe_lost: Sequence[JournalRecord]) -> None:
        """Writes down the boot, and which rows speak of what was not on the disk when the machine went down."""
        if self._journal.boot_id != boot_id:
            with self._journal.together():
                for record in maybe_lost:
                    if record.has_content and record.disk_state == DiskState.UNKNOWN:
                        record.disk_state = DiskState.MAYBE_LOST
                        self._journal.put_again(record)
                self._journal.note_boot(boot_id)
            # Before anything is written: a loss of power must not find the word of an earlier boot.
            self._journal.sync_now()

    def _clear_orphans(self, *, has_lost_power: bool) -> None:
        """Staged files without a row were removed or acknowledged; what belongs to no row has no name.

        After a loss of power the row may be what is missing: then they are set aside.
        """
        orphans: list[Path] = []
        for node_id, paths in staged_node_ids(self._directory).items():
            for path in paths:
                is_mark = path.suffix == mark_of(path).suffix
                known = self.rows.stale_rows if is_mark else self.recovery.ids_with_content
                if node_id not in known:
                    orphans.append(path)
        if has_lost_power and any(path.stat().st_size for path in orphans):
            set_files_aside(
                self._directory, orphans, "The machine went down, and the journal's last rows are lost"
            )
            return
        for path in orphans:
            path.unlink(missing_ok=True)

    # --- bytes on disk -----------------------------------------------------------------------------------

    def _path_of(self, node: Node) -> Path:
        return self._files_directory / node.tree.task_id / str(node.node_id)

    def open_left(self, node: Node, base: Manifest, base_generation: int) -> StagedFile | None:
        """What an earlier mount staged of the node, over the base of its row; None: no file is there."""
        path = self._path_of(node)
        if not path.exists():
            return None
        return self._open_staged(node, path, base, base_generation)

    def _open_staged(self, node: Node, path: Path, base: Manifest, base_generation: int) -> StagedFile:
        node_id = node.node_id  # under which the base was committed

        async def read_base(offset_bytes: int, length_bytes: int) -> bytes | memoryview:
            content = FileContent(
                task_id=node.tree.task_id,
                node_id=node_id,
                generation=base_generation,
                manifest=base,
                label=node.tree.label_of(node),
            )
            return await self._reader.read(content, offset_bytes, length_bytes)

        try:
            staged = StagedFile(path, base, base_generation, read_base, self._descriptors)
        except FileNotFoundError:  # the first of its run
            path.parent.mkdir(mode=0o700, exist_ok=True)
            staged = StagedFile(path, base, base_generation, read_base, self._descriptors)
        self.space.note_written(staged)
        return staged

    def _put_stray(self, tree: RunTree, stray_id: int, after_node_id: int) -> None:
        self._journal.put_stray(
            StrayRecord(
                node_id=stray_id,
                user=tree.user,
                task_id=tree.task_id,
                after_node_id=after_node_id,
                places=tree.stray_names.to_row(stray_id),
            )
        )

    def _record_accepted(self, node: Node, pending: Pending) -> None:
        """As _record. What a loss of power left is as somebody wants it, who has written or touched it: not where that
        is refused.
        """
        before = pending.disk_state, pending.failure
        if pending.disk_state == DiskState.MAYBE_LOST:
            pending.disk_state, pending.failure = DiskState.UNKNOWN, None
        try:
            self._record(node, pending)
        except OSError:
            pending.disk_state, pending.failure = before
            raise

    def _record(self, node: Node, pending: Pending) -> None:
        self.rows.put(node, pending, pending.disk_state)
        self.settling.note_staged(node)
        self._on_change(node)


def _is_below_any(node: Node, directories: set[Node]) -> bool:
    while (edge := node.first_edge) is not None:
        node, _ = edge
        if node in directories:
            return True
    return False
