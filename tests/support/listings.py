"""A run's listing, as it is and as a tree that is no mount's takes it."""

from __future__ import annotations

from collections.abc import Sequence

from cloudai_fusefs.listing import Listing
from cloudai_fusefs.run_nodes import Invalidation
from cloudai_fusefs.run_tree import RunTree
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types


def edges_of(listing: Listing) -> list[types.Edge]:
    """Each after that of its directory."""
    for _ in listing.arrange():
        pass
    return list(listing.edges())


def apply_tree(tree: RunTree, pages: Sequence[names.ListTreeResponse]) -> list[Invalidation]:
    """All steps at once; what the kernel is to be told."""
    told: list[Invalidation] = []
    for _ in tree.apply_tree(Listing(pages), told):
        pass
    return told
