"""The upload task of one run: chunks first, then the commit that names them.

It sends full chunks while a file is still being written, gathers what is due into one commit, publishes a
growing file once a second, and goes on through outages of the master for as long as it takes. A commit whose
answer was lost is repeated with its own request id before anything else is sent.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from cloudai_fusefs.background import keep_running
from cloudai_fusefs.chunk_reader import FileContent
from cloudai_fusefs.commit_composer import ComposedCommit, compose_commit, fits_inline, order_for_commit
from cloudai_fusefs.layout import Segment
from cloudai_fusefs.node import Node, Pending, Publication
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.staging import fingerprint
from cloudai_fusefs.wire_errors import error_from_detail
from cloudai_model.chunks import Manifest
from cloudai_model.errors import (
    CloudAIError,
    DirectoryNotEmpty,
    InternalError,
    MasterUnavailable,
    MissingChunks,
    NoSpace,
    NotFound,
    QuotaExceeded,
    Unauthenticated,
)
from cloudai_model.limits import (
    CHUNK_BYTES_MAX,
    COMMIT_INLINE_BYTES_MAX,
    COMMIT_NODES_MAX,
    INLINE_BYTES_MAX,
    REQUEST_ID_BYTES,
)
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

if TYPE_CHECKING:
    from cloudai_fusefs.uploader import Uploader

logger = logging.getLogger(__name__)

# Long enough that write, utimens, chmod and rename of a copying program are one commit, short enough that
# another mount has the file within a second.
QUIET_SECONDS: Final = 0.05

# A log line reaches a reader elsewhere within two seconds: one here, the way there, and its next look.
PUBLISH_INTERVAL_SECONDS: Final = 1.0

# What is written faster than this is no log: it is published when it is closed, and not in short chunks.
PUBLISH_BYTES_MAX: Final = CHUNK_BYTES_MAX

# Short chunks in one 4 MiB cell before they are merged while the file still grows.
SHORT_CHUNKS_MAX: Final = 64

UNARMED_SECONDS: Final = math.inf
"""The due time of what has not been given one."""

RETRY_SECONDS_MIN: Final = 0.2
RETRY_SECONDS_MAX: Final = 5.0
"""Pauses while the master is away: full jitter below a bound that doubles from MIN to MAX."""

REFUSED_RETRY_SECONDS: Final = 60.0
"""Until something is tried again that the master refused and that only a person can mend."""

_MENDABLE: Final = (NoSpace, QuotaExceeded, Unauthenticated)
"""Refusals that pass without a change of the data: tried again every RETRY_SECONDS_MAX."""


class RunUploader:
    """What is pending in one run, on its way."""

    def __init__(self, uploader: Uploader, tree: RunTree, nursery: trio.Nursery) -> None:
        self._uploader = uploader
        self._tree = tree
        self._nursery = nursery
        self._wake_at_seconds = math.inf
        self._woken = trio.Event()
        self._retry_bound_seconds = RETRY_SECONDS_MIN
        self._refusal: CloudAIError | None = None
        self._unanswered: tuple[names.CommitNodesRequest, Sequence[ComposedCommit]] | None = None
        # Removed here, and left at the master by a commit; what is in a directory comes before it.
        self._stray_ids: deque[int] = deque()

    def wake_at(self, moment_seconds: float) -> None:
        """Something is due then."""
        if moment_seconds < self._wake_at_seconds:
            self._wake_at_seconds = moment_seconds
            self._woken.set()

    def wake_now(self) -> None:
        """Something is due already."""
        self.wake_at(-math.inf)

    async def run(self) -> None:
        """Uploads for as long as the mount lives. Cancelled: what is pending stays in the journal."""
        while True:
            await self._sleep_until_due()
            self._wake_at_seconds = math.inf
            try:
                await self._upload_due()
            except (MasterUnavailable, Unauthenticated) as error:
                await self._wait_for_master(error)
            except CloudAIError as error:
                self._note_refused_call(error)

    async def _sleep_until_due(self) -> None:
        while trio.current_time() < self._wake_at_seconds:
            self._woken = trio.Event()
            with trio.move_on_at(self._wake_at_seconds):
                await self._woken.wait()

    # --- when --------------------------------------------------------------------------------------------

    async def _upload_due(self) -> None:
        if self._unanswered is not None:
            async with self._tree.mutation_lock:
                await self._send(*self._unanswered)
        if self._stray_ids:
            async with self._tree.mutation_lock:
                await self._remove_waiting_strays()
        now_seconds = trio.current_time()
        ready: list[Node] = []
        next_due_seconds = math.inf
        for node, pending in list(self._tree.pending.items()):
            if pending.uploading:
                continue  # it wakes this task when it has ended
            if not node.is_attached:
                # News of its removal came by the watch while, say, a directory's new time was pending. Or an earlier
                # mount has left it to be removed, and its row with it until that is done.
                if pending.stray_ids:
                    self._remove_strays(pending.stray_ids)
                    self._uploader.staging.discard_replaced(node)
                else:
                    self._uploader.staging.discard(node)
            elif pending.due_seconds > now_seconds:
                self._start_full_chunks(node, pending)
            elif self._is_ready(node, pending, now_seconds):
                ready.append(node)
            if not pending.uploading and pending.due_seconds > now_seconds:
                next_due_seconds = min(next_due_seconds, pending.due_seconds)
        self.wake_at(next_due_seconds)
        if ready:
            await self._commit(order_for_commit(ready))
            self._retry_bound_seconds = RETRY_SECONDS_MIN
            self._refusal = None

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
            self._start_chunks(node, pending, list(staged.layout.changed_segments()))
            return False
        if not pending.is_urgent and not _is_growing_slowly(node):
            pending.due_seconds = now_seconds + PUBLISH_INTERVAL_SECONDS
            self._start_full_chunks(node, pending)
            return False
        if pending.publication is None:
            # What is there now is published; what a writer adds meanwhile starts a chunk of its own.
            staged.layout.merge_short_segments(SHORT_CHUNKS_MAX)
            staged.layout.freeze_tail()
            staged.has_only_grown = True
            pending.publication = Publication(staged.size_bytes, pending.change_count)
        size_bytes = pending.publication.size_bytes
        missing = [
            segment for segment in staged.layout.changed_segments() if segment.start_bytes < size_bytes
        ]
        if missing:
            self._start_chunks(node, pending, missing)
        return not missing

    async def _wait_for_master(self, error: CloudAIError) -> None:
        """Waits until the master answers again. Nothing is lost meanwhile: all of it is in the journal."""
        if isinstance(error, Unauthenticated):
            self._note_refused_call(error)
        while True:
            await trio.sleep(self._next_pause_seconds())
            try:
                # A probe and not the commit itself, whose batch is large.
                await self._uploader.client.get_capabilities()
            except CloudAIError:
                continue
            self.wake_now()
            return

    def _next_pause_seconds(self) -> float:
        bound_seconds = self._retry_bound_seconds
        self._retry_bound_seconds = min(bound_seconds * 2, RETRY_SECONDS_MAX)
        return random.uniform(0, bound_seconds)  # noqa: S311 - noise of a jitter, not of a secret

    # --- refusals ----------------------------------------------------------------------------------------

    def _note_refused_call(self, error: CloudAIError) -> None:
        """The master takes nothing of this run: it is sealed or removed, or its disk is full."""
        if str(self._refusal) != str(error):
            logger.warning("%s: uploads are refused: %s", self._tree.path, error)
            self._refusal = error
        for pending in self._tree.pending.values():
            self._refuse(pending, error)

    def _note_refused_node(self, node: Node, pending: Pending, error: CloudAIError) -> None:
        """Says when to try again and, where patience alone will not do, tells those who wait and the log."""
        if isinstance(error, MasterUnavailable):
            pending.due_seconds = trio.current_time() + self._next_pause_seconds()
            self.wake_at(pending.due_seconds)
            return
        if str(pending.failure) != str(error):
            logger.warning("%s: not uploaded yet: %s", self._tree.label_of(node), error)
        self._refuse(pending, error)

    def _refuse(self, pending: Pending, error: CloudAIError) -> None:
        pending.failure = error
        pending.wanted_count = 0
        is_mendable = isinstance(error, _MENDABLE)
        pause_seconds = RETRY_SECONDS_MAX if is_mendable else REFUSED_RETRY_SECONDS
        pending.due_seconds = trio.current_time() + pause_seconds
        self.wake_at(pending.due_seconds)
        self._uploader.note_progress()

    # --- chunks ------------------------------------------------------------------------------------------

    def _start_full_chunks(self, node: Node, pending: Pending) -> None:
        if node.staged is not None and pending.content:
            segments = list(node.staged.layout.full_changed_segments())
            if segments:
                self._start_chunks(node, pending, segments)

    def _start_chunks(self, node: Node, pending: Pending, segments: list[Segment]) -> None:
        pending.uploading = True
        self._nursery.start_soon(
            keep_running, "the upload of chunks", self._upload_chunks, node, pending, segments
        )

    async def _upload_chunks(self, node: Node, pending: Pending, segments: list[Segment]) -> None:
        failure: CloudAIError | None = None
        try:
            if node.staged is not None:
                failure = await self._uploader.sender.send_segments(self._tree.task_id, node.staged, segments)
        finally:
            pending.uploading = False
        if failure is None or node.pending is not pending:
            self.wake_now()
        else:
            self._note_refused_node(node, pending, failure)

    # --- commits -----------------------------------------------------------------------------------------

    async def _commit(self, nodes: Sequence[Node]) -> None:
        """One batch, or several where it is too much for one. Raises what a whole call fails with."""
        position = 0
        while position < len(nodes):
            async with self._tree.mutation_lock:
                composed: list[ComposedCommit] = []
                batch_bytes = 0
                while position < len(nodes) and len(composed) < COMMIT_NODES_MAX:
                    item = await self._compose(nodes[position])
                    if item is not None:
                        batch_bytes += item.message.ByteSize()
                        composed.append(item)
                    position += 1
                    if batch_bytes + INLINE_BYTES_MAX > COMMIT_INLINE_BYTES_MAX:
                        break
                # Reading a file's bytes let others run.
                composed = [item for item in composed if item.is_current]
                if composed:
                    request = names.CommitNodesRequest(
                        request_id=secrets.token_bytes(REQUEST_ID_BYTES), task_id=self._tree.task_id
                    )
                    for item in composed:
                        item.address()
                        request.commits.append(item.message)
                    await self._send(request, composed)

    async def _compose(self, node: Node) -> ComposedCommit | None:
        """One file whose bytes cannot be read keeps no other from being committed."""
        pending = node.pending
        try:
            item = await compose_commit(node)
        except CloudAIError as error:
            if pending is not None:
                self._note_refused_node(node, pending, error)
            return None
        except OSError as error:
            if pending is not None:
                reason = InternalError(f"staged bytes cannot be read: {error.strerror}")
                self._note_refused_node(node, pending, reason)
            return None
        if item is None and node.pending is not None:
            node.pending.publication = None
            self.wake_at(trio.current_time() + QUIET_SECONDS)
        return item

    async def _send(self, request: names.CommitNodesRequest, composed: Sequence[ComposedCommit]) -> None:
        self._unanswered = request, composed
        try:
            response = await self._uploader.client.commit_nodes(request)
        except (MasterUnavailable, Unauthenticated):
            raise  # it is sent again as it is: whether it was carried out, its request id will tell
        except CloudAIError:
            self._unanswered = None
            raise
        self._unanswered = None
        for item, result in zip(composed, response.results, strict=True):
            if not item.is_current:
                self._note_placed_in_vain(item, result)
                continue
            if result.WhichOneof("result") == "node":
                self._take_acknowledgement(item, result.node)
            else:
                self._take_refusal(item, error_from_detail(result.error))
        self._uploader.note_progress()

    def _note_placed_in_vain(self, item: ComposedCommit, result: names.NodeResult) -> None:
        """The node was removed here while its commit was under way: it must not stay where that put it."""
        if item.message.place and not item.node.edges and result.node.node_id == item.node.node_id:
            self._remove_strays([item.node.node_id])

    def _remove_strays(self, node_ids: Sequence[int]) -> None:
        self._stray_ids.extendleft(node_ids)
        self.wake_now()

    async def _remove_waiting_strays(self) -> None:
        """Raises MasterUnavailable and Unauthenticated: what is left is for the next time."""
        while self._stray_ids:
            request = names.RemoveRequest(
                request_id=secrets.token_bytes(REQUEST_ID_BYTES),
                task_id=self._tree.task_id,
                node_id=self._stray_ids[0],
            )
            try:
                await self._uploader.client.remove(request)
            except (MasterUnavailable, Unauthenticated):
                raise
            except (NotFound, DirectoryNotEmpty):
                pass  # it has no name any more, or somebody else has put something into the directory
            except CloudAIError as error:
                logger.warning("%s: what was removed may still be there: %s", self._tree.path, error)
            self._uploader.staging.remove_row(self._stray_ids.popleft())

    def _take_acknowledgement(self, item: ComposedCommit, message: types.Node) -> None:
        node, pending, staging = item.node, item.pending, self._uploader.staging
        if item.message.data:
            self._uploader.sent_inline_bytes += len(item.message.data)
            self._uploader.reader.keep_written(item.message.digest, item.message.data)
        if message.node_id != node.node_id:
            staging.remove_row(node.node_id)
            self._tree.take_node_id(node, message.node_id)
        if item.manifest is not None:
            node.committed = fingerprint(item.manifest)
            if node.kernel_generation == node.view_generation:
                node.kernel_generation = message.generation  # the kernel's pages are those written here
            if node.staged is not None:
                node.staged.view_generation = message.generation
        pending.acknowledged_count = max(pending.acknowledged_count, item.change_count)
        pending.failure = None
        pending.publication = None
        pending.covered_ids = ()
        if pending.stray_ids:
            self._remove_strays(pending.stray_ids)
            pending.stray_ids = ()
        if node.edges and node.edges[0] == item.edge:
            pending.place = False
        is_acknowledged = pending.change_count == item.change_count and not pending.place
        if is_acknowledged:
            staging.acknowledge(node)
        node.take_server_state(message)
        if item.manifest is not None and node.generation == message.generation:
            self._note_content(node, item.manifest)
        if not is_acknowledged:
            self._arm_again(node, pending)
            with suppress(OSError):  # a full disk: the row as it was repeats a commit, and that is harmless
                staging.record(node)

    def _arm_again(self, node: Node, pending: Pending) -> None:
        if pending.is_urgent:
            pending.due_seconds = -math.inf
        else:
            is_open = bool(node.writer_count and pending.content)
            pause_seconds = PUBLISH_INTERVAL_SECONDS if is_open else QUIET_SECONDS
            pending.due_seconds = trio.current_time() + pause_seconds
        self.wake_at(pending.due_seconds)

    def _note_content(self, node: Node, manifest: Manifest) -> None:
        node.content = FileContent(
            task_id=self._tree.task_id,
            node_id=node.node_id,
            generation=node.generation,
            manifest=manifest,
            label=self._tree.label_of(node),
        )

    def _take_refusal(self, item: ComposedCommit, error: CloudAIError) -> None:
        staged = item.node.staged
        if isinstance(error, MissingChunks) and staged is not None:
            item.pending.publication = None
            if staged.layout.note_lost(set(error.digests)):
                # The master lost or collected them, or never had them: made again.
                item.pending.due_seconds = -math.inf
                self.wake_now()
                return
        self._note_refused_node(item.node, item.pending, error)


def _is_growing_slowly(node: Node) -> bool:
    staged = node.staged
    return staged is not None and staged.has_only_grown and staged.layout.changed_bytes <= PUBLISH_BYTES_MAX
