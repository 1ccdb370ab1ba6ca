"""Under which names the master may have what has no name here: those for which commits from here were sent. Pure state.

Others may have given it further names, or moved it, before its removal arrives: those are theirs, and stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cloudai_fusefs.answered_names import Place
from cloudai_fusefs.node import Edge
from cloudai_proto.storage.v1 import names_pb2 as names


class StrayNames:
    """Of one run, by node id: of what has been replaced here, and what is a stray, until it is gone at the master."""

    def __init__(self) -> None:
        self._edges: dict[int, dict[Edge, None]] = {}

    def note(self, node_id: int, edges: Iterable[Edge]) -> None:
        """It may be under these as well."""
        self._edges.setdefault(node_id, {}).update(dict.fromkeys(edges))

    def forget(self, node_id: int) -> None:
        """The master has it under none of them any more, or a node has come to be that one."""
        self._edges.pop(node_id, None)

    def of(self, node_id: int) -> Sequence[Edge] | None:
        """None: nobody knows, as of a row that an earlier version has written. It is under any name then."""
        edges = self._edges.get(node_id)
        return None if edges is None else tuple(edges)

    def may_be(self, node_id: int, edge: Edge) -> bool:
        """Whether it may be under this name by a commit from here."""
        edges = self._edges.get(node_id)
        return edges is None or edge in edges

    def to_row(self, node_id: int) -> bytes | None:
        """As in the journal."""
        edges = self._edges.get(node_id)
        if edges is None:
            return None
        row = names.RemoveNodesRequest()
        for parent, name in edges:
            row.removals.add(parent_node_id=parent.node_id, name=name)
        return row.SerializeToString()


def places_of_row(row: bytes) -> set[Place]:
    """What `to_row` has written. Raises DecodeError."""
    removals = names.RemoveNodesRequest.FromString(row).removals
    return {(removal.parent_node_id, removal.name) for removal in removals}
