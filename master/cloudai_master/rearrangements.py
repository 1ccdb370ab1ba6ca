"""Link, Rename, Remove and RemoveNodes: what changes names and no content, by the rules of POSIX."""

from __future__ import annotations

from cloudai_master.authorization import Caller, find_open_run
from cloudai_master.database import Transaction
from cloudai_master.run_tree import RunTree
from cloudai_master.statuses import to_detail
from cloudai_master.stored_node import Node
from cloudai_model.errors import (
    AlreadyExists,
    CloudAIError,
    DirectoryNotEmpty,
    InvalidRequest,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from cloudai_model.limits import COMMIT_NODES_MAX, NODE_ID_MAX
from cloudai_model.names import check_name, check_node_id
from cloudai_proto.storage.v1 import names_pb2 as names


def link(transaction: Transaction, caller: Caller, request: names.LinkRequest) -> names.LinkResponse:
    """Raises NotFound, NotADirectory, IsADirectory for a directory, AlreadyExists for a taken name."""
    run = find_open_run(transaction.connection, caller, request.task_id)
    tree = RunTree(transaction, run)
    check_name(request.name)
    node = tree.node(request.node_id)
    if node is None or node.link_count == 0:
        raise NotFound("node", node_id=request.node_id)
    if node.is_directory:
        raise IsADirectory("a directory has one name", node_id=request.node_id)
    parent = tree.directory(request.parent_node_id)
    if tree.child(parent.node_id, request.name) is not None:
        raise AlreadyExists(name=request.name)
    moment_ns = request.mtime_ns or tree.now_ns
    node.ctime_ns = moment_ns
    tree.set_edge(parent.node_id, request.name, node)
    _mark_modified(tree, parent, moment_ns)
    tree.flush()
    return names.LinkResponse(node=node.to_wire(), revision=tree.revision)


def rename(transaction: Transaction, caller: Caller, request: names.RenameRequest) -> names.RenameResponse:
    """Raises NotFound, AlreadyExists with no_replace, IsADirectory, NotADirectory, DirectoryNotEmpty,
    InvalidRequest for a directory that would come to be in itself.
    """
    run = find_open_run(transaction.connection, caller, request.task_id)
    tree = RunTree(transaction, run)
    check_name(request.old_name)
    check_name(request.new_name)
    old_parent = tree.directory(request.old_parent_node_id)
    new_parent = tree.directory(request.new_parent_node_id)
    node = _named_node(tree, old_parent, request.old_name, request.node_id)
    target = tree.child(new_parent.node_id, request.new_name)
    if target is not None:
        if request.no_replace:
            raise AlreadyExists(name=request.new_name)
        if target.node_id == node.node_id:
            # rename(2): two names of one file, and nothing is done.
            return names.RenameResponse(revision=tree.revision, already_named=True)
        if target.is_directory and not node.is_directory:
            raise IsADirectory(name=request.new_name)
        if node.is_directory and not target.is_directory:
            raise NotADirectory(name=request.new_name)
        if target.is_directory and not tree.is_empty(target.node_id):
            raise DirectoryNotEmpty(name=request.new_name)
    if node.is_directory and tree.is_inside(new_parent.node_id, node.node_id):
        raise InvalidRequest("a directory cannot be moved into itself", node_id=node.node_id)
    moment_ns = request.mtime_ns or tree.now_ns
    node.ctime_ns = moment_ns
    if target is not None:
        target.ctime_ns = moment_ns
    tree.move_edge((old_parent.node_id, request.old_name), (new_parent.node_id, request.new_name), node)
    _mark_modified(tree, old_parent, moment_ns)
    if new_parent is not old_parent:
        _mark_modified(tree, new_parent, moment_ns)
    tree.flush()
    return names.RenameResponse(revision=tree.revision)


def remove(transaction: Transaction, caller: Caller, request: names.RemoveRequest) -> names.RemoveResponse:
    """Raises NotFound, NotADirectory, DirectoryNotEmpty."""
    run = find_open_run(transaction.connection, caller, request.task_id)
    tree = RunTree(transaction, run)
    if request.name or request.parent_node_id:
        check_name(request.name)
        parent = tree.directory(request.parent_node_id)
        node = _named_node(tree, parent, request.name, request.node_id)
        places = [(parent.node_id, request.name)]
    else:
        check_node_id(request.node_id)
        found = tree.node(request.node_id)
        places = sorted(tree.names_of(request.node_id))
        if found is None or not places:
            raise NotFound("no name of the node", node_id=request.node_id)
        node = found
    if node.is_directory and not tree.is_empty(node.node_id):
        raise DirectoryNotEmpty(name=request.name)
    moment_ns = request.mtime_ns or tree.now_ns
    node.ctime_ns = moment_ns
    for parent_id, name in places:
        tree.remove_edge(parent_id, name, node)
        _mark_modified(tree, tree.directory(parent_id), moment_ns)
    tree.flush()
    return names.RemoveResponse(revision=tree.revision)


def remove_nodes(
    transaction: Transaction, caller: Caller, request: names.RemoveNodesRequest
) -> names.RemoveNodesResponse:
    """A result for each removal, in order. Raises InvalidRequest for more than one call may hold."""
    if len(request.removals) > COMMIT_NODES_MAX:
        raise InvalidRequest("too many removals in one call", count=len(request.removals))
    run = find_open_run(transaction.connection, caller, request.task_id)
    tree = RunTree(transaction, run)
    # With their names, so that none costs a query of its own. An id out of range is refused with its removal.
    ids = {node_id for one in request.removals for node_id in (one.node_id, one.parent_node_id)}
    tree.load_nodes(node_id for node_id in ids if node_id <= NODE_ID_MAX)
    response = names.RemoveNodesResponse()
    modified: dict[int, int] = {}
    for one in request.removals:
        try:
            node = _find_removed(tree, one)
        except CloudAIError as error:
            response.results.add(error=to_detail(error))
            continue
        if node is not None and node.generation != one.generation:
            response.results.add(kept=node.to_wire())
            continue
        response.results.add(removed=True)
        if node is not None:
            node.ctime_ns = modified[one.parent_node_id] = one.mtime_ns or tree.now_ns
            tree.remove_edge(one.parent_node_id, one.name, node)
    for parent_id, moment_ns in modified.items():
        _mark_modified(tree, tree.directory(parent_id), moment_ns)
    tree.flush()
    response.revision = tree.revision
    return response


def _find_removed(tree: RunTree, removal: names.NodeRemoval) -> Node | None:
    """The node, if the name still stands for it. Raises InvalidRequest, InvalidName, IsADirectory."""
    check_node_id(removal.node_id)
    check_node_id(removal.parent_node_id)
    check_name(removal.name)
    node = tree.node(removal.node_id)
    if node is None or (removal.parent_node_id, removal.name) not in tree.names_of(removal.node_id):
        return None
    if node.is_directory:
        raise IsADirectory(node_id=removal.node_id)
    return node


def _named_node(tree: RunTree, parent: Node, name: bytes, node_id: int) -> Node:
    node = tree.child(parent.node_id, name)
    if node is None or node.node_id != node_id:
        raise NotFound(name=name, node_id=node_id)
    return node


def _mark_modified(tree: RunTree, directory: Node, moment_ns: int) -> None:
    directory.mtime_ns = moment_ns
    directory.ctime_ns = moment_ns
    tree.log_node(directory)
