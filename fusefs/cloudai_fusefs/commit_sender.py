"""Tells the master of one run's pending changes, in batches, and takes its answers.

A batch whose answer was lost is repeated with its own request id before anything else is sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cloudai_fusefs.commit_composer import ComposedCommit, compose_commit
from cloudai_fusefs.commit_order import find_knot, find_obstacle
from cloudai_fusefs.file_content import content_of, is_large
from cloudai_fusefs.master_client import new_request_id
from cloudai_fusefs.node import Edge, Node, Pending
from cloudai_fusefs.pending_rows import fingerprint
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.wire_errors import error_from_detail
from cloudai_model.chunks import Manifest
from cloudai_model.errors import (
    CloudAIError,
    InternalError,
    MasterUnavailable,
    MissingChunks,
    NotFound,
    NotSupported,
    Unauthenticated,
)
from cloudai_model.limits import (
    COMMIT_INLINE_BYTES_MAX,
    COMMIT_NODES_MAX,
    INLINE_BYTES_MAX,
    XATTR_BYTES_MAX,
)
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

if TYPE_CHECKING:
    from cloudai_fusefs.run_uploader import RunUploader
    from cloudai_fusefs.uploader import Uploader


class CommitSender:
    """The commits of one run, on their way. When, the RunUploader says, and its Refusals what follows a refusal."""

    def __init__(self, uploader: Uploader, run: RunUploader, tree: RunTree) -> None:
        self._uploader = uploader
        self._run = run
        self._tree = tree
        self._unanswered: tuple[names.CommitNodesRequest, Sequence[ComposedCommit]] | None = None

    @property
    def has_unanswered(self) -> bool:
        """Whether the answer of a commit was lost."""
        return self._unanswered is not None

    async def send(self, nodes: Sequence[Node]) -> None:
        """One batch, or several where it is too much for one, each with the run's mutation lock held.

        What has something in its way at the master comes in a later batch than that, once it is acknowledged: the
        master may refuse it and carry out the rest of its batch. Files that have taken one another's names come in
        one. What stays behind is put off.
        Raises what a whole call fails with, of the removals before it too. Cancelled: a batch that was sent is
        repeated first of all.
        """
        behind, has_circles = list(nodes), False
        while behind:
            still_behind = await self._send_batches(behind, together=has_circles)
            is_stuck = len(still_behind) == len(behind)
            if is_stuck and has_circles:
                break
            behind, has_circles = still_behind, is_stuck
        if (knot := find_knot(behind)) is not None:
            self._untie(knot)
        moving: set[Node] = set()  # what waits, if only by way of others, for bytes that are on their way
        for node in behind:
            obstacle = find_obstacle(node)
            if obstacle is not None:
                holder = obstacle.holder
                is_moving = holder in moving or (holder.pending is not None and holder.pending.uploading)
                if is_moving:
                    moving.add(node)
                self._run.refusals.note_behind(node, holder, is_moving=is_moving)

    def _untie(self, node: Node) -> None:
        """Gives it a name beside, for which nobody waits."""
        edge = node.first_edge
        assert edge is not None
        if node.pending is not None and node.pending.sent:
            self._tree.left_names.note(node, edge)
        self._uploader.tell_kernel(self._tree.give_way(*edge))
        with suppress(OSError):  # a full disk: the next mount finds it by the path that the row has
            self._uploader.staging.note_path(node)

    async def _send_batches(self, nodes: Sequence[Node], *, together: bool) -> list[Node]:
        """As `send`; returns those of the nodes that have something in their way. With `together` that is no file of
        those that are coming.
        """
        behind: list[Node] = []
        coming = set(nodes) if together else set()
        position = 0
        while position < len(nodes):
            async with self._tree.mutation_lock:
                await self._run.send_removals()
                composed: list[ComposedCommit] = []
                batch_bytes = 0
                while position < len(nodes) and len(composed) < COMMIT_NODES_MAX:
                    node = nodes[position]
                    position += 1
                    if find_obstacle(node, coming) is not None:
                        behind.append(node)
                        continue
                    item = await self._compose(node)
                    if item is not None:
                        batch_bytes += item.message.ByteSize()
                        composed.append(item)
                    if batch_bytes + INLINE_BYTES_MAX + XATTR_BYTES_MAX > COMMIT_INLINE_BYTES_MAX:
                        break
                # Reading a file's bytes let others run: news have taken last names, and programs have given others.
                composed = [
                    item
                    for item in composed
                    if item.is_current
                    and item.node.is_attached
                    and not self._run.refusals.waits_for_path(item.node, item.pending)
                ]
                if together:
                    coming = {item.node for item in composed}.union(nodes[position:])
                while late := [item for item in composed if find_obstacle(item.node, coming) is not None]:
                    # Again: another may be to take the name of one of these.
                    behind += [item.node for item in late]
                    coming = coming.difference(behind)
                    composed = [item for item in composed if item not in late]
                if composed:
                    request = names.CommitNodesRequest(
                        request_id=new_request_id(), task_id=self._tree.task_id
                    )
                    for item in composed:
                        if item.manifest is not None:
                            self._uploader.staging.note_content_leaves(item.node, item.manifest)
                        item.address()
                        request.commits.append(item.message)
                        item.message = request.commits[-1]  # the one it was copied from may be of 20 MiB
                    await self._send(request, composed)
        return behind

    async def send_unanswered(self) -> None:
        """Repeats the commit whose answer was lost, if there is one, with the run's mutation lock held.

        Raises what a whole call fails with.
        """
        if self._unanswered is not None:
            await self._send(*self._unanswered)

    async def _compose(self, node: Node) -> ComposedCommit | None:
        """One file whose bytes cannot be read keeps no other from being committed."""
        pending = node.pending
        try:
            item = await compose_commit(node)
        except CloudAIError as error:
            if pending is not None:
                self._run.refusals.note_node(node, pending, error)
            return None
        except OSError as error:
            if pending is not None:
                reason = InternalError(f"staged bytes cannot be read: {error.strerror}")
                self._run.refusals.note_node(node, pending, reason)
            return None
        if item is None and node.pending is not None:
            node.pending.publication = None
            node.pending.due_seconds = self._run.quiet_due_seconds(node)
            # What came along with others is put on the agenda by nobody else.
            self._run.arm(node, node.pending)
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
        placed_in_vain: list[int] = []
        for item, result in zip(composed, response.results, strict=True):
            if not item.is_current:
                is_nameless = item.node.first_edge is None
                if item.message.place and is_nameless and result.node.node_id == item.node.node_id:
                    placed_in_vain.append(item.node.node_id)
                    if item.edge is not None:
                        self._tree.stray_names.note(item.node.node_id, [item.edge])
                continue
            if result.WhichOneof("result") == "node" and item.xattrs and not result.node.HasField("xattrs"):
                # A master of an older version, which lets fall what it has not heard of. No mount with `xattr` was made
                # of it: this is what a mount of another one has left.
                self._take_refusal(item, NotSupported("the master keeps no extended attributes"))
            elif result.WhichOneof("result") == "node":
                self._take_acknowledgement(item, result, response.revision)
            else:
                self._take_refusal(item, error_from_detail(result.error))
        self._uploader.staging.note_news(self._tree)
        if placed_in_vain:
            self._note_placed_in_vain(placed_in_vain)
        self._uploader.note_progress()

    def _note_placed_in_vain(self, node_ids: Sequence[int]) -> None:
        """The nodes were removed here while their commits were under way: they must not stay where those put them.

        Where another has such a name by now, the commit of that one takes it away, and sees to the rest: a reader
        elsewhere would find neither before.
        """
        replaced_ids = {node_id for pending in self._tree.pending.values() for node_id in pending.stray_ids}
        for node_id in node_ids:
            if node_id not in replaced_ids:
                self._uploader.staging.note_stray(self._tree, node_id)

    def _take_acknowledgement(self, item: ComposedCommit, result: names.NodeResult, revision: int) -> None:
        node, pending, staging = item.node, item.pending, self._uploader.staging
        message = result.node
        if item.message.data:
            self._uploader.sent_inline_bytes += len(item.message.data)
            self._uploader.reader.keep_written(item.message.digest, item.message.data)
        if message.node_id != node.node_id:
            staging.rows.remove(node.node_id)
            self._tree.take_node_id(node, message.node_id)
        if item.manifest is not None:
            node.committed = fingerprint(item.manifest)
            if node.kernel_generation == node.view_generation:
                node.kernel_generation = message.generation  # the kernel's pages are those written here
            if node.staged is not None:
                node.staged.view_generation = message.generation
        pending.overtaken_since_seconds = math.nan
        pending.acknowledged_count = max(pending.acknowledged_count, item.change_count)
        pending.failure = None
        pending.publication = None
        if node.xattrs is item.xattrs:
            pending.xattrs = False
        # (An older master does not say that it has brought back what was removed elsewhere.)
        if (item.message.place or result.placed) and item.edge is not None:
            self._note_placed(item, item.edge, message, revision)
        if pending.stray_ids and not pending.place:
            self._note_strays(node, pending)
        is_acknowledged = pending.change_count == item.change_count and not pending.place
        if is_acknowledged:
            staging.acknowledge(node)
        node.take_server_state(message)
        self._uploader.tell_kernel(self._tree.take_held_news(node, pending, revision))
        if item.manifest is not None and node.generation == message.generation:
            self._note_content(node, item.manifest)
        if not is_acknowledged:
            self._run.arm_again(node, pending)
            with suppress(OSError):  # a full disk: the row as it was repeats a commit, and that is harmless
                staging.record(node)

    def _note_strays(self, node: Node, pending: Pending) -> None:
        """What the node has replaced here goes, wherever the master has it."""
        strays, pending.stray_ids = pending.stray_ids, ()
        for node_id in strays:
            if node_id == node.node_id:
                # A directory, and this one has become it there.
                self._uploader.staging.forget_stray(self._tree, node_id)
            else:
                self._uploader.staging.note_stray(self._tree, node_id)

    def _note_placed(self, item: ComposedCommit, edge: Edge, message: types.Node, revision: int) -> None:
        """The master has the node under the name that the commit was sent for, whatever it is called by now."""
        node, pending, answered = item.node, item.pending, self._tree.answered
        parent, name = edge
        place = (parent.node_id, name)
        answered.note_place(place, revision)
        if node.first_edge != edge:
            # Nothing has been replaced yet under the name that it was given meanwhile.
            self._tree.left_names.note(node, edge)
            return
        pending.place = False
        pending.covered_ids = ()
        left_edges = self._tree.left_names.forget(node)
        if message.link_count == node.edge_count:
            for left_parent, left_name in left_edges:
                left = (left_parent.node_id, left_name)
                if left != place:
                    answered.note_absence(left, node.node_id, revision)

    def _note_content(self, node: Node, manifest: Manifest) -> None:
        if not node.open_count and is_large(manifest):
            return
        node.content = content_of(node, manifest)

    def _take_refusal(self, item: ComposedCommit, error: CloudAIError) -> None:
        pending, staged = item.pending, item.node.staged
        if isinstance(error, MissingChunks) and staged is not None:
            pending.publication = None
            if staged.layout.note_lost(set(error.digests)):
                # The master lost or collected them, or never had them: made again.
                pending.due_seconds = -math.inf
                self._run.arm(item.node, pending)
                return
        brought_no_content = item.manifest is None and not item.message.place
        if isinstance(error, NotFound) and brought_no_content and pending.is_recovered:
            # What was staged of it had arrived before the last daemon died, and was removed elsewhere since: nothing
            # that is to be committed keeps its name.
            pending.content = False
        self._run.refusals.note_node(item.node, pending, error)
