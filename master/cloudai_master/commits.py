"""CommitNodes and AppendFile: what makes content the content of a name.

A batch is one transaction; each commit is checked whole before its first change, so that one which fails
leaves no trace and the others stand. The rules of `place` are those of the .proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from sqlalchemy import select

from cloudai_master.attributes import check_attributes, check_xattrs, complete_attributes
from cloudai_master.authorization import Caller, Run, find_open_run
from cloudai_master.chunk_ownership import require_stored, stored_lengths
from cloudai_master.database import Transaction
from cloudai_master.run_tree import DIRECTORY_MODE, FILE_MODE, SYMLINK_MODE, RunTree
from cloudai_master.schema import manifest_chunks
from cloudai_master.statuses import to_detail
from cloudai_master.stored_node import Node
from cloudai_model.chunks import Chunk, Manifest, digest_of
from cloudai_model.errors import (
    AlreadyExists,
    CloudAIError,
    DigestMismatch,
    FileTooLarge,
    GenerationChanged,
    InvalidRequest,
    IsADirectory,
    NotADirectory,
    NotFound,
    SizeMismatch,
)
from cloudai_model.limits import (
    COMMIT_INLINE_BYTES_MAX,
    COMMIT_NODES_MAX,
    FILE_CHUNKS_MAX,
    INLINE_BYTES_MAX,
    NODE_ID_MAX,
)
from cloudai_model.names import check_node_id, check_symlink_target, split_path
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

KINDS: Final = (types.NODE_KIND_FILE, types.NODE_KIND_DIRECTORY, types.NODE_KIND_SYMLINK)
NEW_NODE_MODE: Final = {
    types.NODE_KIND_FILE: FILE_MODE,
    types.NODE_KIND_DIRECTORY: DIRECTORY_MODE,
    types.NODE_KIND_SYMLINK: SYMLINK_MODE,
}


def check_batch(request: names.CommitNodesRequest) -> None:
    """Raises InvalidRequest for a batch over the limits of the wire."""
    if len(request.commits) > COMMIT_NODES_MAX:
        raise InvalidRequest("too many commits in one call", count=len(request.commits))
    inline_bytes = sum(len(commit.data) + commit.xattrs.ByteSize() for commit in request.commits)
    if inline_bytes > COMMIT_INLINE_BYTES_MAX:
        raise InvalidRequest("too many bytes of data in one call", size_bytes=inline_bytes)


def inline_chunks(request: names.CommitNodesRequest) -> dict[bytes, bytes]:
    """The data of the batch by digest, to be stored first; without what the commits will be refused for."""
    return {
        commit.digest: commit.data
        for commit in request.commits
        if commit.WhichOneof("content") == "data"
        and 0 < len(commit.data) <= INLINE_BYTES_MAX
        and digest_of(commit.data) == commit.digest
    }


def commit_nodes(
    transaction: Transaction,
    caller: Caller,
    request: names.CommitNodesRequest,
    inline_lengths: Mapping[bytes, int],
) -> names.CommitNodesResponse:
    """A result for each commit, in order. `inline_lengths`: of the chunks of inline data, which are stored by now."""
    run = find_open_run(transaction.connection, caller, request.task_id)
    tree = RunTree(transaction, run)
    # An id out of range is refused with its commit.
    tree.load_nodes(commit.node_id for commit in request.commits if commit.node_id <= NODE_ID_MAX)
    others = (digest for digest in _digests(request) if digest not in inline_lengths)
    stored = {**inline_lengths, **stored_lengths(transaction.connection, run.user_key, others)}
    batch = _Batch(transaction, run, tree, stored, _names_by_directory(request))
    response = names.CommitNodesResponse()
    for commit in request.commits:
        try:
            node, placed = batch.carry_out(commit)
            response.results.add(node=node.to_wire(), placed=placed)
        except CloudAIError as error:
            response.results.add(error=to_detail(error))
    tree.flush()
    response.revision = tree.revision
    return response


def has_effect(response: names.CommitNodesResponse) -> bool:
    """Whether any commit of the batch was carried out. If none was, repeating the request is a new try."""
    return any(result.HasField("node") for result in response.results)


def append_file(
    transaction: Transaction, caller: Caller, request: names.AppendFileRequest
) -> names.AppendFileResponse:
    """Raises GenerationChanged, MissingChunks, SizeMismatch, IsADirectory, FileTooLarge."""
    run = find_open_run(transaction.connection, caller, request.task_id)
    tree = RunTree(transaction, run)
    node = tree.node(request.node_id)
    if node is None:
        raise NotFound("node", node_id=request.node_id)
    if node.kind != types.NODE_KIND_FILE:
        raise IsADirectory("chunks are appended to files", node_id=request.node_id)
    if node.generation != request.expected_generation:
        raise GenerationChanged(expected=request.expected_generation, current=node.generation)
    added = Manifest(Chunk(chunk.length_bytes, chunk.digest) for chunk in request.chunks)
    if not added.chunks:
        raise InvalidRequest("there are no chunks to append")
    if node.chunk_count + len(added.chunks) > FILE_CHUNKS_MAX:
        raise FileTooLarge(chunk_count=node.chunk_count + len(added.chunks))
    if request.size_bytes != node.size_bytes + added.size_bytes:
        raise SizeMismatch(size_bytes=request.size_bytes, sum_bytes=node.size_bytes + added.size_bytes)
    digests = [chunk.digest for chunk in added.chunks]
    require_stored(stored_lengths(transaction.connection, run.user_key, digests), added.chunks)
    if request.HasField("attributes"):
        check_attributes(request.attributes)
        node.take(request.attributes)
    tree.append_content(node, added.chunks)
    tree.log_node(node)
    tree.flush()
    return names.AppendFileResponse(node=node.to_wire(), revision=tree.revision)


def _names_by_directory(request: names.CommitNodesRequest) -> dict[bytes, list[bytes]]:
    """The names that the batch speaks of, by the path of their directory."""
    found: dict[bytes, list[bytes]] = {}
    for commit in request.commits:
        directory, _, name = commit.path.rpartition(b"/")
        found.setdefault(directory, []).append(name)
    return found


def _digests(request: names.CommitNodesRequest) -> Iterator[bytes]:
    for commit in request.commits:
        if commit.WhichOneof("content") == "data":
            yield commit.digest
        for chunk in commit.manifest.chunks:
            yield chunk.digest


class _Batch:
    """The commits of one call, against the tree as the earlier ones left it."""

    def __init__(
        self,
        transaction: Transaction,
        run: Run,
        tree: RunTree,
        stored: Mapping[bytes, int],
        names_by_directory: dict[bytes, list[bytes]],
    ) -> None:
        self._connection = transaction.connection
        self._run = run
        self._tree = tree
        self._stored = stored
        self._unloaded_names = names_by_directory
        self._contents: dict[int, tuple[Chunk, ...]] = {}
        """Contents given by this batch, by node id: not in the database yet."""

    def carry_out(self, commit: names.NodeCommit) -> tuple[Node, bool]:
        """The node afterwards, and whether it was put at the commit's path. Raises before the first change."""
        check_node_id(commit.node_id)
        if commit.kind not in KINDS:
            raise InvalidRequest("a node has a kind", kind=commit.kind)
        if commit.HasField("attributes"):
            check_attributes(commit.attributes)
        if commit.HasField("xattrs"):
            if commit.kind == types.NODE_KIND_SYMLINK:
                raise InvalidRequest("a symlink has no extended attributes", node_id=commit.node_id)
            check_xattrs(commit.xattrs)
        content = self._content_of(commit)
        node = self._tree.node(commit.node_id)
        if node is not None and node.kind != commit.kind:
            raise InvalidRequest("the node id stands for another kind", node_id=commit.node_id)
        if commit.node_id == self._run.root_node_id:
            if commit.place:
                raise InvalidRequest("a run's root has no name in it", node_id=commit.node_id)
        elif not commit.place and (node is None or _brings_nothing_back(node, content)):
            raise NotFound("node", node_id=commit.node_id)
        elif commit.place or (node is not None and node.link_count == 0):
            return self._place(commit, node, content), True
        assert node is not None
        if self._change(node, commit, content):
            self._tree.log_node(node)
        return node, False

    def _place(self, commit: names.NodeCommit, node: Node | None, content: tuple[Chunk, ...] | None) -> Node:
        components = split_path(commit.path)
        tree = self._tree
        parent_id, missing = self._walk(components[:-1])
        name = components[-1]
        if not missing:
            tree.load_children(parent_id, self._unloaded_names.pop(b"/".join(components[:-1]), ()))
        target = None if missing else tree.child(parent_id, name)
        if target is not None and target.node_id != commit.node_id and target.is_directory:
            if commit.kind != types.NODE_KIND_DIRECTORY:
                raise IsADirectory(path=commit.path[:80])
            # One that an earlier commit of its maker has put elsewhere was renamed over an empty one. Else both sides
            # made the same directory: the one that was first stays.
            is_renamed = commit.place and node is not None and node.link_count > 0
            if not is_renamed or not tree.is_empty(target.node_id):
                if self._change(target, commit, None):
                    tree.log_node(target)
                return target
        if target is not None and not target.is_directory and commit.kind == types.NODE_KIND_DIRECTORY:
            # It was not there when the directory was made, or changed after its removal.
            raise AlreadyExists(path=commit.path[:80])
        if node is not None and node.is_directory and tree.is_inside(parent_id, node.node_id):
            raise InvalidRequest("a directory cannot be moved into itself", path=commit.path[:80])

        # Everything is checked: from here on nothing is refused.
        for component in missing:
            parent_id = tree.make_directory(parent_id, component).node_id
        if node is None:
            node = self._new_node(commit)
            tree.add_node(node)
            self._change(node, commit, () if content is None else content)
            tree.set_edge(parent_id, name, node)
            return node
        changed = self._change(node, commit, content)
        if target is not None and target.node_id == node.node_id:
            if changed:
                tree.log_node(node)
            return node
        earlier = tree.names_of(node.node_id)
        if len(earlier) == 1:
            (old,) = earlier
            tree.move_edge(old, (parent_id, name), node)
        else:
            # Of several hard links none is known to be the one that moved: all stay.
            tree.set_edge(parent_id, name, node)
        return node

    def _walk(self, components: list[bytes]) -> tuple[int, list[bytes]]:
        """The deepest directory of the path that is there, and the components below it that are not."""
        directory_id = self._run.root_node_id
        for depth, component in enumerate(components):
            child = self._tree.child(directory_id, component)
            if child is None:
                return directory_id, components[depth:]
            if not child.is_directory:
                raise NotADirectory(path=b"/".join(components[: depth + 1])[:80])
            directory_id = child.node_id
        return directory_id, []

    def _new_node(self, commit: names.NodeCommit) -> Node:
        given = commit.attributes if commit.HasField("attributes") else None
        attributes = complete_attributes(given, NEW_NODE_MODE[commit.kind], self._tree.now_ns)
        return Node(
            node_id=commit.node_id,
            kind=commit.kind,
            mode=attributes.mode,
            uid=attributes.uid,
            gid=attributes.gid,
            mtime_ns=attributes.mtime_ns,
            ctime_ns=attributes.ctime_ns,
            atime_ns=attributes.atime_ns,
            size_bytes=len(commit.symlink_target),
            symlink_target=commit.symlink_target,
        )

    def _change(self, node: Node, commit: names.NodeCommit, content: tuple[Chunk, ...] | None) -> bool:
        """Gives the node the commit's attributes, extended ones and content; whether anything is different now."""
        changed = False
        if commit.HasField("attributes") and node.attributes() != commit.attributes:
            node.take(commit.attributes)
            changed = True
        if commit.HasField("xattrs"):
            xattrs = commit.xattrs.SerializeToString() or None
            changed |= xattrs != node.xattrs
            node.xattrs = xattrs
        if node.kind != types.NODE_KIND_FILE or content is None:
            return changed
        # The same content again is no new generation: a commit repeated after a lost answer changes nothing.
        if node.generation and self._current_content(node, content) == content:
            return changed
        self._tree.replace_content(node, content)
        self._contents[node.node_id] = content
        return True

    def _current_content(self, node: Node, wanted: tuple[Chunk, ...]) -> tuple[Chunk, ...] | None:
        """The node's chunks, or None when count and size already tell that they are not those wanted."""
        if node.chunk_count != len(wanted) or node.size_bytes != sum(c.length_bytes for c in wanted):
            return None
        if node.node_id in self._contents:
            return self._contents[node.node_id]
        rows = self._connection.execute(
            select(manifest_chunks.c.length_bytes, manifest_chunks.c.digest)
            .where(
                manifest_chunks.c.run_key == self._run.run_key,
                manifest_chunks.c.node_id == node.node_id,
                manifest_chunks.c.content_generation == node.content_generation,
            )
            .order_by(manifest_chunks.c.chunk_index)
        )
        return tuple(Chunk(*row) for row in rows)

    def _content_of(self, commit: names.NodeCommit) -> tuple[Chunk, ...] | None:
        """The content that a commit gives, checked against what is stored; None: it gives none."""
        form = commit.WhichOneof("content")
        if commit.kind == types.NODE_KIND_SYMLINK:
            check_symlink_target(commit.symlink_target)
        elif commit.symlink_target:
            raise InvalidRequest("only a symlink has a target", node_id=commit.node_id)
        if form is None:
            return None
        if commit.kind != types.NODE_KIND_FILE:
            raise InvalidRequest("only a file has content", node_id=commit.node_id)
        if form == "data":
            return _check_data(commit)
        manifest = Manifest(Chunk(chunk.length_bytes, chunk.digest) for chunk in commit.manifest.chunks)
        if commit.size_bytes != manifest.size_bytes:
            raise SizeMismatch(size_bytes=commit.size_bytes, sum_bytes=manifest.size_bytes)
        require_stored(self._stored, manifest.chunks)
        return manifest.chunks


def _brings_nothing_back(node: Node, content: tuple[Chunk, ...] | None) -> bool:
    """Whether the node lost its last name before a change of its attributes alone came: nothing in that is worth
    bringing its old content back, over what may have the name by now.
    """
    return node.link_count == 0 and content is None and not node.is_directory


def _check_data(commit: names.NodeCommit) -> tuple[Chunk, ...]:
    size_bytes = len(commit.data)
    if size_bytes > INLINE_BYTES_MAX:
        raise InvalidRequest("too much data for a commit", size_bytes=size_bytes)
    if commit.size_bytes != size_bytes:
        raise SizeMismatch(size_bytes=commit.size_bytes, data_bytes=size_bytes)
    if not size_bytes:
        return ()
    if digest_of(commit.data) != commit.digest:
        raise DigestMismatch(node_id=commit.node_id, size_bytes=size_bytes)
    return (Chunk(size_bytes, commit.digest),)
