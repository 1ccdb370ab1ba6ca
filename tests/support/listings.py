"""A run's listing, taken by a tree that is no mount's."""

from __future__ import annotations

from collections.abc import Iterable

from cloudai_fusefs.run_nodes import Invalidation
from cloudai_fusefs.run_tree import RunTree
from cloudai_proto.storage.v1 import names_pb2 as names


def apply_tree(tree: RunTree, pages: Iterable[names.ListTreeResponse]) -> list[Invalidation]:
    """All steps at once; what the kernel is to be told."""
    told: list[Invalidation] = []
    for _ in tree.apply_tree(pages, told):
        pass
    return told
