"""In which order pending nodes are committed: each behind the directories it needs, and behind what has left its name
here and may still have it at the master. Pure state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from cloudai_fusefs.node import Edge, Node


class Obstacle(NamedTuple):
    """What a node waits for: the holder may have the name at the master that the member is to have, which is the node
    or a directory above it.
    """

    member: Node
    holder: Node


def order_for_commit(nodes: Iterable[Node]) -> list[Node]:
    """The nodes in their order, with all that the master has to be told of before each: the directories above that it
    does not have yet, and what has left a name to one of them, or to the node.
    """
    line: dict[Node, None] = {}
    # What was looked at once is in the line, or about to be where news of others may have made a circle.
    seen: set[Node] = set()
    for node in nodes:
        # No recursion: of directories that took one another's names a thousand may wait in a row.
        waiting = [node]
        while waiting:
            member = waiting[-1]
            if member in seen:
                line[waiting.pop()] = None
            else:
                seen.add(member)
                waiting += [need for need in _needed_by(member) if need not in seen]
    return list(line)


def find_obstacle(node: Node, coming: Collection[Node] = ()) -> Obstacle | None:
    """What may still have the node's name at the master, or that of a directory above which is not there yet.

    A directory that is committed there now would become that one, and what is no directory would be refused. A file
    that is there would be lost with the workstation: unless it is among those that come with the node.
    """
    left_names = node.tree.left_names
    if not left_names:
        return None
    for member, edge in _unplaced(node):
        for holder in left_names.holders(edge, member):
            # (Of two files or symlinks the later takes the name from the earlier.)
            if member.is_directory or holder.is_directory or holder not in coming:
                return Obstacle(member, holder)
    return None


def find_knot(nodes: Iterable[Node]) -> Node | None:
    """One of what would wait for ever, as of some directories each waits for the next: with another name for this one
    they do no more. No change here makes such a circle, but where others move directories one may come about.
    """
    seen: set[Node] = set()
    for node in nodes:
        line: dict[Node, Obstacle] = {}
        while node not in seen and (obstacle := find_obstacle(node)) is not None:
            seen.add(node)
            line[node] = obstacle
            node = obstacle.holder
        if node in line:
            circle = list(line)[list(line).index(node) :]
            for member, holder in map(line.__getitem__, circle):
                if member.is_directory or holder.is_directory:
                    return member
    return None


def _unplaced(node: Node) -> Iterator[tuple[Node, Edge]]:
    """Of the node and what is above it: what the master is yet to put under its name, and that name; from below."""
    while (edge := node.first_edge) is not None:
        if node.pending is not None and node.pending.place:
            yield node, edge
        node, _ = edge


def _needed_by(node: Node) -> list[Node]:
    """What has to be committed before the node, and may need more itself; what is to come first is the last of it."""
    needed: list[Node] = []
    for member, edge in _unplaced(node):
        if member is not node:
            return [*needed, member]
        needed += node.tree.left_names.holders(edge, node)
    return needed
