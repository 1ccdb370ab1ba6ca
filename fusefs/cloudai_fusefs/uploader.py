"""Makes pending changes durable. The mount's side of it: what has changed, what is waited for.

One RunUploader task for each run with something pending does the work, and ends when nothing has been for a while.
Nothing here answers the kernel; who needs durability waits in `make_durable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import trio

from cloudai_fusefs.background import keep_running
from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.chunk_sender import FIRST, ChunkSender, Rank
from cloudai_fusefs.commit_order import order_for_commit
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.node import Node, Pending
from cloudai_fusefs.run_nodes import Invalidation
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.run_uploader import PUBLISH_INTERVAL_SECONDS, UNARMED_SECONDS, RunUploader
from cloudai_fusefs.staging import Staging
from cloudai_fusefs.waiting_removals import Removal
from cloudai_model.errors import CloudAIError


class Uploader:
    """Owns the upload tasks of a mount; the nursery is the composition root's."""

    def __init__(
        self,
        client: MasterClient,
        reader: ChunkReader,
        tell_kernel: Callable[[Iterable[Invalidation]], None],
        nursery: trio.Nursery,
    ) -> None:
        self._nursery = nursery
        self._runs: dict[RunTree, RunUploader] = {}
        self._progress = trio.Event()
        self._is_draining = False
        self.client = client
        self.reader = reader
        self.tell_kernel = tell_kernel
        self.sender = ChunkSender(client, reader, nursery)
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
        """The runs in which something is pending, or was lately."""
        return tuple(self._runs)

    def note_change(self, node: Node) -> None:
        """The node has something new to upload, in its own time, or nothing any more."""
        pending = node.pending
        if node.tree.stray_ids and node.tree.stray_failure is None:
            self._run_uploader(node.tree).wake_now()
        if node.tree.removals:
            self._run_uploader(node.tree).note_removals()
        if pending is None:
            self.note_progress()
            return
        run = self._run_uploader(node.tree)
        if not pending.is_urgent:
            if not (node.writer_count and pending.content):
                pending.due_seconds = run.quiet_due_seconds(node)
            elif pending.due_seconds == UNARMED_SECONDS:
                # Armed once: a log that never rests is published all the same.
                pending.due_seconds = trio.current_time() + PUBLISH_INTERVAL_SECONDS
        run.arm(node, pending)

    def note_full_chunk(self, node: Node) -> None:
        """A writer has gone past the end of a chunk: it can leave now."""
        self._run_uploader(node.tree).note_full_chunk(node)

    def note_opened(self, node: Node) -> None:
        """A writer has it. What is yet to be published waits for its first second, or its end."""
        pending = node.pending
        if pending is not None and pending.content and not pending.is_urgent:
            pending.due_seconds = trio.current_time() + PUBLISH_INTERVAL_SECONDS
            self._run_uploader(node.tree).arm(node, pending)

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
        run = self._run_uploader(node.tree)
        if not pending.is_urgent:
            pending.due_seconds = run.quiet_due_seconds(node)
        run.arm(node, pending)

    async def make_durable(self, nodes: Iterable[Node]) -> None:
        """Returns when all that is pending of the nodes and of their directories now is acknowledged.

        Raises the refusal of the first that was refused. No bound of its own. Cancelled: the uploads go on.
        """
        for target in self._want_now(nodes):
            while target.is_waited_for:
                if target.pending.failure is not None:
                    raise target.pending.failure
                await self._progress.wait()

    async def drain(self) -> None:
        """Returns when all that is pending now is acknowledged or refused; complete files, the newest first,
        go before those that are still open for writing.

        Cancelled: the uploads go on, in this order until `end_drain`.
        """
        self._is_draining = True
        self.sender.reorder()
        nodes = [node for tree in self._runs for node in tree.pending]
        self.put_in_order(nodes)  # so that a run that looks at a part of them looks at the newest
        for target in self._want_now(nodes):
            while target.is_waited_for and target.pending.failure is None:
                await self._progress.wait()
        for tree in self.trees:
            with suppress(CloudAIError):
                await self.wait_removals([tree])

    def end_drain(self) -> None:
        """Uploads go on in their usual order."""
        self._is_draining = False
        self.sender.reorder()

    async def send_unanswered(self, tree: RunTree) -> None:
        """Before names are changed at the master, with the run's mutation lock held: see RunUploader."""
        run = self._runs.get(tree)
        if run is not None:
            await run.send_unanswered()

    def rank_of(self, node: Node) -> Rank:
        """Whose chunks go first: what somebody waits for, readers of a growing file among them, while draining by what
        it would be worth alone.
        """
        if self._is_draining:
            return (1 if node.writer_count else 0, -node.ctime_ns)
        pending = node.pending
        is_waited_for = pending is not None and (pending.is_urgent or pending.publication is not None)
        return (FIRST if is_waited_for else FIRST + 1, 0)

    def put_in_order(self, nodes: list[Node]) -> None:
        """Sorts what is to be committed; in ordinary operation it goes as it became due."""
        if self._is_draining:
            nodes.sort(key=self.rank_of)

    def _want_now(self, nodes: Iterable[Node]) -> list[_Target]:
        targets = []
        for member in order_for_commit(nodes):
            pending = member.pending
            if pending is not None:
                pending.want_now()
                targets.append(_Target(member, pending, pending.change_count))
                self._run_uploader(member.tree).arm(member, pending)
        return targets

    def can_make_room(self) -> bool:
        """Whether a staged file goes away once what is under way has arrived: one that nobody writes to."""
        return any(
            pending.content and not node.writer_count and pending.failure is None
            for tree in self._runs
            for node, pending in tree.pending.items()
        )

    async def wait_strays_removed(self) -> None:
        """Returns when the master has no name any more of what was removed here. No bound of its own.

        Raises the refusal of the first run in which they are refused: they are tried again all the same.
        """
        for tree in self.trees:
            if tree.stray_ids:
                tree.stray_failure = None
                self._run_uploader(tree).wake_now()
        while waiting := [tree for tree in self.trees if tree.stray_ids]:
            for tree in waiting:
                if tree.stray_failure is not None:
                    raise tree.stray_failure
            await self._progress.wait()

    async def wait_removals(self, trees: Iterable[RunTree]) -> None:
        """Returns when the master has answered all that was removed in these runs until now.

        Raises the refusal of the first that was refused. No bound of its own. Cancelled: they are sent all the same.
        """
        waiting: list[Removal] = []
        for tree in trees:
            if tree.removals:
                waiting += tree.removals
                self._run_uploader(tree).want_removals_now()
        for removal in waiting:
            while removal.is_waiting:
                failure = removal.node.tree.removals.failure
                if failure is not None:
                    raise failure
                await self._progress.wait()
            if removal.failure is not None:
                raise removal.failure

    async def send_removals(self, tree: RunTree) -> None:
        """Tells the master what was removed in the run, by a caller who holds its mutation lock.

        Afterwards nothing waits: what the master refused is shown again. Raises what keeps them waiting.
        """
        if tree.removals or tree.stray_ids:
            await self._run_uploader(tree).send_removals()

    def note_progress(self) -> None:
        """Something was acknowledged or refused: those who wait look again."""
        self._progress.set()
        self._progress = trio.Event()

    def forget(self, tree: RunTree) -> None:
        """Nothing is pending in the run any more, and its task has ended."""
        del self._runs[tree]

    def _run_uploader(self, tree: RunTree) -> RunUploader:
        run = self._runs.get(tree)
        if run is None:
            run = self._runs[tree] = RunUploader(self, tree)
            self._nursery.start_soon(keep_running, f"the upload of {tree.path}", run.run)
        return run


class _Target(NamedTuple):
    """A node's changes up to a count, which somebody waits for."""

    node: Node
    pending: Pending
    change_count: int

    @property
    def is_waited_for(self) -> bool:
        return self.node.pending is self.pending and self.pending.acknowledged_count < self.change_count
