"""The upload task of one run: what is due, and in which order.

It sends full chunks while a file is still being written, gathers what is due into one commit, publishes a
growing file once a second, and goes on through outages of the master for as long as it takes. A commit whose
answer was lost is repeated before anything else is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Final

import trio

from cloudai_fusefs.chunk_sender import Sending
from cloudai_fusefs.commit_composer import fits_inline
from cloudai_fusefs.commit_order import order_for_commit
from cloudai_fusefs.commit_pace import CommitPace
from cloudai_fusefs.commit_sender import CommitSender
from cloudai_fusefs.journal_rows import DiskState
from cloudai_fusefs.layout import Segment
from cloudai_fusefs.node import Node, Pending, Publication
from cloudai_fusefs.refusals import RETRY_SECONDS_MAX, Refusals
from cloudai_fusefs.removal_sender import RemovalSender
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.stray_sender import StraySender
from cloudai_fusefs.upload_agenda import UploadAgenda
from cloudai_model.errors import CloudAIError, MasterUnavailable, Unauthenticated
from cloudai_model.limits import CHUNK_BYTES_MAX, COMMIT_NODES_MAX

if TYPE_CHECKING:
    from cloudai_fusefs.uploader import Uploader

# A log line reaches a reader elsewhere within two seconds: one here, the way there, and its next look.
PUBLISH_INTERVAL_SECONDS: Final = 1.0

# What is written faster than this is no log: it is published when it is closed, and not in short chunks.
PUBLISH_BYTES_MAX: Final = CHUNK_BYTES_MAX

# Short chunks in one 4 MiB cell before they are merged while the file still grows.
SHORT_CHUNKS_MAX: Final = 64

SEGMENTS_AT_ONCE_MAX: Final = 1024
"""Of one file, given to the sender together: 4 GiB. A sparse file has up to 262,144, which took seconds to list."""

UNARMED_SECONDS: Final = math.inf
"""The due time of what has not been given one."""

IDLE_SECONDS: Final = 60.0
"""A run in which nothing has been pending for so long has no task: a mount may have had thousands, removed ones among
them, whose nodes it would keep."""


class RunUploader:
    """What is pending in one run, on its way."""

    def __init__(self, uploader: Uploader, tree: RunTree) -> None:
        self._uploader = uploader
        self._tree = tree
        self._agenda = UploadAgenda()
        # Of what is open for writing: a log's publication does not wait behind a backlog.
        self._growing_agenda = UploadAgenda()
        self._pace = CommitPace()
        self._with_full_chunks: set[Node] = set()
        self.removals = RemovalSender(uploader.client, tree, uploader.staging, uploader.tell_kernel)
        self.refusals = Refusals(tree, uploader.staging, self.removals, self.arm, uploader.note_progress)
        self._strays = StraySender(uploader.client, tree, uploader.staging)
        self._commits = CommitSender(uploader, self, tree)
        self._refused_strays_due_seconds = -math.inf
        self._wake_at_seconds = math.inf
        self._woken = trio.Event()

    def wake_at(self, moment_seconds: float) -> None:
        """Something is due then."""
        if moment_seconds < self._wake_at_seconds:
            self._wake_at_seconds = moment_seconds
            self._woken.set()

    def wake_now(self) -> None:
        """Something is due already."""
        self.wake_at(-math.inf)

    def quiet_due_seconds(self, node: Node) -> float:
        """When a node that has come to rest just now is due."""
        return self._pace.due_seconds(node, trio.current_time())

    def arm(self, node: Node, pending: Pending) -> None:
        """The node is due at its `due_seconds`, which may have changed."""
        if pending.due_seconds < UNARMED_SECONDS and pending.disk_state != DiskState.MAYBE_LOST:
            agenda = self._growing_agenda if node.writer_count and pending.content else self._agenda
            agenda.put(node, pending)
            self.wake_at(pending.due_seconds)

    def note_removals(self) -> None:
        """There are removals to be sent, of which some may be new."""
        self.removals.note_waiting()
        self.wake_at(self.removals.due_seconds)

    def want_removals_now(self) -> None:
        """Somebody waits for them."""
        self.removals.want_now()
        self.wake_now()

    def note_full_chunk(self, node: Node) -> None:
        """A writer has gone past the end of a chunk, which can leave now."""
        self._with_full_chunks.add(node)
        self.wake_now()

    async def run(self) -> None:
        """Uploads until nothing has been pending for IDLE_SECONDS: the next change is another RunUploader's.

        Cancelled: what is pending stays in the journal.
        """
        while await self._sleep_until_due():
            self._wake_at_seconds = math.inf
            try:
                await self._upload_due()
            except (MasterUnavailable, Unauthenticated) as error:
                await self._wait_for_master(error)
            except CloudAIError as error:
                self.refusals.note_call(error)
                self.wake_at(self.removals.due_seconds)
                if self._tree.stray_ids:
                    self._refused_strays_due_seconds = trio.current_time() + RETRY_SECONDS_MAX
                    self.wake_at(self._refused_strays_due_seconds)
        self._uploader.forget(self._tree)  # with no await since it was found idle

    async def _sleep_until_due(self) -> bool:
        """False: nothing is due, nor will be, of what there is."""
        while (now_seconds := trio.current_time()) < self._wake_at_seconds:
            idle_at_seconds = now_seconds + IDLE_SECONDS
            self._woken = trio.Event()
            with trio.move_on_at(min(self._wake_at_seconds, idle_at_seconds)):
                await self._woken.wait()
            if self._is_idle and idle_at_seconds <= trio.current_time() < self._wake_at_seconds:
                return False
        return True

    @property
    def _is_idle(self) -> bool:
        tree = self._tree
        return not (tree.pending or tree.removals or tree.stray_ids or self._commits.has_unanswered)

    # --- when --------------------------------------------------------------------------------------------

    async def _upload_due(self) -> None:
        if self._commits.has_unanswered:
            async with self._tree.mutation_lock:
                await self.send_unanswered()
        if self.removals.due_seconds <= trio.current_time():
            async with self._tree.mutation_lock:
                await self.send_removals()
        elif self._tree.stray_ids and (
            self._tree.stray_failure is None or self._refused_strays_due_seconds <= trio.current_time()
        ):
            async with self._tree.mutation_lock:
                await self.send_strays()
        now_seconds = trio.current_time()
        with_full_chunks, self._with_full_chunks = self._with_full_chunks, set()
        for node in with_full_chunks:
            self._start_full_chunks(node)
        # A batch or a few at once, so that what becomes due meanwhile is not held up.
        due = self._growing_agenda.take_due(now_seconds, COMMIT_NODES_MAX)
        due += self._agenda.take_due(now_seconds, COMMIT_NODES_MAX)
        try:
            await self._upload(due, now_seconds)
        finally:
            # Whatever happened, nothing that is pending is forgotten.
            for node, pending in due:
                if node.pending is pending and not pending.uploading:
                    self.arm(node, pending)
        self.wake_at(
            min(
                self._agenda.next_due_seconds,
                self._growing_agenda.next_due_seconds,
                self.removals.due_seconds,
            )
        )
        if self._tree.stray_ids:
            self.wake_at(self._refused_strays_due_seconds)

    async def _upload(self, due: Sequence[tuple[Node, Pending]], now_seconds: float) -> None:
        ready: list[Node] = []
        for node, pending in due:
            if pending.uploading:
                continue  # it is put on the agenda again when that has ended
            if pending.disk_state == DiskState.MAYBE_LOST and node.is_attached:
                continue  # not before somebody has looked at it
            if self.refusals.waits_for_path(node, pending):
                continue
            if not node.is_attached:
                self._uploader.staging.discard(node)
            elif self._is_ready(node, pending, now_seconds):
                ready.append(node)
        if ready:
            if not self._tree.watch_is_healthy:
                # A commit that a dead master was asked for may have arrived, as far as can be told: what is in it
                # could not be removed or renamed any more without asking.
                await self._uploader.client.get_capabilities()
            self._uploader.put_in_order(ready)
            chosen = set(ready)
            await self._commits.send(
                [node for node in order_for_commit(ready) if node in chosen or _can_come_along(node)]
            )
            self.refusals.note_accepted()

    def _is_ready(self, node: Node, pending: Pending, now_seconds: float) -> bool:
        """Whether what is due can be committed; starts what has to come first."""
        staged = node.staged
        if not pending.content or staged is None or fits_inline(node):
            pending.publication = None
            return True
        if not node.writer_count:
            pending.publication = None
            if staged.layout.is_stored:
                return True
            self._start_chunks(node, pending, staged.layout.changed_segments())
            return False
        if not pending.is_urgent and pending.publication is None and not _is_growing_slowly(node):
            pending.due_seconds = now_seconds + PUBLISH_INTERVAL_SECONDS
            self.arm(node, pending)
            self._start_full_chunks(node)
            return False
        if pending.publication is None:
            # What is there now is published; what a writer adds meanwhile starts a chunk of its own.
            staged.layout.merge_short_segments(SHORT_CHUNKS_MAX)
            staged.layout.freeze_tail()
            staged.has_only_grown = True
            pending.publication = Publication(staged.size_bytes, pending.change_count)
        size_bytes = pending.publication.size_bytes
        missing = takewhile(
            lambda segment: segment.start_bytes < size_bytes, staged.layout.changed_segments()
        )
        return not self._start_chunks(node, pending, missing)

    async def _wait_for_master(self, error: CloudAIError) -> None:
        """Waits until the master answers again. Nothing is lost meanwhile: all of it is in the journal."""
        while True:
            if isinstance(error, Unauthenticated):
                # Again each time: somebody may have begun to wait meanwhile.
                if self._tree.stray_ids:
                    self._tree.stray_failure = error
                self.refusals.note_call(error)
            await trio.sleep(self.refusals.take_pause_seconds())
            try:
                # A probe and not the commit itself, whose batch is large.
                await self._uploader.client.get_capabilities()
            except CloudAIError as still:
                error = still
            else:
                self.wake_now()
                return

    # --- chunks ------------------------------------------------------------------------------------------

    def _start_full_chunks(self, node: Node) -> None:
        pending = node.pending
        if pending is None or not pending.content or pending.uploading or node.staged is None:
            return  # what is being sent is followed by another look
        # What is due is looked at as a whole. What has failed waits for its time.
        if pending.due_seconds <= trio.current_time() or pending.failure is not None:
            return
        self._start_chunks(node, pending, node.staged.layout.full_changed_segments())

    def _start_chunks(self, node: Node, pending: Pending, wanted: Iterator[Segment]) -> bool:
        """Sends the first of these segments, after which the file is looked at again; whether there were any."""
        assert node.staged is not None
        segments = list(islice(wanted, SEGMENTS_AT_ONCE_MAX))
        if not segments:
            return False
        pending.uploading = True
        self._uploader.sender.start(
            Sending(
                self._tree.task_id,
                node.staged,
                segments,
                partial(self._uploader.rank_of, node),
                partial(self._note_chunks_ended, node, pending),
            )
        )
        return True

    def _note_chunks_ended(self, node: Node, pending: Pending, failure: CloudAIError | None) -> None:
        pending.uploading = False
        if node.pending is not pending:
            self.wake_now()
        elif failure is not None:
            self.refusals.note_node(node, pending, failure)
        else:
            self.arm(node, pending)
            self.note_full_chunk(node)

    # --- commits -----------------------------------------------------------------------------------------

    async def send_removals(self) -> None:
        """Before commits, which may have the name of something that was removed; with the run's mutation lock held."""
        await self.removals.send()
        await self.send_strays()

    async def send_strays(self) -> None:
        """As `send_removals`, of what the master was told of while it was removed here."""
        if self._tree.stray_ids:
            await self._strays.send()
        self._uploader.note_progress()

    async def send_unanswered(self) -> None:
        """Repeats the commit whose answer was lost, if there is one: whoever changes names at the master does so
        first, with the run's mutation lock held. It may not have been carried out, and would undo what comes between.

        Raises MasterUnavailable and Unauthenticated.
        """
        try:
            await self._commits.send_unanswered()
        except (MasterUnavailable, Unauthenticated):
            raise
        except CloudAIError as error:
            self.refusals.note_call(error)

    def arm_again(self, node: Node, pending: Pending) -> None:
        """Something was changed while the commit was under way: due in its own time."""
        if pending.is_urgent:
            pending.due_seconds = -math.inf
        elif node.writer_count and pending.content:
            pending.due_seconds = trio.current_time() + PUBLISH_INTERVAL_SECONDS
        else:
            pending.due_seconds = self.quiet_due_seconds(node)
        self.arm(node, pending)


def _can_come_along(node: Node) -> bool:
    """Whether what another needs before it can be committed as it is. If not, that one waits: this has its own time."""
    pending, staged = node.pending, node.staged
    if pending is None or pending.uploading or pending.disk_state == DiskState.MAYBE_LOST:
        return False
    if not pending.content or staged is None or fits_inline(node):
        return True
    return staged.layout.is_stored and not node.writer_count


def _is_growing_slowly(node: Node) -> bool:
    """Whether it is a log. To be asked once in each PUBLISH_INTERVAL_SECONDS.

    By what was written and not by what is yet to be sent: a fast upload would make a log of a checkpoint, and
    send its tail of each second twice.
    """
    staged = node.staged
    if staged is None:
        return False
    grown_bytes = staged.size_bytes - staged.size_seen_bytes
    staged.size_seen_bytes = staged.size_bytes
    return (
        staged.has_only_grown
        and grown_bytes <= PUBLISH_BYTES_MAX
        and not staged.layout.has_changed_more_than(PUBLISH_BYTES_MAX)
    )
