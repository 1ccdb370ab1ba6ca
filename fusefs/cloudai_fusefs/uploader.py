"""Makes pending changes durable. The mount's side of it: what has changed, what is waited for.

One RunUploader task for each run with something pending does the work. Nothing here answers the kernel; who
needs durability waits in `make_durable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import trio

from cloudai_fusefs.background import keep_running
from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.chunk_sender import ChunkSender
from cloudai_fusefs.commit_composer import unplaced_line
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.node import Node, Pending
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.run_uploader import PUBLISH_INTERVAL_SECONDS, QUIET_SECONDS, UNARMED_SECONDS, RunUploader
from cloudai_fusefs.staging import Staging


class Uploader:
    """Owns the upload tasks of a mount; the nursery is the composition root's."""

    def __init__(self, client: MasterClient, reader: ChunkReader, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._runs: dict[RunTree, RunUploader] = {}
        self._progress = trio.Event()
        self.client = client
        self.reader = reader
        self.sender = ChunkSender(client, reader)
        self.staging: (
            Staging  # set once by the composition root: it tells this one of changes, which tells it
        )
        self.sent_inline_bytes = 0

    @property
    def sent_bytes(self) -> int:
        """File contents that have gone to the master, those that arrived twice counted twice."""
        return self.sender.sent_bytes + self.sent_inline_bytes

    @property
    def trees(self) -> Sequence[RunTree]:
        """The runs that have had something pending since the mount began."""
        return tuple(self._runs)

    def note_change(self, node: Node) -> None:
        """The node has something new to upload, in its own time, or nothing any more."""
        pending = node.pending
        if node.tree.stray_ids:
            self._run_uploader(node.tree).wake_now()
        if pending is None:
            self.note_progress()
            return
        if not pending.is_urgent:
            now_seconds = trio.current_time()
            if not (node.writer_count and pending.content):
                pending.due_seconds = now_seconds + QUIET_SECONDS
            elif pending.due_seconds == UNARMED_SECONDS:
                # Armed once: a log that never rests is published all the same.
                pending.due_seconds = now_seconds + PUBLISH_INTERVAL_SECONDS
        self._run_uploader(node.tree).wake_at(pending.due_seconds)

    def note_full_chunk(self, node: Node) -> None:
        """A writer has gone past the end of a chunk: it can leave now."""
        self._run_uploader(node.tree).wake_now()

    def note_opened(self, node: Node) -> None:
        """A writer has it. What is yet to be published waits for its first second, or its end."""
        pending = node.pending
        if pending is not None and pending.content and not pending.is_urgent:
            pending.due_seconds = trio.current_time() + PUBLISH_INTERVAL_SECONDS
            self._run_uploader(node.tree).wake_at(pending.due_seconds)

    def note_closed(self, node: Node) -> None:
        """The last writer is gone: the file is finished for now."""
        staged = node.staged
        # A run that was sealed while the file was open has its last content, in short chunks or not.
        if staged is not None and node.is_attached and node.tree.is_writable:
            has_merged = staged.layout.merge_short_segments(1)
            if has_merged and node.pending is None:
                self.staging.note_content(node)
        pending = node.pending
        if pending is None:
            self.staging.drop_staged_if_idle(node)
            return
        pending.publication = None
        if not pending.is_urgent:
            pending.due_seconds = trio.current_time() + QUIET_SECONDS
        self._run_uploader(node.tree).wake_at(pending.due_seconds)

    async def make_durable(self, nodes: Iterable[Node]) -> None:
        """Returns when all that is pending of the nodes and of their directories now is acknowledged.

        Raises the refusal of the first that was refused. No bound of its own. Cancelled: the uploads go on.
        """
        targets: list[tuple[Node, Pending, int]] = []
        for node in nodes:
            for member in unplaced_line(node):
                pending = member.pending
                if pending is not None:
                    pending.want_now()
                    targets.append((member, pending, pending.change_count))
                    self._run_uploader(member.tree).wake_now()
        for node, pending, change_count in targets:
            while node.pending is pending and pending.acknowledged_count < change_count:
                if pending.failure is not None:
                    raise pending.failure
                await self._progress.wait()

    async def wait_strays_removed(self) -> None:
        """Returns when the master has no name any more of what was removed here. No bound of its own."""
        while any(tree.stray_ids for tree in self.trees):
            await self._progress.wait()

    def note_progress(self) -> None:
        """Something was acknowledged or refused: those who wait look again."""
        self._progress.set()
        self._progress = trio.Event()

    def _run_uploader(self, tree: RunTree) -> RunUploader:
        run = self._runs.get(tree)
        if run is None:
            run = self._runs[tree] = RunUploader(self, tree, self._nursery)
            self._nursery.start_soon(keep_running, f"the upload of {tree.path}", run.run)
        return run
