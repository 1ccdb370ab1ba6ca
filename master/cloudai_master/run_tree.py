"""One run's tree inside one transaction: loaded as it is needed, changed in memory, written at the end.

A batch of a thousand commits costs a handful of statements this way instead of thousands. The rules of what
may be done are those of the callers (`commits`, `rearrangements`); this module keeps the tree consistent and
logs each change.

Invariant: link_count of a node is the number of its edges; a directory has at most one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from cloudai_master import run_tree_statements as statements
from cloudai_master.authorization import Run
from cloudai_master.database import Transaction
from cloudai_master.stored_node import Node
from cloudai_model.chunks import Chunk
from cloudai_model.errors import NotADirectory, NotFound
from cloudai_model.limits import NODE_ID_MAX, NODE_ID_MIN
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755
SYMLINK_MODE: Final = 0o777

# How many values one IN (...) holds: below the 999 of an old SQLite.
SLAB: Final = 500

T = TypeVar("T")


def in_slabs(values: Iterable[T]) -> Iterator[list[T]]:
    """The values in lists of at most SLAB."""
    iterator = iter(values)
    while slab := list(islice(iterator, SLAB)):
        yield slab


def random_node_id() -> int:
    """An id for a node that the master makes."""
    return NODE_ID_MIN + secrets.randbelow(NODE_ID_MAX - NODE_ID_MIN + 1)


class RunTree:
    """The working set. Nothing is in the database before `flush`: what raises before leaves no trace."""

    def __init__(self, transaction: Transaction, run: Run) -> None:
        self.run = run
        self.revision = run.revision
        self.now_ns = transaction.now_ns
        self._transaction = transaction
        self._nodes: dict[int, Node | None] = {}
        self._edges: dict[tuple[int, bytes], int | None] = {}
        self._stored_edges: dict[tuple[int, bytes], int | None] = {}
        self._names: dict[int, set[tuple[int, bytes]]] = {}
        self._new_nodes: dict[int, Node] = {}
        self._changed_nodes: dict[int, Node] = {}
        self._new_chunks: list[dict[str, Any]] = []
        self._superseded: list[dict[str, Any]] = []
        self._log: list[names.Change] = []

    # Looking up.

    def load_nodes(self, node_ids: Iterable[int]) -> None:
        """Reads these nodes and their names at once, so that later look-ups cost no query."""
        unknown = {node_id for node_id in node_ids if node_id not in self._nodes}
        connection = self._transaction.connection
        for slab in in_slabs(unknown):
            rows = connection.execute(statements.FIND_NODES, {"run_key": self.run.run_key, "node_ids": slab})
            found = {row.node_id: Node(*row) for row in rows}
            for node_id in slab:
                self._nodes[node_id] = found.get(node_id)
                self._names[node_id] = set()
            if not found:
                continue
            named = connection.execute(
                statements.FIND_NAMES, {"run_key": self.run.run_key, "node_ids": list(found)}
            )
            for parent_id, name, node_id in named:
                place = (parent_id, name)
                # What this transaction did to an edge counts, not what is stored.
                if place not in self._edges:
                    self._edges[place] = self._stored_edges[place] = node_id
                if self._edges[place] == node_id:
                    self._names[node_id].add(place)

    def load_children(self, parent_id: int, children: Iterable[bytes]) -> None:
        """Reads what these names stand for in a directory at once, so that later look-ups cost no query."""
        unknown = {name for name in children if (parent_id, name) not in self._edges}
        for slab in in_slabs(unknown):
            found: dict[bytes, int] = {}
            # A directory made in this transaction has no stored edges.
            if parent_id not in self._new_nodes:
                rows = self._transaction.connection.execute(
                    statements.FIND_CHILDREN,
                    {"run_key": self.run.run_key, "parent_node_id": parent_id, "names": slab},
                )
                found = {row.name: row.node_id for row in rows}
            for name in slab:
                place = (parent_id, name)
                self._edges[place] = self._stored_edges[place] = found.get(name)
            self.load_nodes(found.values())

    def node(self, node_id: int) -> Node | None:
        """The node, also one that has lost its last name."""
        if node_id not in self._nodes:
            self.load_nodes([node_id])
        return self._nodes[node_id]

    def child(self, parent_id: int, name: bytes) -> Node | None:
        """What the name stands for in this directory."""
        place = (parent_id, name)
        if place not in self._edges:
            self.load_children(parent_id, [name])
        child_id = self._edges[place]
        return None if child_id is None else self.node(child_id)

    def names_of(self, node_id: int) -> frozenset[tuple[int, bytes]]:
        """The (parent id, name) of each edge to the node."""
        self.node(node_id)
        return frozenset(self._names[node_id])

    def directory(self, node_id: int) -> Node:
        """The directory with this id; raises NotFound, also for a removed one, and NotADirectory."""
        node = self.node(node_id)
        if node is None or node.link_count == 0:
            raise NotFound("directory", node_id=node_id)
        if not node.is_directory:
            raise NotADirectory(node_id=node_id)
        return node

    def is_empty(self, directory_id: int) -> bool:
        """Whether no name is left in the directory."""
        for (parent_id, _), child_id in self._edges.items():
            if parent_id == directory_id and child_id is not None:
                return False
        if directory_id in self._new_nodes:
            return True
        stored = self._transaction.connection.execute(
            statements.LIST_DIRECTORY, {"run_key": self.run.run_key, "parent_node_id": directory_id}
        ).scalars()
        # Every edge in the working set was looked at above: one that is stored and not there is a name.
        return all((directory_id, name) in self._edges for name in stored)

    def is_inside(self, directory_id: int, ancestor_id: int) -> bool:
        """Whether the ancestor is the directory itself or above it."""
        current = directory_id
        while current != ancestor_id:
            above = self.names_of(current)
            if not above:
                return False
            # A directory has one name.
            ((current, _),) = above
        return True

    # Changing. Each of these logs its changes; the caller has checked that they are allowed.

    def add_node(self, node: Node) -> None:
        """A node that was not there before; it has no name yet."""
        self._nodes[node.node_id] = node
        self._new_nodes[node.node_id] = node
        self._names[node.node_id] = set()

    def make_directory(self, parent_id: int, name: bytes) -> Node:
        """A directory with default attributes and an id of the master's."""
        node = Node(
            node_id=random_node_id(),
            kind=types.NODE_KIND_DIRECTORY,
            mode=DIRECTORY_MODE,
            uid=0,
            gid=0,
            mtime_ns=self.now_ns,
            ctime_ns=self.now_ns,
            atime_ns=self.now_ns,
        )
        self.add_node(node)
        self.set_edge(parent_id, name, node)
        return node

    def set_edge(self, parent_id: int, name: bytes, node: Node) -> None:
        """The name stands for this node now; what had it before loses it."""
        displaced = self.child(parent_id, name)
        place = (parent_id, name)
        if displaced is not None:
            self._drop_name(place, displaced)
        self._edges[place] = node.node_id
        self._names[node.node_id].add(place)
        node.link_count += 1
        revision = self._touch(node)
        edge = types.Edge(parent_node_id=parent_id, name=name, node=node.to_wire())
        self._log.append(names.Change(revision=revision, edge_set=edge))
        if displaced is not None and displaced.link_count > 0:
            self.log_node(displaced)

    def remove_edge(self, parent_id: int, name: bytes, node: Node) -> None:
        """The name, which stands for this node, is gone."""
        self._drop_name((parent_id, name), node)
        self._log_removal((parent_id, name), node)
        if node.link_count > 0 and not node.is_directory:
            self.log_node(node)

    def move_edge(self, old: tuple[int, bytes], new: tuple[int, bytes], node: Node) -> None:
        """One name of the node becomes another.

        Watchers hear of the new name first: a directory never seems to be gone with all that is in it.
        """
        self._drop_name(old, node)
        self.set_edge(*new, node)
        self._log_removal(old, node)

    def replace_content(self, node: Node, chunks: Sequence[Chunk]) -> None:
        """The file's next generation, with a manifest of its own; the one before stays readable."""
        if node.generation:
            self._superseded.append(
                {
                    "run_key": self.run.run_key,
                    "node_id": node.node_id,
                    "content_generation": node.content_generation,
                    "last_generation": node.generation,
                    "size_bytes": node.size_bytes,
                    "superseded_at_ns": self.now_ns,
                }
            )
        node.generation += 1
        node.content_generation = node.generation
        node.chunk_count = 0
        node.size_bytes = 0
        self._add_chunks(node, chunks)

    def append_content(self, node: Node, chunks: Sequence[Chunk]) -> None:
        """The file's next generation: the same manifest with these chunks added."""
        node.generation += 1
        self._add_chunks(node, chunks)

    def log_node(self, node: Node) -> None:
        """Tells watchers that the node has changed."""
        revision = self._touch(node)
        self._log.append(names.Change(revision=revision, node_changed=node.to_wire()))

    def flush(self) -> None:
        """Writes everything to the transaction's connection. The tree is not used after it."""
        connection = self._transaction.connection
        run_key = self.run.run_key
        if not self._log:
            return
        if self._new_nodes:
            connection.execute(
                statements.ADD_NODES, [_row(run_key, node) for node in self._new_nodes.values()]
            )
        if self._changed_nodes:
            connection.execute(
                statements.CHANGE_NODES,
                [
                    {"at_run_key": run_key, "at_node_id": node.node_id, **_changing_columns(node)}
                    for node in self._changed_nodes.values()
                ],
            )
        self._flush_edges()
        if self._superseded:
            connection.execute(statements.ADD_SUPERSEDED, self._superseded)
        if self._new_chunks:
            connection.execute(statements.ADD_CHUNKS, self._new_chunks)
        connection.execute(
            statements.ADD_CHANGES,
            [
                {
                    "run_key": run_key,
                    "revision": change.revision,
                    "change": change.SerializeToString(),
                    "made_at_ns": self.now_ns,
                }
                for change in self._log
            ],
        )
        connection.execute(
            statements.CHANGE_RUN,
            {
                "at_run_key": run_key,
                "revision": self.revision,
            },
        )
        self._transaction.touched_runs.add(run_key)

    def _flush_edges(self) -> None:
        run_key = self.run.run_key
        gone: list[dict[str, Any]] = []
        there: list[dict[str, Any]] = []
        for place, node_id in self._edges.items():
            stored = self._stored_edges.get(place)
            if stored == node_id:
                continue
            parent_id, name = place
            if stored is not None:
                gone.append({"at_run_key": run_key, "at_parent": parent_id, "at_name": name})
            if node_id is not None:
                there.append(
                    {"run_key": run_key, "parent_node_id": parent_id, "name": name, "node_id": node_id}
                )
        if gone:
            self._transaction.connection.execute(statements.REMOVE_EDGES, gone)
        if there:
            self._transaction.connection.execute(statements.ADD_EDGES, there)

    def _drop_name(self, place: tuple[int, bytes], node: Node) -> None:
        self._edges[place] = None
        self._names[node.node_id].discard(place)
        node.link_count -= 1
        self._mark_changed(node)

    def _log_removal(self, place: tuple[int, bytes], node: Node) -> None:
        self.revision += 1
        parent_id, name = place
        removed = names.EdgeRemoved(parent_node_id=parent_id, name=name, node_id=node.node_id)
        self._log.append(names.Change(revision=self.revision, edge_removed=removed))

    def _add_chunks(self, node: Node, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self._new_chunks.append(
                {
                    "run_key": self.run.run_key,
                    "node_id": node.node_id,
                    "content_generation": node.content_generation,
                    "chunk_index": node.chunk_count,
                    "length_bytes": chunk.length_bytes,
                    "digest": chunk.digest,
                    "generation": node.generation,
                }
            )
            node.chunk_count += 1
            node.size_bytes += chunk.length_bytes
            node.digest = chunk.digest
        if node.chunk_count != 1:
            node.digest = b""

    def _touch(self, node: Node) -> int:
        self.revision += 1
        node.revision = self.revision
        self._mark_changed(node)
        return self.revision

    def _mark_changed(self, node: Node) -> None:
        if node.node_id not in self._new_nodes:
            self._changed_nodes[node.node_id] = node


def _changing_columns(node: Node) -> dict[str, Any]:
    return {name: getattr(node, name) for name in statements.CHANGING_COLUMNS}


def _row(run_key: int, node: Node) -> dict[str, Any]:
    return {"run_key": run_key, **{name: getattr(node, name) for name in Node.__slots__}}
