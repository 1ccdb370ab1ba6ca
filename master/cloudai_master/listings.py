"""Reading a run: its tree page by page, a file's manifest, and where in the run a node is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, func, select, tuple_

from cloudai_master.authorization import Caller, Run, find_run
from cloudai_master.changes import read_run_changes
from cloudai_master.schema import edges, manifest_chunks, nodes, superseded_contents
from cloudai_master.stored_node import NODE_COLUMNS, Node
from cloudai_model.errors import GenerationChanged, InvalidRequest, IsADirectory, NotFound, NotSupported
from cloudai_model.limits import (
    MANIFEST_PAGE_CHUNKS_MAX,
    NODE_ID_MAX,
    TREE_PAGE_BYTES_MAX,
    TREE_PAGE_EDGES_MAX,
)
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

# What the fixed fields of an edge and its node cost on the wire, for cutting pages.
EDGE_BYTES: Final = 150


@dataclass(frozen=True)
class _Position:
    """Where a listing stands: the page token, `revision`, or while names are yet to be sent
    `revision.directory.name in hex`.
    """

    revision: int
    """Up to which the changes are known to who lists: the run's when the listing began, or of the last change sent."""
    last_place: tuple[int, bytes] | None = None
    """The last directory and name that were sent; None: all were."""

    def encode(self) -> str:
        if self.last_place is None:
            return f"{self.revision}"
        directory_id, name = self.last_place
        return f"{self.revision}.{directory_id}.{name.hex()}"

    @staticmethod
    def decode(token: str) -> _Position:
        try:
            revision, *place = token.split(".")
            if not place:
                return _Position(int(revision))
            directory_id, name = place
            if 0 <= int(directory_id) <= NODE_ID_MAX:  # a database takes no other
                return _Position(int(revision), (int(directory_id), bytes.fromhex(name)))
        except ValueError:
            pass
        raise InvalidRequest("not a page token")


def list_tree(
    connection: Connection, caller: Caller, request: names.ListTreeRequest
) -> names.ListTreeResponse:
    """One page: names in the order of the rows, which is none that means anything; after the last of them what has
    changed since the first page was read.

    Raises GenerationChanged when those changes are not known any more, NotSupported for a client that does not take
    them.
    """
    if not request.takes_changes:
        raise NotSupported("the mount is older than the master and takes no changes in a listing: upgrade it")
    run = find_run(connection, caller, request.task_id)
    response = names.ListTreeResponse(revision=run.revision, sealed=run.sealed_at_ns is not None)
    if request.page_token:
        position = _Position.decode(request.page_token)
    else:
        response.root.CopyFrom(_find_node(connection, run, run.root_node_id).to_wire())
        position = _Position(run.revision, (0, b""))
    if position.last_place is not None:
        last_place = _add_edges(connection, run, position.last_place, response)
        if last_place is not None:
            response.next_page_token = _Position(position.revision, last_place).encode()
            return response
    if position.revision != run.revision:
        _add_changes(connection, run, position.revision, response)
    return response


def _add_edges(
    connection: Connection, run: Run, after: tuple[int, bytes], response: names.ListTreeResponse
) -> tuple[int, bytes] | None:
    """Fills a page with the names after this place. Returns the last of them, None when it is the run's last."""
    rows = connection.execute(
        _EDGE_QUERY.where(
            edges.c.run_key == run.run_key, tuple_(edges.c.parent_node_id, edges.c.name) > after
        )
        .order_by(edges.c.parent_node_id, edges.c.name)
        .limit(TREE_PAGE_EDGES_MAX)
    )
    page_bytes = 0
    row: _EdgeRow
    for row in rows:
        _add_edge(response, row)
        directory_id, name, symlink_target, xattrs = row[0], row[1], row[-2], row[-1]
        page_bytes += EDGE_BYTES + len(name) + len(symlink_target) + len(xattrs or b"")
        if len(response.edges) >= TREE_PAGE_EDGES_MAX or page_bytes >= TREE_PAGE_BYTES_MAX:
            return directory_id, name
    return None


def _add_changes(
    connection: Connection, run: Run, after_revision: int, response: names.ListTreeResponse
) -> None:
    """Adds the next changes; the listing holds at the last of them."""
    batch = read_run_changes(connection, run.run_key, after_revision)
    if batch.reload:
        raise GenerationChanged("what has changed meanwhile is not known, list again", task_id=run.task_id)
    response.changes.extend(batch.changes)
    if batch.revision != run.revision:
        response.next_page_token = _Position(batch.revision).encode()


_EdgeRow = Sequence[Any]

