"""Reading a run: its tree page by page, a file's manifest, and where in the run a node is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, func, select

from cloudai_master.authorization import Caller, Run, find_run
from cloudai_master.run_tree import in_slabs
from cloudai_master.schema import edges, manifest_chunks, nodes, superseded_contents
from cloudai_master.stored_node import NODE_COLUMNS, Node
from cloudai_model.errors import GenerationChanged, InvalidRequest, IsADirectory, NotFound
from cloudai_model.limits import MANIFEST_PAGE_CHUNKS_MAX, TREE_PAGE_BYTES_MAX, TREE_PAGE_EDGES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

# What the fixed fields of an edge and its node cost on the wire, for cutting pages.
EDGE_BYTES: Final = 150


@dataclass(frozen=True)
class _Position:
    """Where a listing stands: the page token, `revision.directory.name in hex`."""

    revision: int
    """Of the run when the listing began."""
    directory_id: int
    name: bytes
    """The last name of that directory that was sent."""

    def encode(self) -> str:
        return f"{self.revision}.{self.directory_id}.{self.name.hex()}"

    @staticmethod
    def decode(token: str) -> _Position:
        try:
            revision, directory_id, name = token.split(".")
            return _Position(int(revision), int(directory_id), bytes.fromhex(name))
        except ValueError:
            raise InvalidRequest("not a page token") from None


def list_tree(
    connection: Connection, caller: Caller, request: names.ListTreeRequest
) -> names.ListTreeResponse:
    """One page: the directories in order of depth, each with all its names in order of their bytes.

    The order of the directories is worked out anew for each page, from the directories alone. Raises
    GenerationChanged when one was moved or removed since the first page: the pages would not fit together.
    """
    run = find_run(connection, caller, request.task_id)
    position = _Position.decode(request.page_token) if request.page_token else None
    response = names.ListTreeResponse(revision=run.revision, sealed=run.sealed_at_ns is not None)
    levels = _directories_by_level(connection, run)
    if position is None:
        response.root.CopyFrom(_find_node(connection, run, run.root_node_id).to_wire())
    else:
        levels = _from_directory(levels, position.directory_id)
        if not levels or not run.layout_revision <= position.revision <= run.revision:
            raise GenerationChanged("directories were moved, list again", task_id=run.task_id)
        response.revision = position.revision
    page_bytes = 0
    # A slab is of one level, in the order of its ids, as the rows are: a limit cuts off the end and nothing before it.
    for slab in chain.from_iterable(in_slabs(level) for level in levels):
        of_slab: ColumnElement[bool] = edges.c.parent_node_id.in_(slab)
        if position is not None and slab[0] == position.directory_id:
            sent = and_(edges.c.parent_node_id == position.directory_id, edges.c.name <= position.name)
            of_slab = and_(of_slab, ~sent)
        row: _EdgeRow
        for row in connection.execute(
            _EDGE_QUERY.where(edges.c.run_key == run.run_key, of_slab)
            .order_by(edges.c.parent_node_id, edges.c.name)
            .limit(TREE_PAGE_EDGES_MAX - len(response.edges))
        ):
            _add_edge(response, row)
            directory_id, name, symlink_target, xattrs = row[0], row[1], row[-2], row[-1]
            page_bytes += EDGE_BYTES + len(name) + len(symlink_target) + len(xattrs or b"")
            if len(response.edges) >= TREE_PAGE_EDGES_MAX or page_bytes >= TREE_PAGE_BYTES_MAX:
                response.next_page_token = _Position(response.revision, directory_id, name).encode()
                return response
    return response


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


def _directories_by_level(connection: Connection, run: Run) -> list[list[int]]:
    """The ids of all directories, those of each depth in their own order."""
    below: dict[int, list[int]] = defaultdict(list)
    for parent_id, node_id in connection.execute(
        select(edges.c.parent_node_id, edges.c.node_id)
        .join(nodes, and_(nodes.c.run_key == edges.c.run_key, nodes.c.node_id == edges.c.node_id))
        .where(edges.c.run_key == run.run_key, nodes.c.kind == types.NODE_KIND_DIRECTORY)
    ):
        below[parent_id].append(node_id)
    levels: list[list[int]] = []
    level = [run.root_node_id]
    while level:
        levels.append(level)
        level = sorted(child for directory_id in level for child in below[directory_id])
    return levels


def _from_directory(levels: Sequence[list[int]], directory_id: int) -> list[list[int]]:
    """The levels from this directory on; none when it is in none of them."""
    for number, level in enumerate(levels):
        if directory_id in level:
            return [level[level.index(directory_id) :], *levels[number + 1 :]]
    return []


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
