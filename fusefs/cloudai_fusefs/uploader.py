"""Makes pending changes durable: chunks first, then the commit that names them.

One task for each run with something pending. It sends full chunks while a file is still being written,
gathers what is due into one commit, publishes a growing file once a second, and goes on through outages of
the master for as long as it takes. Nothing here answers the kernel; who needs durability waits in
`make_durable`.

A commit reads a node's `change_count` before its attributes and bytes: what it settles, it holds.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

import trio

from cloudai_fusefs.chunk_reader import ChunkReader, FileContent
from cloudai_fusefs.layout import Segment
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.node import Node, Pending
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.staging import Staging, fingerprint, manifest_to_wire
from cloudai_fusefs.wire_errors import error_from_detail
from cloudai_model.chunks import Chunk, Manifest, digest_of
from cloudai_model.errors import (
    CloudAIError,
    InternalError,
    MasterUnavailable,
    MissingChunks,
    NoSpace,
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

logger = logging.getLogger(__name__)

# Long enough that write, utimens, chmod and rename of a copying program are one commit, short enough that
# another mount has the file within a second.
SETTLE_SECONDS: Final = 0.05

# A log line reaches a reader elsewhere within two seconds: one here, the way there, and its next look.
PUBLISH_INTERVAL_SECONDS: Final = 1.0

# What is written faster than this is no log: it is published when it is closed, and not in short chunks.
PUBLISH_BYTES_MAX: Final = CHUNK_BYTES_MAX

# 4 in flight fill the wire (FACTS: 0.5-0.85 GB/s); each holds up to three copies of a chunk.
CHUNKS_IN_FLIGHT_MAX: Final = 4

# Short chunks in one 4 MiB cell before they are merged while the file still grows.
SHORT_CHUNKS_MAX: Final = 64

RETRY_SECONDS_MIN: Final = 0.2
RETRY_SECONDS_MAX: Final = 5.0
"""Pauses while the master is away: full jitter below a bound that doubles from MIN to MAX."""

REFUSED_RETRY_SECONDS: Final = 60.0
"""Until something is tried again that the master refused and that only a person can mend."""

_MENDABLE: Final = (NoSpace, QuotaExceeded, Unauthenticated)
"""Refusals that pass without a change of the data: tried again every RETRY_SECONDS_MAX."""


class Uploader:
    """Owns the upload tasks of a mount; the nursery is the composition root's."""

    def __init__(self, client: MasterClient, reader: ChunkReader, nursery: trio.Nursery) -> None:
        self._client = client
        self.reader = reader
        self._nursery = nursery
        self._runs: dict[RunTree, _RunUploader] = {}
        self.chunk_slots = trio.CapacityLimiter(CHUNKS_IN_FLIGHT_MAX)
        self.hash_slots = trio.CapacityLimiter(2)  # threads that read and hash: as many as have cores to use
        self.staging: Staging  # set once by the composition root: staging tells the uploader, which tells it
        self.sent_bytes = 0
        self._progress = trio.Event()

    @property
    def client(self) -> MasterClient:
        return self._client

    @property
    def trees(self) -> Sequence[RunTree]:
        """The runs that have had something pending since the mount began."""
        return tuple(self._runs)

    def note_change(self, node: Node) -> None:
        """The node has something new to upload, in its own time, or nothing any more."""
        pending = node.pending
        if pending is None:
            self.note_progress()
            return
        now_seconds = trio.current_time()
        if node.writer_count and pending.content and not pending.is_urgent:
            if pending.due_seconds <= now_seconds:
                pending.due_seconds = now_seconds + PUBLISH_INTERVAL_SECONDS
        else:
            pending.due_seconds = now_seconds + SETTLE_SECONDS
        self._run_uploader(node.tree).wake_at(pending.due_seconds)

    def note_full_chunk(self, node: Node) -> None:
        """A writer has gone past the end of a chunk: it can leave now."""
        self._run_uploader(node.tree).wake_at(-math.inf)

    def note_closed(self, node: Node) -> None:
        """The last writer is gone: the file is finished for now."""
        staged, pending = node.staged, node.pending
        # A run that was sealed while the file was open has its last content, in short chunks or not.
        if staged is not None and node.is_attached and not node.tree.is_sealed:
            staged.layout.merge_short_segments(1)
            if pending is None and not staged.layout.is_settled:
                self.staging.note_content(node)
                pending = node.pending
        if pending is not None:
            pending.due_seconds = trio.current_time() + SETTLE_SECONDS
            self._run_uploader(node.tree).wake_at(pending.due_seconds)
        else:
            self.staging.drop_staged_if_idle(node)

    async def make_durable(self, nodes: Iterable[Node]) -> None:
        """Returns when all that is pending of the nodes and of their directories now is acknowledged.

        Raises the refusal of the first that was refused. No bound of its own. Cancelled: the uploads go on.
        """
        targets: list[tuple[Node, Pending, int]] = []
        for node in nodes:
            for member in _with_unplaced_parents(node):
                pending = member.pending
                if pending is not None:
                    pending.is_urgent = True
                    pending.failure = None
                    pending.due_seconds = -math.inf
                    targets.append((member, pending, pending.change_count))
                    self._run_uploader(member.tree).wake_at(-math.inf)
        for node, pending, change_count in targets:
            while node.pending is pending and pending.settled_count < change_count:
                if pending.failure is not None:
                    raise pending.failure
                await self._progress.wait()

    def note_progress(self) -> None:
        """Something was acknowledged or refused: those who wait look again."""
        self._progress.set()
        self._progress = trio.Event()

    def _run_uploader(self, tree: RunTree) -> _RunUploader:
        run = self._runs.get(tree)
        if run is None:
            run = self._runs[tree] = _RunUploader(self, tree, self._nursery)
            self._nursery.start_soon(run.run)
        return run


