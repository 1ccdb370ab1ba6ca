"""Names that were given up here by nodes that the master may still have under them. Pure state.

A node that is renamed before the master has answered its commit has two names for a while, until its next commit: that
here, and that at the master.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloudai_fusefs.node import Edge, Node


class LeftNames:
    """Of one run. What was left here and is not at the master any more may be among them until the next commit.

    Invariant: what has left a name is pending. Who waits until it is acknowledged would wait for nothing else.
    """

    def __init__(self) -> None:
        # Under one name the master may have any of several: which of their commits arrived there is not known.
        self._nodes: dict[Edge, list[Node]] = {}
        self._edges: dict[Node, dict[Edge, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._edges)

    def note(self, node: Node, edge: Edge) -> None:
        """The node does not have the name here any more; the master may still have it there."""
        assert node.pending is not None
        edges = self._edges.setdefault(node, {})
        if edge not in edges:
            edges[edge] = None
            self._nodes.setdefault(edge, []).append(node)

    def forget(self, node: Node) -> Sequence[Edge]:
        """The master has the node where it is here, or not at all. Returns where it may have been."""
        edges = tuple(self._edges.pop(node, ()))
        for edge in edges:
            nodes = self._nodes[edge]
            nodes.remove(node)
            if not nodes:
                del self._nodes[edge]
        return edges

    def of(self, node: Node) -> Sequence[Edge]:
        """Where else the master may have the node, or what it has replaced."""
        return tuple(self._edges.get(node, ()))

    def pass_on(self, node: Node, successor: Node) -> None:
        """The node has been replaced here: it goes at the master once its successor is there."""
        for edge in self.forget(node):
            self.note(successor, edge)

    def is_of_replaced(self, edge: Edge, node_id: int) -> bool:
        """Whether the node has been replaced here after it had left the name, and goes with its successor's commit."""
        return any(
            holder.pending is not None and node_id in holder.pending.stray_ids
            for holder in self._nodes.get(edge, ())
        )

    def inside(self, directory: Node) -> list[Node]:
        """What has left names in the directory."""
        if not directory.is_directory:
            return []  # asked of each file that is replaced or removed, and all names would be gone through
        return [
            node for node, edges in self._edges.items() if any(parent is directory for parent, _ in edges)
        ]

    def holders(self, edge: Edge, node: Node | None) -> list[Node]:
        """Who may have the name at the master, other than the node that is to have it. None: a further name for a node,
        which is not to be there under that name itself.
        """
        return [
            holder
            for holder in self._nodes.get(edge, ())
            if holder is not node and holder.is_attached and edge not in holder.edges
        ]
