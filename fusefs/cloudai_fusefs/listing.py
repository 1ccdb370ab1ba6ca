"""A run's whole tree as the master listed it, put together from its pages. Pure state, no I/O.

The pages were read one after the other while the run changed; the changes that came with the last of them make the
whole exact at one revision. Names come in no order: a directory may come after what is in it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Final

from cloudai_fusefs.answered_names import Place
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

ARRANGED_IN_A_STEP: Final = 4096
"""Names: two milliseconds or so."""


class Listing:
    """All pages of a run's tree together. `arrange` is to be run through before `edges`, and both once."""

    def __init__(self, pages: Sequence[names.ListTreeResponse]) -> None:
        self._pages = pages
        self._changed_nodes: dict[int, types.Node] = {}  # as the last change that tells of them left them
        self._changed_places: dict[Place, types.Edge | None] = {}  # None: without a name
        self._edges_in: dict[int, list[types.Edge]] = defaultdict(list)  # by the directory's id
        self.is_outdated = False
        """The run was sealed or removed between two pages: it is another one than the first page says."""
        for change in (change for page in pages for change in page.changes):
            match change.WhichOneof("change"):
                case "edge_set":
                    edge = change.edge_set
                    self._changed_places[edge.parent_node_id, edge.name] = edge
                    self._changed_nodes[edge.node.node_id] = edge.node
                case "edge_removed":
                    removed = change.edge_removed
                    self._changed_places[removed.parent_node_id, removed.name] = None
                case "node_changed":
                    self._changed_nodes[change.node_changed.node_id] = change.node_changed
                case "run_changed":
                    self.is_outdated = True
                case _:
                    pass  # a kind of change that this version does not know

    @property
    def pages(self) -> Sequence[names.ListTreeResponse]:
        return self._pages

    @property
    def revision(self) -> int:
        """The run's, at which the whole is exact."""
        return self._pages[-1].revision

    @property
    def is_sealed(self) -> bool:
        """Whether the run was sealed before it was listed: the tree will never be another."""
        return all(page.sealed for page in self._pages)

    @property
    def root(self) -> types.Node:
        return self._newest(self._pages[0].root)

    def arrange(self) -> Iterator[None]:
        """Finds out what is in each directory, in steps after each of which others may have a turn."""
        count = 0
        for page in self._pages:
            for edge in page.edges:
                directory_id = edge.parent_node_id
                if not self._changed_places or (directory_id, edge.name) not in self._changed_places:
                    self._edges_in[directory_id].append(edge)
                count += 1
                if count % ARRANGED_IN_A_STEP == 0:
                    yield
        for (directory_id, _), changed in self._changed_places.items():
            if changed is not None:
                self._edges_in[directory_id].append(changed)

    def edges(self) -> Iterator[types.Edge]:
        """Each name below the root, after that of its directory. What hangs in the air is left out: it is no tree."""
        directory_ids = deque([self._pages[0].root.node_id])
        while directory_ids:
            # (Taken out: a directory in two places would be gone through twice, one in itself for ever.)
            for edge in self._edges_in.pop(directory_ids.popleft(), ()):
                listed = edge.node
                node = self._newest(listed)
                if node.kind == types.NODE_KIND_DIRECTORY:
                    directory_ids.append(node.node_id)
                if node is listed:
                    yield edge
                else:
                    yield types.Edge(parent_node_id=edge.parent_node_id, name=edge.name, node=node)

    def _newest(self, node: types.Node) -> types.Node:
        if self._changed_nodes:
            changed = self._changed_nodes.get(node.node_id)
            if changed is not None and changed.revision > node.revision:
                return changed
        return node
