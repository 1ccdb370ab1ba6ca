"""The statements of RunTree, each made once: to make one anew cost as much as to carry it out.

What they take are the columns' names, `node_ids` and `names` for a slab of those, and `at_...` where the column is set
too.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, delete, insert, select, update

from cloudai_master.schema import changes, edges, manifest_chunks, nodes, runs, superseded_contents
from cloudai_master.stored_node import NODE_COLUMNS, Node

FIND_NODES: Final = select(*NODE_COLUMNS).where(
    nodes.c.run_key == bindparam("run_key"), nodes.c.node_id.in_(bindparam("node_ids", expanding=True))
)
FIND_NAMES: Final = select(edges.c.parent_node_id, edges.c.name, edges.c.node_id).where(
    edges.c.run_key == bindparam("run_key"), edges.c.node_id.in_(bindparam("node_ids", expanding=True))
)
FIND_CHILDREN: Final = select(edges.c.name, edges.c.node_id).where(
    edges.c.run_key == bindparam("run_key"),
    edges.c.parent_node_id == bindparam("parent_node_id"),
    edges.c.name.in_(bindparam("names", expanding=True)),
)
LIST_DIRECTORY: Final = select(edges.c.name).where(
    edges.c.run_key == bindparam("run_key"), edges.c.parent_node_id == bindparam("parent_node_id")
)

CHANGING_COLUMNS: Final = tuple(
    name for name in Node.__slots__ if name not in ("node_id", "kind", "symlink_target")
)
CHANGE_NODES: Final = (
    update(nodes)
    .where(nodes.c.run_key == bindparam("at_run_key"), nodes.c.node_id == bindparam("at_node_id"))
    .values({name: bindparam(name) for name in CHANGING_COLUMNS})
)
CHANGE_RUN: Final = (
    update(runs).where(runs.c.run_key == bindparam("at_run_key")).values(revision=bindparam("revision"))
)
REMOVE_EDGES: Final = delete(edges).where(
    edges.c.run_key == bindparam("at_run_key"),
    edges.c.parent_node_id == bindparam("at_parent"),
    edges.c.name == bindparam("at_name"),
)

ADD_NODES: Final = insert(nodes)
ADD_EDGES: Final = insert(edges)
ADD_CHUNKS: Final = insert(manifest_chunks)
ADD_SUPERSEDED: Final = insert(superseded_contents)
ADD_CHANGES: Final = insert(changes)
