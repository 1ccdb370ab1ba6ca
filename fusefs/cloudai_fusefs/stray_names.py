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
        self._anywhere: set[int] = set()

    def note(self, node_id: int, edges: Iterable[Edge]) -> None:
        """It may be under these as well."""
        self._edges.setdefault(node_id, {}).update(dict.fromkeys(edges))

    def note_anywhere(self, node_id: int) -> None:
        """Nobody knows, as of a row that an earlier version has written: any name that it has is to go."""
        self._anywhere.add(node_id)

    def forget(self, node_id: int) -> None:
        """The master has it under none of them any more, or a node has come to be that one."""
        self._edges.pop(node_id, None)
        self._anywhere.discard(node_id)

    def of(self, node_id: int) -> Sequence[Edge] | None:
        """None: anywhere."""
        return None if node_id in self._anywhere else tuple(self._edges.get(node_id, ()))

    def may_be(self, node_id: int, edge: Edge) -> bool:
        """Whether it may be under this name by a commit from here."""
        return node_id in self._anywhere or edge in self._edges.get(node_id, ())

    def to_row(self, node_id: int) -> bytes | None:
        """As in the journal."""
        edges = self.of(node_id)
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
