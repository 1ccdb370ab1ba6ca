"""A node as the database has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloudai_master.schema import nodes
from cloudai_proto.storage.v1 import types_pb2 as types


@dataclass(slots=True)
class Node:
    """A row of nodes, without the run's key; the schema's comments say what the fields mean."""

    node_id: int
    kind: types.NodeKind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    size_bytes: int = 0
    generation: int = 0
    content_generation: int = 0
    chunk_count: int = 0
    digest: bytes = b""
    symlink_target: bytes = b""
    link_count: int = 0
    revision: int = 0
    xattrs: bytes | None = None

    @property
    def is_directory(self) -> bool:
        return self.kind == types.NODE_KIND_DIRECTORY

    def take(self, attributes: types.Attributes) -> None:
        self.mode = attributes.mode
        self.uid = attributes.uid
        self.gid = attributes.gid
        self.mtime_ns = attributes.mtime_ns
        self.ctime_ns = attributes.ctime_ns
        self.atime_ns = attributes.atime_ns

    def attributes(self) -> types.Attributes:
        return types.Attributes(
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            mtime_ns=self.mtime_ns,
            ctime_ns=self.ctime_ns,
            atime_ns=self.atime_ns,
        )

    def to_wire(self) -> types.Node:
        message = types.Node(
            node_id=self.node_id,
            kind=self.kind,
            attributes=self.attributes(),
            size_bytes=self.size_bytes,
            generation=self.generation,
            link_count=self.link_count,
            symlink_target=self.symlink_target,
            digest=self.digest,
            revision=self.revision,
        )
        if self.xattrs is not None:
            message.xattrs.ParseFromString(self.xattrs)
        return message


NODE_COLUMNS: Final = tuple(nodes.c[name] for name in Node.__slots__)
"""The columns of Node, in its order: `Node(*row)`."""
