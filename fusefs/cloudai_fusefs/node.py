"""One file, directory or symlink of a run, as this mount shows it: what the master said, overlaid with
what has been done here since.

A node keeps its inode number for as long as the mount lives, even when the master already had the directory
under another id.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudai_fusefs.answered_names import NewsOfName, Place
from cloudai_fusefs.journal_rows import DiskState
from cloudai_fusefs.wire_xattrs import NO_XATTRS, xattrs_from_wire, xattrs_to_wire
from cloudai_model.chunks import Chunk, Manifest
from cloudai_model.limits import NODE_ID_MAX, NODE_ID_MIN
from cloudai_proto.storage.v1 import types_pb2 as types

if TYPE_CHECKING:
    from cloudai_fusefs.file_content import FileContent
    from cloudai_fusefs.run_tree import RunTree
    from cloudai_fusefs.staged_file import StagedFile
    from cloudai_fusefs.waiting_removals import Removal

FILE = types.NODE_KIND_FILE
DIRECTORY = types.NODE_KIND_DIRECTORY
SYMLINK = types.NODE_KIND_SYMLINK


def new_node_id() -> int:
    """A random id for a node made here; two of 10 million nodes meet with a chance of 1 in 100,000."""
    return NODE_ID_MIN + secrets.randbelow(NODE_ID_MAX - NODE_ID_MIN + 1)


@lru_cache(1024)
def _shared(number: int) -> int:
    """An equal number that other nodes have as well, most likely: one object of 32 bytes for all of them."""
    return number


class NodeAttributes(NamedTuple):
    """What chmod, chown and utimensat change, as on the wire."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int


NO_GENERATION: Final = -1
"""Of content that the kernel was never given."""


class Publication(NamedTuple):
    """As much of an open file as is being made visible: what its writers add meanwhile comes with the next."""

    size_bytes: int
    change_count: int


class Pending:
    """What of a node the master has not acknowledged.

    `change_count` counts the node's changes; a commit that was composed at one count acknowledges the changes up
    to it and no later ones.
    """

    __slots__ = (
        "acknowledged_count",
        "agenda_seconds",
        "change_count",
        "content",
        "covered_ids",
        "disk_state",
        "due_seconds",
        "failure",
        "former_ids",
        "held_news",
        "held_state",
        "is_recovered",
        "overtaken_since_seconds",
        "place",
        "publication",
        "sent",
        "sequence",
        "stray_ids",
        "told_failure",
        "uploading",
        "wanted_count",
        "xattrs",
    )

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.change_count = 0
        self.acknowledged_count = 0
        self.place = False  # has yet to be put at its path
        self.content = False
        self.xattrs = False  # the master's are to become those here; else they are news like any other
        # What was replaced here under the node's new name, and will be at the master by the commit. A node that is
        # removed before that has to remove these: they would come back.
        self.covered_ids: tuple[int, ...] = ()
        # Nodes that this one replaced here, and of which a commit without an answer may have left a name at the
        # master, whichever: removed once this one is there.
        self.stray_ids: tuple[int, ...] = ()
        # News of its place and of its other names that came before the answer that places it: which of them are newer
        # than that, the answer tells.
        self.held_news: dict[Place, NewsOfName] = {}
        self.held_state: types.Node | None = None  # likewise of the node itself, the latest
        # Which the node had before news told that the master has the directory under another: rows may be theirs.
        self.former_ids: tuple[int, ...] = ()
        self.sent = False  # a commit with it has left: the master may know of it
        self.is_recovered = False  # left by an earlier daemon, and not written since
        self.due_seconds = math.inf  # on trio's clock; infinite: not yet given one
        self.agenda_seconds = math.nan  # the moment by which it is on its run's agenda; NaN: it is not
        self.wanted_count = 0  # somebody waits for the changes up to here: fsync, wait, umount
        self.uploading = False
        self.publication: Publication | None = None  # of a file that is open for writing
        self.failure: Exception | None = None
        self.disk_state = DiskState.UNKNOWN  # of its staged bytes, as its row says
        self.told_failure = ""  # what the log says of it already
        # Since when what others have done makes its commit impossible; NaN: nothing does.
        self.overtaken_since_seconds = math.nan

    @property
    def is_urgent(self) -> bool:
        return self.acknowledged_count < self.wanted_count

    @property
    def replaced_ids(self) -> tuple[int, ...]:
        """What the master may still have of what was replaced here."""
        return (*self.covered_ids, *self.stray_ids) if self.place else self.stray_ids

    def uncover(self, node_id: int) -> None:
        """The master does not have this node under the name any more; others may be on their way there."""
        self.covered_ids = tuple(covered_id for covered_id in self.covered_ids if covered_id != node_id)

    def want_now(self) -> None:
        """All changes up to now are due at once."""
        if self.disk_state == DiskState.MAYBE_LOST:
            return  # its failure says what is to be done
        self.wanted_count = self.change_count
        self.failure = None
        self.due_seconds = -math.inf


