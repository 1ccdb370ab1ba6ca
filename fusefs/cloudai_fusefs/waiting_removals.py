"""Names of one run that were removed here and that the master still has, until it answers. Pure state.

News of such a name are held back: they may be older than the removal or newer, which the revision of the answer
tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cloudai_fusefs.answered_names import NewsOfName, Place
from cloudai_fusefs.node import Node
from cloudai_model.errors import CloudAIError
from cloudai_proto.storage.v1 import types_pb2 as types


class Removal:
    """One name, which was the node's only one."""

    def __init__(self, directory: Node, name: bytes, node: Node, removed_at_ns: int) -> None:
        """Of the node as it is now."""
        self.node = node
        self.removed_at_ns = removed_at_ns
        self.edge = types.Edge(
            parent_node_id=directory.node_id,
            name=name,
            node=types.Node(
                node_id=node.node_id,
                kind=node.kind,
                attributes=node.wire_attributes(),
                size_bytes=node.published_size_bytes,
                generation=node.generation,
                symlink_target=node.symlink_target,
                digest=node.digest,
                revision=node.revision,
                xattrs=node.wire_xattrs(),
            ),
        )
        """As it was, to be shown again should the master refuse."""
        self.news: NewsOfName | None = None
        self.failure: CloudAIError | None = None
        """Why it was taken back."""

    @property
    def place(self) -> Place:
        """The directory's id and the name."""
        return self.edge.parent_node_id, self.edge.name

    @property
    def label(self) -> str:
        """Its path below the mount point, for people."""
        parent_id, name = self.place
        tree = self.node.tree
        return (
            f"{tree.label_of(tree.nodes.get(parent_id, tree.root))}/{name.decode(errors='surrogateescape')}"
        )

    @property
    def is_waiting(self) -> bool:
        """False: it was answered, or taken back."""
        return self.node.removal is self

    def hold_back(self, news: NewsOfName) -> None:
        """The latest news of the name count, in the end."""
        if self.news is None or news.revision >= self.news.revision:
            self.news = news


REFUSALS_MAX: Final = 1000
"""Directories. Of more, those that were refused first are forgotten: the log has them."""


class WaitingRemovals:
    """The removals of one run in their order. At most one of each node, and of each name."""

    def __init__(self) -> None:
        self.failure: CloudAIError | None = None
        """Why they wait, where patience alone may not do."""
        self._by_place: dict[Place, Removal] = {}
        self._refusals: dict[int, CloudAIError] = {}  # by directory, until somebody is told

    def __len__(self) -> int:
        return len(self._by_place)

    def __iter__(self) -> Iterator[Removal]:
        return iter(self._by_place.values())

    def at(self, parent_node_id: int, name: bytes) -> Removal | None:
        """The removal of this name, that waits."""
        return self._by_place.get((parent_node_id, name))

    def add(self, removal: Removal) -> None:
        assert removal.place not in self._by_place
        assert removal.node.removal is None
        removal.node.removal = removal
        self._by_place[removal.place] = removal

    def end(self, removal: Removal) -> None:
        """It does not wait any more."""
        del self._by_place[removal.place]
        removal.node.removal = None

    def note_refused(self, removal: Removal, failure: CloudAIError) -> None:
        """The master refused it for good: its directory's next fsync tells so."""
        removal.failure = failure
        self._refusals[removal.edge.parent_node_id] = failure
        if len(self._refusals) > REFUSALS_MAX:
            del self._refusals[next(iter(self._refusals))]

    def take_refusal(self, directory_id: int) -> CloudAIError | None:
        """Why a removal from the directory was refused since this was last asked."""
        return self._refusals.pop(directory_id, None)

    def forget_news(self) -> None:
        """What was known is of another history."""
        for removal in self:
            removal.news = None