class _RunUploader:
    """The upload task of one run."""

    def __init__(self, uploader: Uploader, tree: RunTree, nursery: trio.Nursery) -> None:
        self._uploader = uploader
        self._client = uploader.client
        self._reader = uploader.reader
        self._tree = tree
        self._nursery = nursery
        self._wake_at_seconds = math.inf
        self._woken = trio.Event()
        self._retry_bound_seconds = RETRY_SECONDS_MIN
        self._refusal: CloudAIError | None = None

    def wake_at(self, moment_seconds: float) -> None:
        if moment_seconds < self._wake_at_seconds:
            self._wake_at_seconds = moment_seconds
            self._woken.set()

    async def run(self) -> None:
        while True:
            await self._sleep_until_due()
            self._wake_at_seconds = math.inf
            try:
                await self._upload_due()
            except (MasterUnavailable, Unauthenticated) as error:
                await self._back_off(error)
            except CloudAIError as error:
                self._note_refused_call(error)
                self.wake_at(
                    min((pending.due_seconds for pending in self._tree.pending.values()), default=math.inf)
                )

    async def _sleep_until_due(self) -> None:
        while trio.current_time() < self._wake_at_seconds:
            self._woken = trio.Event()
            with trio.move_on_at(self._wake_at_seconds):
                await self._woken.wait()

    async def _back_off(self, error: CloudAIError) -> None:
        """Waits until the master answers again. Nothing is lost meanwhile: all of it is in the journal."""
        if isinstance(error, Unauthenticated):
            self._note_refused_call(error)
        while True:
            # noise of a jitter, not of a secret
            await trio.sleep(random.uniform(0, self._retry_bound_seconds))  # noqa: S311
            self._retry_bound_seconds = min(self._retry_bound_seconds * 2, RETRY_SECONDS_MAX)
            try:
                # A probe and not the commit itself: an attempt without an answer leaves it unknown what
                # the master has, and a rename must then ask.
                await self._client.get_capabilities()
            except CloudAIError:
                continue
            self.wake_at(-math.inf)
            return

    def _note_refused_call(self, error: CloudAIError) -> None:
        """The master takes nothing of this run: it is sealed or removed, or its disk is full."""
        if str(self._refusal) != str(error):
            logger.warning("%s: uploads are refused: %s", self._tree.path, error)
            self._refusal = error
        for pending in self._tree.pending.values():
            self._refuse(pending, error)
        self._uploader.note_progress()

    @staticmethod
    def _refuse(pending: Pending, error: CloudAIError) -> None:
        pending.failure = error
        pending.is_urgent = False
        is_mendable = isinstance(error, _MENDABLE)
        pause_seconds = RETRY_SECONDS_MAX if is_mendable else REFUSED_RETRY_SECONDS
        pending.due_seconds = trio.current_time() + pause_seconds

    async def _upload_due(self) -> None:
        now_seconds = trio.current_time()
        ready: dict[Node, None] = {}
        next_due_seconds = math.inf
        for node, pending in list(self._tree.pending.items()):
            staged = node.staged
            if pending.uploading:
                continue
            if not node.is_attached:
                # News of its removal came by the watch while, say, a directory's new time was pending.
                self._uploader.staging.discard(node)
                continue
            is_due = pending.due_seconds <= now_seconds
            if not is_due:
                next_due_seconds = min(next_due_seconds, pending.due_seconds)
                if staged is not None and any(staged.layout.changed_segments(full_only=True)):
                    self._start_chunks(node, pending, full_only=True)
                continue
            if not pending.content or staged is None:
                ready[node] = None
            elif node.writer_count and not pending.is_urgent and not _is_growing_slowly(node):
                pending.due_seconds = now_seconds + PUBLISH_INTERVAL_SECONDS
                next_due_seconds = min(next_due_seconds, pending.due_seconds)
                if any(staged.layout.changed_segments(full_only=True)):
                    self._start_chunks(node, pending, full_only=True)
            elif staged.layout.is_settled or _fits_inline(node):
                ready[node] = None
            else:
                self._start_chunks(node, pending, full_only=False)
        self.wake_at(next_due_seconds)
        if ready:
            await self._commit(_with_parents(ready))
            self._retry_bound_seconds = RETRY_SECONDS_MIN
            self._refusal = None

    # --- chunks ------------------------------------------------------------------------------------------

    def _start_chunks(self, node: Node, pending: Pending, *, full_only: bool) -> None:
        pending.uploading = True
        self._nursery.start_soon(self._upload_chunks, node, pending, full_only)

    async def _upload_chunks(self, node: Node, pending: Pending, full_only: bool) -> None:
        staged = node.staged
        failures: list[CloudAIError] = []
        try:
            if staged is not None:
                if node.writer_count:
                    staged.layout.merge_short_segments(SHORT_CHUNKS_MAX)
                async with trio.open_nursery() as nursery:
                    for segment in staged.layout.changed_segments(full_only=full_only):
                        slot = object()
                        await self._uploader.chunk_slots.acquire_on_behalf_of(slot)
                        if failures:
                            self._uploader.chunk_slots.release_on_behalf_of(slot)
                            break
                        nursery.start_soon(self._upload_chunk, node, segment, slot, failures)
        finally:
            pending.uploading = False
        if failures and node.pending is pending:
            self._note_failure(node, pending, failures[0])
        self.wake_at(min(pending.due_seconds, math.inf) if failures else -math.inf)

    async def _upload_chunk(
        self, node: Node, segment: Segment, slot: object, failures: list[CloudAIError]
    ) -> None:
        try:
            staged = node.staged
            if staged is None:
                return
            data = await staged.read(segment.start_bytes, segment.length_bytes)
            if len(data) != segment.length_bytes:
                return  # truncated meanwhile: it is another segment now
            digest = await trio.to_thread.run_sync(digest_of, data, limiter=self._uploader.hash_slots)
            task_id = self._tree.task_id
            if await self._client.find_missing_chunks(task_id, [digest]):
                await self._client.put_chunk(task_id, digest, data)
                self._uploader.sent_bytes += len(data)
            self._reader.keep_written(digest, data)
            if staged.layout.settle(segment, digest) and node.pending is not None:
                node.pending.uploaded_bytes += len(data)
        except CloudAIError as error:
            failures.append(error)
        except OSError as error:
            failures.append(InternalError(f"staged bytes cannot be read: {error.strerror}"))
        finally:
            self._uploader.chunk_slots.release_on_behalf_of(slot)

    def _note_failure(self, node: Node, pending: Pending, error: CloudAIError) -> None:
        """Says when to try again and, where patience alone will not do, tells those who wait and the log."""
        now_seconds = trio.current_time()
        if isinstance(error, MasterUnavailable):
            # noise of a jitter, not of a secret
            pause_seconds = random.uniform(0, self._retry_bound_seconds)  # noqa: S311
            self._retry_bound_seconds = min(self._retry_bound_seconds * 2, RETRY_SECONDS_MAX)
            pending.due_seconds = now_seconds + pause_seconds
            return
        if pending.failure is None or str(pending.failure) != str(error):
            logger.warning("%s: not uploaded yet: %s", self._tree.label_of(node), error)
        self._refuse(pending, error)
        self._uploader.note_progress()

    # --- commits -----------------------------------------------------------------------------------------

    async def _commit(self, nodes: Sequence[Node]) -> None:
        """One batch, or several where it is too much for one. Raises what a whole call fails with."""
        position = 0
        while position < len(nodes):
            async with self._tree.mutation_lock:
                composed: list[_Composed] = []
                inline_bytes = 0
                while position < len(nodes) and len(composed) < COMMIT_NODES_MAX:
                    item = await self._compose(nodes[position])
                    if item is not None:
                        inline_bytes += item.message.ByteSize()
                        composed.append(item)
                    position += 1
                    if inline_bytes + INLINE_BYTES_MAX > COMMIT_INLINE_BYTES_MAX:
                        break
                # Reading a file's bytes let others run: what has lost its name since is not committed.
                composed = [item for item in composed if item.node.pending is item.pending]
                if composed:
                    await self._send(composed)

    async def _compose(self, node: Node) -> _Composed | None:
        pending = node.pending
        if pending is None or not node.is_attached:
            return None
        change_count = pending.change_count
        message = names.NodeCommit(
            node_id=node.node_id, kind=node.kind, place=pending.place, attributes=node.wire_attributes()
        )
        manifest: Manifest | None = None
        staged = node.staged
        if pending.content:
            if staged is None or staged.size_bytes == 0:
                manifest = Manifest()
            elif staged.layout.is_settled:
                manifest = staged.layout.manifest()
            else:
                data = await staged.read(0, staged.size_bytes)
                if len(data) > INLINE_BYTES_MAX or node.pending is not pending:
                    return None  # grown or gone meanwhile: the next round sees to it
                manifest = Manifest([Chunk(len(data), digest_of(data))])
                message.data = data
                message.digest = manifest.chunks[0].digest
            if fingerprint(manifest) == node.committed and not pending.place:
                # Committed before the last daemon died, or written again as it was: what others have
                # written since must not be covered by it.
                message.ClearField("data")
                message.ClearField("digest")
                manifest = None
            else:
                message.size_bytes = manifest.size_bytes
                if not message.data:
                    message.manifest.CopyFrom(manifest_to_wire(manifest))
        message.symlink_target = node.symlink_target
        edge = node.edges[0] if node.edges else None
        return _Composed(node, pending, message, change_count, edge, manifest)

    async def _send(self, composed: Sequence[_Composed]) -> None:
        request = names.CommitNodesRequest(
            request_id=secrets.token_bytes(REQUEST_ID_BYTES), task_id=self._tree.task_id
        )
        for item in composed:
            item.message.path = self._tree.path_of(item.node)
            item.edge = item.node.edges[0] if item.node.edges else None
            item.message.place = item.pending.place
            item.pending.sent = True
            request.commits.append(item.message)
        response = await self._client.commit_nodes(request)
        for item, result in zip(composed, response.results, strict=True):
            if result.WhichOneof("result") == "node":
                self._take_acknowledgement(item, result.node)
            else:
                self._take_refusal(item, result.error)
        self._uploader.note_progress()

    def _take_acknowledgement(self, item: _Composed, message: types.Node) -> None:
        node, pending, staging = item.node, item.pending, self._uploader.staging
        if item.message.data:
            self._uploader.sent_bytes += len(item.message.data)
            self._reader.keep_written(item.message.digest, item.message.data)
        if node.pending is not pending:
            return  # gone here meanwhile; its removal is on the way
        if message.node_id != node.node_id:
            staging.remove_row(node.node_id)
            self._tree.take_node_id(node, message.node_id)
        if item.manifest is not None:
            node.committed = fingerprint(item.manifest)
        pending.settled_count = item.change_count
        pending.is_urgent = False
        pending.failure = None
        if node.edges and node.edges[0] == item.edge:
            pending.place = False
            pending.covered_ids = ()
        is_settled = pending.change_count == item.change_count and not pending.place
        if is_settled:
            staging.settle(node)
        node.take_server_state(message)
        if item.manifest is not None:
            self._note_content(node, item.manifest)
        if not is_settled:
            with suppress(OSError):  # a full disk: the row as it was repeats a commit, and that is harmless
                staging.record(node)

    def _note_content(self, node: Node, manifest: Manifest) -> None:
        if node.staged is not None:
            node.staged.has_only_grown = True
        node.content = FileContent(
            task_id=self._tree.task_id,
            node_id=node.node_id,
            generation=node.generation,
            manifest=manifest,
            label=self._tree.label_of(node),
        )
        # The kernel's pages are those that were written here.
        node.kernel_generation = node.generation

    def _take_refusal(self, item: _Composed, detail: types.ErrorDetail) -> None:
        if item.node.pending is not item.pending:
            return
        staged = item.node.staged
        is_missing = detail.reason == MissingChunks.reason
        if is_missing and staged is not None and staged.layout.unsettle(set(detail.missing_digests)):
            # The master lost or collected them, or never had them: made again.
            item.pending.due_seconds = -math.inf
            self.wake_at(-math.inf)
            return
        self._note_failure(item.node, item.pending, error_from_detail(detail))
        self.wake_at(item.pending.due_seconds)