class Node:
    """The state of one inode inside a run, changed by its tree and by the operations."""

    __slots__ = (
        "_directory",
        "_further_edges",
        "_growths_hidden",
        "_name",
        "_shown_size_bytes",
        "atime_ns",
        "children",
        "committed",
        "content",
        "ctime_ns",
        "digest",
        "generation",
        "gid",
        "ino",
        "kernel_attributes",
        "kernel_generation",
        "kind",
        "lookup_count",
        "mode",
        "mtime_ns",
        "node_id",
        "open_count",
        "pending",
        "published_size_bytes",
        "removal",
        "revision",
        "size_bytes",
        "size_moved_elsewhere",
        "staged",
        "subdirectory_count",
        "symlink_target",
        "tree",
        "uid",
        "writer_count",
        "xattrs",
    )

    def __init__(self, tree: RunTree, node_id: int, kind: types.NodeKind) -> None:
        self.tree = tree
        self.node_id = node_id
        self.ino = node_id
        self.kind = kind
        self.mode = 0o755 if kind == DIRECTORY else 0o644
        self.uid = 0
        self.gid = 0
        self.size_bytes = 0
        self.mtime_ns = self.ctime_ns = self.atime_ns = 0
        self.published_size_bytes = 0  # of the master's generation
        self.generation = 0
        self.revision = 0
        self.symlink_target = b""
        self.digest = b""
        self.xattrs: Mapping[bytes, bytes] = NO_XATTRS  # never changed but replaced
        self.children: dict[bytes, Node] | None = {} if kind == DIRECTORY else None
        # The first of its names without a tuple around it, and no list: nearly all nodes have one, and it is a KiB
        # of memory for each that counts. None: it has no further ones.
        self._directory: Node | None = None
        self._name = b""
        self._further_edges: list[tuple[Node, bytes]] | None = None
        self.subdirectory_count = 0

        self.pending: Pending | None = None
        self.removal: Removal | None = None  # of its only name, which the master still has
        self.staged: StagedFile | None = None
        self.committed = b""  # digest of the manifest that this mount committed last, if that is known
        self.content: FileContent | None = None  # of the generation, once its manifest is known

        self.lookup_count = 0  # the kernel's references
        self.open_count = 0
        self.writer_count = 0
        self.size_moved_elsewhere = False  # since somebody opened it for writing
        self.kernel_attributes: Any = None  # kept by the kernel's edge; None: to be built again
        self.kernel_generation = NO_GENERATION  # of the content in the kernel's page cache
        self._growths_hidden = 0
        self._shown_size_bytes: int | None = None

    @property
    def view_generation(self) -> int:
        """The generation that reads show, with what is staged over it; that of the kernel's pages if kept."""
        return self.generation if self.staged is None else self.staged.view_generation

    @property
    def attributes(self) -> NodeAttributes:
        return NodeAttributes(self.mode, self.uid, self.gid, self.mtime_ns, self.ctime_ns, self.atime_ns)

    @attributes.setter
    def attributes(self, attributes: NodeAttributes) -> None:
        self.mode, self.uid, self.gid, self.mtime_ns, self.ctime_ns, self.atime_ns = attributes
        self.kernel_attributes = None

    @property
    def is_directory(self) -> bool:
        return self.children is not None

    @property
    def is_file(self) -> bool:
        return self.kind == FILE

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Its names: (directory, name), in the order in which it was given them. A directory has one, the run's root
        none.
        """
        if self._directory is None:
            return ()
        return ((self._directory, self._name), *(self._further_edges or ()))

    @property
    def first_edge(self) -> Edge | None:
        """The first of its names, which its path is made of; None: it has none."""
        return None if self._directory is None else (self._directory, self._name)

    @property
    def edge_count(self) -> int:
        """How many names it has."""
        return 0 if self._directory is None else 1 + len(self._further_edges or ())

    def add_edge(self, directory: Node, name: bytes) -> None:
        """One more name, which it does not have yet."""
        if self._directory is None:
            self._directory, self._name = directory, name
        elif self._further_edges is None:
            self._further_edges = [(directory, name)]
        else:
            self._further_edges.append((directory, name))

    def remove_edge(self, directory: Node, name: bytes) -> None:
        """Raises ValueError for a name that it does not have."""
        # In place: a file may have many thousand names, and nothing else is done here while they are gone through.
        further = self._further_edges
        if directory is not self._directory or name != self._name:
            if further is None:
                raise ValueError("the node does not have this name")
            further.remove((directory, name))
        elif further is None:
            self.clear_edges()
        else:
            self._directory, self._name = further.pop(0)
        if not further:
            self._further_edges = None

    def clear_edges(self) -> None:
        """It has no name any more."""
        self._directory, self._name, self._further_edges = None, b"", None

    @property
    def link_count(self) -> int:
        if self.children is not None:
            # Removed, it may still be open: programs tell by the count that it is gone.
            return 2 + self.subdirectory_count if self.is_attached else 0
        return self.edge_count

    @property
    def is_attached(self) -> bool:
        return self._directory is not None or (self is self.tree.root and not self.tree.is_removed)

    @property
    def is_unknown_to_master(self) -> bool:
        """Made here, and no commit with it has left yet."""
        return self.pending is not None and self.pending.place and not self.pending.sent

    @property
    def ids_at_master(self) -> tuple[int, ...]:
        """What the master may have under the node's first name: what its commit replaces, and itself."""
        covered_ids = self.pending.covered_ids if self.pending is not None else ()
        return covered_ids if self.is_unknown_to_master else (*covered_ids, self.node_id)

    @property
    def stray_ids(self) -> tuple[int, ...]:
        """What the master may have under a name that nobody here knows: after a commit without an answer the
        node may have been renamed here.
        """
        if self.pending is None:
            return ()
        is_stray = self.pending.place and self.pending.sent
        return (*self.pending.stray_ids, self.node_id) if is_stray else self.pending.stray_ids

    def touch(self, *, mtime: bool = True) -> None:
        """Content, or a directory's names, changed now; without `mtime` only the attributes did."""
        self.ctime_ns = time.time_ns()
        if mtime:
            self.mtime_ns = self.ctime_ns
        self.kernel_attributes = None

    def note_change(self, moment_ns: int) -> None:
        """Its names changed at this moment, which the master was told: news of it must not move the time again."""
        # What is pending has a time of its own, which the master will be told.
        self.ctime_ns = moment_ns if self.pending is None else max(self.ctime_ns, moment_ns)
        self.kernel_attributes = None

    def set_size(self, size_bytes: int) -> None:
        """It was changed here: the kernel knows of that already."""
        self.size_bytes = size_bytes
        self._shown_size_bytes = None
        self.kernel_attributes = None

    @property
    def kernel_size_bytes(self) -> int:
        """The size to be shown to the kernel."""
        return self.size_bytes if self._shown_size_bytes is None else self._shown_size_bytes

    def hide_growth(self, size_bytes: int) -> None:
        """The file has grown elsewhere, from this size, which is shown until the kernel has dropped its pages.

        The kernel takes a new size first and drops the pages then: who reads in between gets the zeros behind the
        old end of the last page. What is read from now on is the new content, whatever size is shown.
        """
        self._growths_hidden += 1
        if self._shown_size_bytes is None:
            self._shown_size_bytes = size_bytes
        self.kernel_attributes = None

    def show_growth(self) -> None:
        """The pages of one growth are dropped; after the last one the size is shown."""
        self._growths_hidden -= 1
        if not self._growths_hidden:
            self._shown_size_bytes = None
            self.kernel_attributes = None

    def take_server_state(self, message: types.Node) -> bool:
        """What the master says of the node, unless something newer is known here. True: something changed."""
        if message.revision < self.revision:
            return False
        is_newer = message.revision > self.revision
        self.revision = message.revision
        before = (self.generation, self.size_bytes, self.attributes)
        # A change of attributes or content made here will be committed over what came: it stays shown. So does that of
        # what has no name any more and is still open, unless somebody else has changed it too.
        if self.pending is not None:
            self.pending.held_state = message
        elif is_newer or self.is_attached:
            given = message.attributes
            self.attributes = NodeAttributes(
                given.mode, given.uid, given.gid, given.mtime_ns, given.ctime_ns, given.atime_ns
            )
        if (is_newer or self.is_attached) and (self.pending is None or not self.pending.xattrs):
            self.xattrs = xattrs_from_wire(message.xattrs) if message.HasField("xattrs") else NO_XATTRS
        if self.generation != message.generation:
            self.generation = message.generation
            self.content = None
        self.published_size_bytes = message.size_bytes
        if self.staged is None and (self.pending is None or not self.pending.content):
            self.size_moved_elsewhere |= self.writer_count > 0 and self.size_bytes != message.size_bytes
            self.size_bytes = message.size_bytes
        self.digest = message.digest
        self.symlink_target = message.symlink_target
        self.kernel_attributes = None
        return before != (self.generation, self.size_bytes, self.attributes)

    def take_first_state(self, message: types.Node) -> None:
        """What the master says of a node that is new here."""
        given = message.attributes
        self.mode = _shared(given.mode)
        self.uid = _shared(given.uid)
        self.gid = _shared(given.gid)
        self.mtime_ns = mtime_ns = given.mtime_ns
        # Of a file that was written and left alone all three are one moment, and one object then.
        self.ctime_ns = mtime_ns if given.ctime_ns == mtime_ns else given.ctime_ns
        self.atime_ns = mtime_ns if given.atime_ns == mtime_ns else given.atime_ns
        self.revision = _shared(message.revision)
        self.generation = _shared(message.generation)
        self.size_bytes = self.published_size_bytes = message.size_bytes
        self.digest = message.digest
        self.symlink_target = message.symlink_target
        if message.HasField("xattrs"):
            self.xattrs = xattrs_from_wire(message.xattrs)

    def known_manifest(self) -> Manifest | None:
        """The manifest of the master's generation where it follows from the node itself."""
        if self.published_size_bytes == 0:
            return Manifest()
        if self.digest:
            return Manifest([Chunk(self.published_size_bytes, self.digest)])
        return None

    def wire_attributes(self) -> types.Attributes:
        return types.Attributes(
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            mtime_ns=self.mtime_ns,
            ctime_ns=self.ctime_ns,
            atime_ns=self.atime_ns,
        )

    def wire_xattrs(self) -> types.Xattrs | None:
        """As of a node on the wire; None: it has none."""
        return xattrs_to_wire(self.xattrs) if self.xattrs else None


Edge = tuple[Node, bytes]
"""A directory and a name in it."""
