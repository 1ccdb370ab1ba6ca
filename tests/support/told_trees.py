"""A tree without a mount, as the master's listings and news tell of it."""

from __future__ import annotations

from typing import Final

from cloudai_fusefs.managed_tree import ManagedTree
from cloudai_fusefs.node import DIRECTORY, FILE
from cloudai_fusefs.run_tree import RunTree
from cloudai_model.limits import NODE_ID_MIN
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.listings import apply_tree

ROOT_ID: Final = NODE_ID_MIN


def make_tree(*edges: types.Edge) -> RunTree:
    run = types.Run(user="user-123", task="training", name="2026-11-20_15-04-05", task_id="t")
    run.root_node_id = ROOT_ID
    managed = ManagedTree()
    tree = RunTree(run, managed.register, managed.forget_inode)
    apply_tree(tree, [listing(1, *edges)])
    return tree


def edge(
    parent_id: int, name: bytes, node_id: int, kind: types.NodeKind = FILE, *, revision: int = 1
) -> types.Edge:
    node = types.Node(node_id=node_id, kind=kind, revision=revision, generation=1, link_count=1)
    return types.Edge(parent_node_id=parent_id, name=name, node=node)


def listing(revision: int, *edges: types.Edge) -> names.ListTreeResponse:
    root = types.Node(node_id=ROOT_ID, kind=DIRECTORY, revision=1)
    return names.ListTreeResponse(root=root, edges=edges, revision=revision)