class _Composed:
    """A node's commit as it was composed, and what it will settle."""

    __slots__ = ("change_count", "edge", "manifest", "message", "node", "pending")

    def __init__(
        self,
        node: Node,
        pending: Pending,
        message: names.NodeCommit,
        change_count: int,
        edge: tuple[Node, bytes] | None,
        manifest: Manifest | None,
    ) -> None:
        self.node = node
        self.pending = pending
        self.message = message
        self.change_count = change_count
        self.edge = edge
        self.manifest = manifest


def _fits_inline(node: Node) -> bool:
    staged = node.staged
    if staged is None or staged.size_bytes > INLINE_BYTES_MAX:
        return False
    # A growing file sends what is new alone, not its whole beginning each second.
    return node.writer_count == 0 or node.generation == 0


def _is_growing_slowly(node: Node) -> bool:
    staged = node.staged
    return staged is not None and staged.has_only_grown and staged.layout.changed_bytes <= PUBLISH_BYTES_MAX


def _with_unplaced_parents(node: Node) -> list[Node]:
    """The directories above that the master does not have yet, from the top, then the node."""
    line = [node]
    directory = node
    while directory.edges:
        directory = directory.edges[0][0]
        if directory.pending is not None and directory.pending.place:
            line.append(directory)
    return line[::-1]


def _with_parents(nodes: Iterable[Node]) -> list[Node]:
    """In an order in which each commit finds its directory: from the top of the tree down."""
    members = {member: None for node in nodes for member in _with_unplaced_parents(node)}

    def depth(node: Node) -> int:
        count = 0
        while node.edges:
            node = node.edges[0][0]
            count += 1
        return count

    return sorted(members, key=depth)
