"""In which order pending nodes are committed: each behind the directories it needs, and behind what has left its name
here and may still have it at the master. Pure state.
"""

from __future__ import annotations

from collections.abc import Iterable

from cloudai_fusefs.node import Edge, Node


def nodes_before(node: Node) -> list[Node]:
    """What the master has to be told of before the node, from the first; then the node.

    That is the directories above that it does not have yet, and what has left a name to one of them, or to the node.
    """
    line: list[Node] = []
    _add_line(node, line, set())
    return line


def order_for_commit(nodes: Iterable[Node]) -> list[Node]:
    """The nodes in their order, with all that each needs before it."""
    return list({member: None for node in nodes for member in nodes_before(node)})


def find_in_the_way(node: Node) -> Node | None:
    """What may still have the node's name at the master, or that of a directory above which is not there yet.

    A directory that is committed there now would become that one, and what is no directory would be refused.
    """
    left_names = node.tree.left_names
    if not left_names:
        return None
    for member, edge in _unplaced(node):
        holder = left_names.in_the_way(edge, member)
        if holder is not None:
            return holder
    return None


def _unplaced(node: Node) -> list[tuple[Node, Edge]]:
    """Of the node and what is above it: what the master is yet to put under its name, and that name; from below."""
    found: list[tuple[Node, Edge]] = []
    member = node
    while (edge := member.first_edge) is not None:
        if member.pending is not None and member.pending.place:
            found.append((member, edge))
        member, _ = edge
    return found


def _add_line(node: Node, line: list[Node], seen: set[Node]) -> None:
    """`seen` ends what news of others may have made a circle."""
    for member, edge in reversed(_unplaced(node)):
        holder = node.tree.left_names.in_the_way(edge, member)
        if holder is not None and holder not in seen:
            seen.add(holder)
            _add_line(holder, line, seen)
        if member is not node and member not in line:
            line.append(member)
    if node not in line:
        line.append(node)
