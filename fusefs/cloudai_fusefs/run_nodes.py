"""The nodes of one run and their names, and what of them has been changed here. Pure state: nothing here waits.

Invariant: a node is in `nodes` from the moment it is known until it has neither a name, nor anything in it, nor a
reference of the kernel, nor an open handle. In a tree that was let go of, a name alone does not keep it.

A directory may lose its name ahead of the news of what has left it: until those or a listing have come, there are nodes
with names in it, and without a path.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from cloudai_fusefs.journal_rows import DiskState
from cloudai_fusefs.left_names import LeftNames
from cloudai_fusefs.node import Edge, Node, Pending
from cloudai_fusefs.stray_names import StrayNames
from cloudai_model.errors import AlreadyExists, InternalError, NameTooLong
from cloudai_model.limits import NAME_BYTES_MAX, PATH_BYTES_MAX, PATH_DEPTH_MAX

log = logging.getLogger(__name__)


class Invalidation(NamedTuple):
    """Something that the kernel may have cached is not true any more.

    With a name: the entry of that name in the directory `ino`, and if `removed_ino` is not 0 it is gone.
    Without: the attributes of the inode; of a `grown` file its pages first, see Node.hide_growth.
    """

    ino: int
    name: bytes | None = None
    removed_ino: int = 0
    grown: Node | None = None


class RunNodes:
    """What RunTree is made of, which makes the root."""

    root: Node

    def __init__(self, register: Callable[[Node], None], unregister: Callable[[Node], None]) -> None:
        """Both are called for each node, as it becomes known and as it is let go of."""
        self.nodes: dict[int, Node] = {}
        self.pending: dict[Node, Pending] = {}
        self.left_names = LeftNames()
        self.stray_names = StrayNames()
        # News could not be applied for what is pending here, or is of what is not known: only a listing tells.
        self.is_in_doubt = False
        # Those nodes alone are left that something refers to, and what is above them: a listing brings the others back.
        self.is_let_go = False
        # What news have done that the journal's rows do not know of: directories that have another id or path, and what
        # is pending and has lost its last name.
        self.directories_with_stale_rows: set[Node] = set()
        self.nameless: set[Node] = set()
        self._register = register
        self._unregister = unregister
        self.next_sequence = 1  # of what is pending from now on

    def path_of(self, node: Node) -> bytes:
        """The node's path in the run by its first name; b"" for the root and for a node without a name."""
        components: list[bytes] = []
        while (edge := node.first_edge) is not None:
            node, name = edge
            components.append(name)
        return b"/".join(reversed(components))

    def has_path(self, node: Node) -> bool:
        """False: the node has no name, or nothing has that it is in."""
        return is_inside(node, self.root)

    def current(self, directory: Node) -> Node:
        """What the directory is by now, after anything was waited for: others may have moved it to where one was made
        here, which is both from then on.
        """
        return self.nodes.get(directory.node_id, directory)

    def check_place(self, parent: Node, name: bytes, node: Node | None = None) -> None:
        """Raises NameTooLong where a new name, or one below the node moved there, would be past the limits of
        a path.
        """
        path = self.path_of(parent) + b"/" + name if parent is not self.root else name
        below = [(node, len(path), path.count(b"/") + 1)]
        while below:
            member, size_bytes, depth = below.pop()
            if size_bytes > PATH_BYTES_MAX or depth > PATH_DEPTH_MAX:
                raise NameTooLong("the path is too long or too deep", name=name)
            if member is not None and member.children:
                below += [
                    (child, size_bytes + 1 + len(child_name), depth + 1)
                    for child_name, child in member.children.items()
                ]

    def walk(self, node: Node) -> Iterator[Node]:
        """The node and all below it, parents first."""
        stack = [node]
        while stack:
            node = stack.pop()
            yield node
            if node.children:
                stack.extend(node.children.values())

    def add(self, parent: Node, name: bytes, node: Node) -> None:
        """Gives the node a name that is free. Raises AlreadyExists."""
        assert parent.children is not None
        if name in parent.children:
            raise AlreadyExists(name=name)
        self._add_node(node)
        self._attach(parent, name, node)
        parent.touch()

    def detach(self, parent: Node, name: bytes) -> Node:
        """Takes the name away and returns the node that had it."""
        node = self._detach(parent, name)
        node.touch(mtime=False)
        parent.touch()
        return node

    def move(self, old_parent: Node, old_name: bytes, new_parent: Node, new_name: bytes) -> Node | None:
        """Renames; returns the node that had the new name, now without it."""
        node = self.detach(old_parent, old_name)
        assert new_parent.children is not None
        replaced = self.detach(new_parent, new_name) if new_name in new_parent.children else None
        self._attach(new_parent, new_name, node)
        new_parent.touch()
        return replaced

    def note_pending(self, node: Node) -> Pending:
        """The node has a change that the master must learn of."""
        pending = node.pending
        if pending is None:
            pending = node.pending = self.pending[node] = Pending(self.next_sequence)
            self.next_sequence += 1
        pending.change_count += 1
        if pending.disk_state != DiskState.MAYBE_LOST:
            pending.failure = None  # else it says what is to be done, and who waits is to be told
        return pending

    def forget_pending(self, node: Node) -> None:
        """The master knows all of it, or it need not."""
        node.pending = None
        self.pending.pop(node, None)
        self.left_names.forget(node)

    def take_node_id(self, node: Node, node_id: int) -> None:
        """The master already had this directory, under another id; the inode number stays."""
        holder = self.nodes.get(node_id)
        if self.nodes.get(node.node_id) is not node:
            return  # news that it is gone came before the answer
        if node_id == node.node_id:
            return
        if holder is not None and (holder.is_attached or holder.children):
            # It was moved there elsewhere, or lost its name ahead of what is in it, of which news are of this id.
            self.is_in_doubt = True
            return
        # The master has ours as well, under a name that it had here before.
        self.is_in_doubt |= node.revision > 0
        if node.pending is not None:
            node.pending.former_ids += (node.node_id,)
        # A directory that this one replaced may still be open: it has no name to be asked for by.
        del self.nodes[node.node_id]
        node.node_id = node_id
        self.nodes[node_id] = node
        # Those are of the directory with the former id, if the master has that. Who has them now need not wait for this
        # one, and may be above it by then, so that each would wait for the other.
        self.left_names.forget(node)
        self.directories_with_stale_rows.add(node)
        if node.pending is not None:
            node.pending.sent = True  # the master has it: who removes it here must ask

    def forget_if_unused(self, node: Node) -> bool:
        """Lets go of a node that nothing refers to any more. True: it is gone."""
        if self.is_let_go:
            self._take_unused_names(node)
        if node.is_attached or node.children or is_referred_to(node):
            return False
        self._drop_node(node)
        return True

    def let_go_of_nodes(self) -> None:
        """Lets go of all nodes but those that something refers to, which stay where they are, with what is above them.

        Each of these goes when nothing refers to it any more, until a listing has brought all of them back. What the
        kernel is shown of them does not change: a directory's link count is that of all its names.
        """
        self.is_let_go = True
        staying = {self.root}
        above = [node for node in self.nodes.values() if _must_stay(node)]
        while above:
            node = above.pop()
            if node not in staying:
                staying.add(node)
                # By each of its names, or its link count would be wrong.
                above += [parent for parent, _ in node.edges]
        for node in list(self.nodes.values()):
            if node not in staying:
                node.clear_edges()
                if node.children:
                    node.children = {}
                self._drop_node(node)
            elif node.children:
                node.children = {name: child for name, child in node.children.items() if child in staying}

    def leave_inode(self, directory: Node) -> None:
        """The kernel takes the directory's inode for removed, and will show nothing in it again, for as long as anybody
        has it open. If the directory has a name again, or has not lost it, that is an inode of another number.
        """
        if not directory.lookup_count:
            return
        left = Node(self.root.tree, directory.node_id, directory.kind)
        left.ino = directory.ino
        left.attributes = directory.attributes
        left.xattrs = directory.xattrs
        left.lookup_count, directory.lookup_count = directory.lookup_count, 0
        self._unregister(directory)
        self._register(left)
        self._register(directory)  # the number is taken
        self.forget_if_unused(directory)

    def begin_return(self) -> None:
        """All nodes that were let go of are about to be named again."""
        if self.is_let_go:
            self.is_let_go = False
            for node in self.nodes.values():
                # Counted as they come; until now it was the number of all.
                node.subdirectory_count = sum(child.is_directory for child in (node.children or {}).values())

    def forget_all_unused(self) -> None:
        """Lets go of every node that nothing refers to any more."""
        for node in list(self.nodes.values()):
            self.forget_if_unused(node)

    def pass_on_name(self, directory: Node, name: bytes, successor: Node) -> list[Invalidation]:
        """What has the name by older news loses it to another, which is yet to be given it. A directory in which
        something is yet to be committed stays beside what is none: that would come to be in the run's root.
        """
        told: list[Invalidation] = []
        node = (directory.children or {})[name]
        if node.is_directory and not successor.is_directory and stays(node):
            return self.give_way(directory, name)
        if node.is_directory and successor.is_directory:
            self._move_staying(node, successor, told)
        self._drop_edge(directory, name, told)
        return told

    def drop_names(self, node: Node, edges: Iterable[Edge] | None = None) -> None:
        """Takes its names, or these of them, from a node that the kernel has not been told of. What is to be committed
        keeps them.
        """
        for parent, name in list(node.edges if edges is None else edges):
            if not stays(node):
                self._drop_edge(parent, name, [])

    def give_way(self, directory: Node, name: bytes) -> list[Invalidation]:
        """What is staged under the name, or in a directory of that name, is to be committed beside it, where another
        needs it.
        """
        assert directory.children is not None
        node = directory.children[name]
        told: list[Invalidation] = []
        self._change_edge(directory, name, directory, self.give_name_beside(directory, name, node), told)
        return told

    def give_name_beside(self, directory: Node, name: bytes, node: Node) -> bytes:
        """A free name for the second of two staged files of one name: its commit will put it there."""
        bytes_max = min(NAME_BYTES_MAX, PATH_BYTES_MAX - len(self.path_of(directory)) - len(b"/"))
        beside = _find_free_name(directory, name, bytes_max)
        label = self.root.tree.label_of(directory)
        log.warning("%s: two files named %r are staged there: one becomes %r", label, name, beside)
        self.note_pending(node).place = True
        return beside

    # --- within, and for what the master says ------------------------------------------------------------

    def _take_unused_names(self, node: Node) -> None:
        """In a tree that was let go of: from the node, and from what is above it, where nothing needs them any more."""
        unused = [node]
        while unused:
            node = unused.pop()
            if node is self.root or node.children or _must_stay(node):
                continue
            for parent, name in node.edges:
                assert parent.children is not None
                del parent.children[name]
                unused.append(parent)
            node.clear_edges()
            self._drop_node(node)

    def _drop_node(self, node: Node) -> None:
        if self.nodes.get(node.node_id) is node:
            del self.nodes[node.node_id]
        self._unregister(node)

    def _move_staying(self, source: Node, target: Node, told: list[Invalidation]) -> None:
        """What is yet to be committed in a directory that loses its name goes where that name now leads: below no
        name it would come to be in the run's root.
        """
        self.directories_with_stale_rows.add(target)
        for name, child in list((source.children or {}).items()):
            if stays(child):
                self._move_child(source, name, target, told)

    def _merge_directory(self, target: Node, source: Node, told: list[Invalidation]) -> None:
        """A directory was moved elsewhere to where one was made here, which stays and is that one from now on."""
        assert target.children is not None
        self.directories_with_stale_rows.add(target)
        for name, child in list((source.children or {}).items()):
            is_taken = name in target.children
            self.is_in_doubt |= is_taken  # which of the two it is to be
            if not is_taken or stays(child):
                self._move_child(source, name, target, told)
        for name in list(source.children or {}):
            self._drop_edge(source, name, told)
        for parent, name in list(source.edges):
            self._drop_edge(parent, name, told)
        self.take_node_id(target, source.node_id)

    def _move_child(self, source: Node, name: bytes, target: Node, told: list[Invalidation]) -> None:
        """What has the name there goes if nothing of it is yet to be committed. Of two of which something is,
        directories become one, and a file gets a name beside.
        """
        assert source.children is not None
        assert target.children is not None
        child, other = source.children[name], target.children.get(name)
        new_name = name
        if other is not None:
            if child.is_directory and other.is_directory:
                self._move_staying(child, other, told)
                # Made or renamed here it stays as well, and below what is about to lose its name it would be in the
                # run's root.
                self.is_in_doubt |= not child.is_unknown_to_master
                self._drop_edge(source, name, told)
                return
            if not stays(other):
                self._drop_edge(target, name, told)
            elif child.is_directory:
                told += self.give_way(target, name)
            else:
                new_name = self.give_name_beside(target, name, child)
        self._change_edge(source, name, target, new_name, told)

    def _change_edge(
        self, old_parent: Node, old_name: bytes, parent: Node, name: bytes, told: list[Invalidation]
    ) -> None:
        node = self._detach(old_parent, old_name)
        self._attach(parent, name, node)
        told.append(Invalidation(parent.ino, name))
        told.append(Invalidation(old_parent.ino, old_name, node.ino))

    def _drop_edge(
        self, parent: Node, name: bytes, told: list[Invalidation], *, was_removed: bool = False
    ) -> None:
        """`was_removed`: the master says so, and did not only put something else in its place."""
        node = self._detach(parent, name)
        has_name = node.first_edge is not None
        if node.pending is not None and not has_name:
            self.nameless.add(node)
        if node.children and not has_name and not any(map(stays, node.children.values())):
            # With a name in what has none, a file that is open would be committed in the run's root.
            for child_name in list(node.children):
                self._drop_edge(node, child_name, told)
        self.is_in_doubt |= not has_name and bool(node.children)
        # (A directory that the kernel takes for removed is empty for good: not one that may be moved.)
        is_gone = not has_name and (was_removed or not node.is_directory)
        told.append(Invalidation(parent.ino, name, node.ino if is_gone else 0))
        told.append(Invalidation(parent.ino))
        if is_gone and node.is_directory:
            self.leave_inode(node)
        self.forget_if_unused(node)

    @staticmethod
    def _detach(parent: Node, name: bytes) -> Node:
        assert parent.children is not None
        node = parent.children.pop(name)
        node.remove_edge(parent, name)
        parent.subdirectory_count -= node.is_directory
        node.kernel_attributes = parent.kernel_attributes = None  # they carry the link counts
        return node

    def _attach(self, parent: Node, name: bytes, node: Node) -> None:
        assert parent.children is not None
        if node.is_directory and is_inside(parent, node):
            # Whoever looked for a path in a circle would never come back.
            raise InternalError("a directory would be inside itself", node_id=node.node_id)
        parent.children[name] = node
        node.add_edge(parent, name)
        parent.subdirectory_count += node.is_directory
        node.kernel_attributes = parent.kernel_attributes = None

    def _add_node(self, node: Node) -> None:
        if node.node_id not in self.nodes:
            self.nodes[node.node_id] = node
            self._register(node)


