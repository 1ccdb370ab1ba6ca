"""Composes the commit of one pending node: what the master is to be told, and what its answer will acknowledge.

A commit reads the node's `change_count` before its attributes and bytes: what it acknowledges, it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloudai_fusefs.node import Edge, Node, Pending
from cloudai_fusefs.pending_rows import fingerprint
from cloudai_fusefs.wire_manifests import encode_manifest
from cloudai_fusefs.wire_xattrs import xattrs_to_wire
from cloudai_model.chunks import Chunk, Manifest, digest_of
from cloudai_model.limits import INLINE_BYTES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names


@dataclass(eq=False)
class ComposedCommit:
    """One entry of a batch."""

    node: Node
    pending: Pending
    message: names.NodeCommit
    change_count: int
    """The node's changes up to here are in it."""
    manifest: Manifest | None
    """Of the content that it brings; None: it brings none."""
    xattrs: Mapping[bytes, bytes] | None
    """The extended attributes that it brings; None: it brings none."""
    edge: Edge | None = None
    """The name it was sent for."""

    @property
    def is_current(self) -> bool:
        """Whether the node still waits for it: it may have lost its last name since."""
        return self.node.pending is self.pending

    def address(self) -> None:
        """Fills in the name as it is now. With no await before the sending."""
        self.message.path = self.node.tree.path_of(self.node)
        self.message.place = self.pending.place
        self.edge = self.node.first_edge
        self.pending.sent = True


async def compose_commit(node: Node) -> ComposedCommit | None:
    """The node's commit; None when it has nothing to commit, or not yet.

    Raises what reading staged bytes over a base does, OSError of the state disk among it.
    """
    pending = node.pending
    if pending is None or not node.is_attached:
        return None
    change_count = pending.change_count
    message = names.NodeCommit(
        node_id=node.node_id, kind=node.kind, place=pending.place, attributes=node.wire_attributes()
    )
    message.symlink_target = node.symlink_target
    xattrs = None
    if pending.xattrs:
        xattrs = node.xattrs
        message.xattrs.CopyFrom(xattrs_to_wire(xattrs))
        message.xattrs.SetInParent()  # none is something else than not a word of them
    if not pending.content:
        return ComposedCommit(node, pending, message, change_count, None, xattrs)
    publication = pending.publication
    if publication is not None:
        change_count = publication.change_count
    manifest, data = await _content_of(node, pending)
    if manifest is None:
        return None  # it has changed meanwhile: the next round sees to it
    if pending.is_recovered and not pending.place and fingerprint(manifest) == node.committed:
        # Committed before the last daemon died, and not written since: what others have written
        # meanwhile must not be covered by it.
        return ComposedCommit(node, pending, message, change_count, None, xattrs)
    message.size_bytes = manifest.size_bytes
    if data:
        message.data = data
        message.digest = manifest.chunks[0].digest
    else:
        message.manifest.SetInParent()  # an empty one is a content too
        message.manifest.MergeFromString(encode_manifest(manifest))
    return ComposedCommit(node, pending, message, change_count, manifest, xattrs)


async def _content_of(node: Node, pending: Pending) -> tuple[Manifest | None, bytes]:
    """The content to commit, and its bytes where they travel along; no manifest when it is not ready.

    It was ready when the round began. Waiting for the run's lock let writers run.
    """
    staged = node.staged
    if staged is None or staged.size_bytes == 0:
        return Manifest(), b""
    if pending.publication is not None:
        size_bytes = min(pending.publication.size_bytes, staged.size_bytes)
        if any(segment.start_bytes < size_bytes for segment in staged.layout.changed_segments()):
            return None, b""
        return staged.layout.manifest_up_to(size_bytes), b""
    if staged.layout.is_stored:
        return staged.layout.manifest(), b""
    if staged.size_bytes > INLINE_BYTES_MAX:
        return None, b""
    data = await staged.read(0, staged.size_bytes)
    if not data or len(data) > INLINE_BYTES_MAX or node.pending is not pending:
        return None, b""
    return Manifest([Chunk(len(data), digest_of(data))]), data


def fits_inline(node: Node) -> bool:
    """Whether the whole content travels in the commit.

    Of a growing file only what is new is sent, not its beginning each second: a chunk of its own from the first one on,
    unless somebody waits for it, who would wait for three calls instead of one.
    """
    staged, pending = node.staged, node.pending
    if staged is None or staged.size_bytes > INLINE_BYTES_MAX:
        return False
    if node.writer_count == 0:
        return True
    is_log = staged.has_only_grown and not (pending is not None and pending.is_urgent)
    return node.generation == 0 and not is_log