_EDGE_QUERY: Final = select(
    edges.c.parent_node_id,
    edges.c.name,
    nodes.c.node_id,
    nodes.c.kind,
    nodes.c.mode,
    nodes.c.uid,
    nodes.c.gid,
    nodes.c.mtime_ns,
    nodes.c.ctime_ns,
    nodes.c.atime_ns,
    nodes.c.size_bytes,
    nodes.c.generation,
    nodes.c.link_count,
    nodes.c.revision,
    nodes.c.digest,
    nodes.c.symlink_target,
    nodes.c.xattrs,
).join(nodes, and_(nodes.c.run_key == edges.c.run_key, nodes.c.node_id == edges.c.node_id))


def _add_edge(response: names.ListTreeResponse, row: _EdgeRow) -> None:
    """Adds the edge of a row of _EDGE_QUERY. Filled in place: whole messages made and copied took twice the time."""
    edge = response.edges.add()
    node = edge.node
    attributes = node.attributes
    (
        edge.parent_node_id,
        edge.name,
        node.node_id,
        node.kind,
        attributes.mode,
        attributes.uid,
        attributes.gid,
        attributes.mtime_ns,
        attributes.ctime_ns,
        attributes.atime_ns,
        node.size_bytes,
        node.generation,
        node.link_count,
        node.revision,
        node.digest,
        node.symlink_target,
        xattrs,
    ) = row
    if xattrs is not None:
        node.xattrs.ParseFromString(xattrs)


def get_manifest(
    connection: Connection, caller: Caller, request: names.GetManifestRequest
) -> names.GetManifestResponse:
    """The manifest of one generation, from a chunk on. Raises NotFound, also for a generation never made."""
    run = find_run(connection, caller, request.task_id)
    of_generation = chunks_of_generation(connection, run, request.node_id, request.generation)
    count = connection.execute(
        select(func.count()).select_from(manifest_chunks).where(of_generation)
    ).scalar_one()
    rows = connection.execute(
        select(manifest_chunks.c.length_bytes, manifest_chunks.c.digest)
        .where(of_generation, manifest_chunks.c.chunk_index >= request.first_chunk)
        .order_by(manifest_chunks.c.chunk_index)
        .limit(MANIFEST_PAGE_CHUNKS_MAX)
    )
    return names.GetManifestResponse(
        chunks=[types.Chunk(length_bytes=length_bytes, digest=digest) for length_bytes, digest in rows],
        chunk_count=count,
    )


def find_path(connection: Connection, run: Run, node_id: int) -> str:
    """One `user/task/run/path` of the node for a log line; its id in place of a name that it lost."""
    components: list[str] = []
    while node_id != run.root_node_id:
        edge = connection.execute(
            select(edges.c.parent_node_id, edges.c.name)
            .where(edges.c.run_key == run.run_key, edges.c.node_id == node_id)
            .limit(1)
        ).first()
        if edge is None:
            components.append(f"(node {node_id})")
            break
        components.append(edge.name.decode("utf-8", "backslashreplace"))
        node_id = edge.parent_node_id
    return "/".join([run.user, run.task, run.name, *reversed(components)])


def _find_node(connection: Connection, run: Run, node_id: int) -> Node:
    row = connection.execute(
        select(*NODE_COLUMNS).where(nodes.c.run_key == run.run_key, nodes.c.node_id == node_id)
    ).first()
    if row is None:
        raise NotFound("node", node_id=node_id)
    return Node(*row)


def chunks_of_generation(
    connection: Connection, run: Run, node_id: int, generation: int
) -> ColumnElement[bool]:
    """The condition on manifest_chunks for the rows that are the file's content at this generation.

    Raises NotFound for a node that is not there or a generation never made, IsADirectory.
    """
    node = _find_node(connection, run, node_id)
    if node.kind != types.NODE_KIND_FILE:
        raise IsADirectory("only a file has content", node_id=node_id)
    content_generation: int | None = None
    if node.content_generation <= generation <= node.generation:
        content_generation = node.content_generation
    else:
        superseded = superseded_contents.c
        content_generation = connection.execute(
            select(superseded.content_generation).where(
                superseded.run_key == run.run_key,
                superseded.node_id == node_id,
                superseded.content_generation <= generation,
                superseded.last_generation >= generation,
            )
        ).scalar()
    if content_generation is None:
        raise NotFound("generation", node_id=node_id, generation=generation)
    return and_(
        manifest_chunks.c.run_key == run.run_key,
        manifest_chunks.c.node_id == node_id,
        manifest_chunks.c.content_generation == content_generation,
        manifest_chunks.c.generation <= generation,
    )