def _find_free_name(directory: Node, name: bytes, bytes_max: int) -> bytes:
    """The name and `.conflict-1`, or a later number; cut where that would be too long."""
    taken = directory.children or {}
    suffixes = (b".conflict-%d" % number for number in itertools.count(1))
    besides = (_cut(name, max(0, bytes_max - len(suffix))) + suffix for suffix in suffixes)
    return next(beside for beside in besides if beside not in taken)


def _cut(name: bytes, bytes_max: int) -> bytes:
    """As much of the name as this, in whole characters where it is UTF-8."""
    cut = name[:bytes_max]
    try:
        name.decode()
    except UnicodeDecodeError:
        return cut
    return cut.decode(errors="ignore").encode()


def is_referred_to(node: Node) -> bool:
    """Whether the kernel, an open handle, or a removal that waits for the master has the node."""
    return bool(node.lookup_count or node.open_count) or node.removal is not None


def _must_stay(node: Node) -> bool:
    """Of a tree that is let go of: what is referred to, and what has another number than a listing would give it."""
    return is_referred_to(node) or (node.is_attached and node.ino != node.node_id)


def is_inside(node: Node, directory: Node) -> bool:
    """Whether the node is the directory or anywhere below it."""
    while node is not directory:
        edge = node.first_edge
        if edge is None:
            return False
        node, _ = edge
    return True


def stays(node: Node) -> bool:
    """Whether a name must outlive its removal elsewhere: something below is yet to be committed here."""
    return is_uncommitted(node) or any(stays(child) for child in (node.children or {}).values())


def is_uncommitted(node: Node) -> bool:
    """Whether the node's place or content is yet to be committed here."""
    return node.pending is not None and (node.pending.place or node.pending.content)
