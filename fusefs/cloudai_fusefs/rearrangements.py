"""The operations that take names away or give others: link, unlink, rmdir, rename.

A file's removal is recorded here first, as a rule. What else takes away or renames something that the master knows
asks the master first, so that its refusal reaches the program; what was removed here before goes before it.

An await may let any other operation in: after each, what was looked up before is looked up again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from cloudai_fusefs.commit_order import order_for_commit
from cloudai_fusefs.master_client import new_request_id
from cloudai_fusefs.namespace import Inode, Namespace, children_of
from cloudai_fusefs.node import Edge, Node
from cloudai_fusefs.retrying_master_client import RetryingMasterClient
from cloudai_fusefs.run_nodes import Invalidation, is_inside, stays
from cloudai_fusefs.staging import Staging
from cloudai_fusefs.stray_sender import remove_stray
from cloudai_fusefs.uploader import Uploader
from cloudai_model.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    InvalidRequest,
    IsADirectory,
    NotADirectory,
    NotFound,
    OutsideRun,
    PermissionRefused,
)
from cloudai_proto.storage.v1 import names_pb2 as names


class CrossRun(InvalidRequest):
    """The two names are in different runs; programs copy instead."""

    reason = ""
    sentence = "names cannot be shared between runs"


class Rearrangements:
    """Changes of the names in one mount's runs."""

    def __init__(
        self, client: RetryingMasterClient, namespace: Namespace, staging: Staging, uploader: Uploader
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._staging = staging
        self._uploader = uploader

    async def link(self, node: Inode, new_parent: Inode, new_name: bytes) -> Node:
        """A further name of a file or symlink, within its run. The master must answer: it is made there.

        Raises PermissionRefused for a directory, NotSupported across runs.
        """
        directory = await self._namespace.directory_for_new_name(new_parent, new_name)
        if not isinstance(node, Node):
            raise PermissionRefused("only files and symlinks in a run can be linked")
        if node.is_directory:
            raise PermissionRefused("a directory has one name")
        if node.tree is not directory.tree:
            raise CrossRun
        tree = node.tree
        while True:
            await self._make_durable(node, directory, *tree.left_names.holders((directory, new_name), None))
            async with self._namespace.changing_names(tree):
                if not directory.is_attached:
                    raise NotFound("the directory is removed")
                if tree.left_names.holders((directory, new_name), None):
                    continue
                request = names.LinkRequest(
                    request_id=new_request_id(),
                    task_id=tree.task_id,
                    node_id=node.node_id,
                    parent_node_id=directory.node_id,
                    name=new_name,
                    mtime_ns=time.time_ns(),
                )
                with tree.asking((directory.node_id, new_name)):
                    response = await self._client.link(request)
                directory = tree.current(directory)
                self._take_further_name(directory, new_name, node, response.revision)
                directory.touch()
                self._staging.note_times(directory)
                node.take_server_state(response.node)
                return node

    # --- taking away -------------------------------------------------------------------------------------

    def unlink_at_once(self, parent: Inode, name: bytes) -> Node | None:
        """Takes a file's or symlink's name away where nothing has to be waited for, as mostly; None: it is for
        `unlink`. Raises NotFound and IsADirectory.
        """
        if not isinstance(parent, Node) or not parent.tree.is_kept or parent.tree.mutation_lock.locked():
            return None
        self._namespace.check_open(parent.tree)
        return self._record_removal(parent, name)

    async def unlink(self, parent: Inode, name: bytes) -> Node:
        """Takes a file's or symlink's name away, here first where that may be.

        Raises IsADirectory, and the master's refusal where it is asked first.
        """
        directory = await self._namespace.writable_directory(parent, name)
        if self._staging.removals.may_be_recorded(directory, name, _find_file(directory, name)):
            # What is under way may be a rename of this very name.
            async with directory.tree.mutation_lock:
                self._namespace.check_open(directory.tree)
                removed = self._record_removal(directory, name)
            if removed is not None:
                return removed
        return await self._remove(directory, name, _find_file)

    async def rmdir(self, parent: Inode, name: bytes) -> None:
        """Removes an empty directory of a run."""
        directory = await self._namespace.writable_directory(parent, name)
        await self._remove(directory, name, _find_empty_directory)

    async def rename(
        self, old_parent: Inode, old_name: bytes, new_parent: Inode, new_name: bytes, *, no_replace: bool
    ) -> None:
        """rename(2) within one run, with its rules for what the new name stood for.

        Raises CrossRun between runs (mv then copies), OutsideRun at the managed levels.
        """
        if not isinstance(old_parent, Node) or not isinstance(new_parent, Node):
            raise OutsideRun("users, tasks and runs keep their names")
        if old_parent.tree is not new_parent.tree:
            raise CrossRun
        source = await self._namespace.writable_directory(old_parent, old_name)
        target = await self._namespace.writable_directory(new_parent, new_name)
        tree = source.tree
        while True:
            node = _find(source, old_name)
            replaced = _check_rename(node, target, new_name, no_replace=no_replace)
            if replaced is node:
                return
            tree.check_place(target, new_name, node)
            pending = node.pending
            holders = tree.left_names.holders((target, new_name), node)
            inside = tree.left_names.inside(replaced) if replaced is not None else ()
            if (
                (pending is not None and pending.place and not pending.covered_ids)
                # (Its commit places the first of its names; others may have given it more before a death.)
                and node.edge_count == 1
                and not inside
                and not _is_needed_by(node, target, holders)
            ):
                self._rename_here(source, old_name, target, new_name, node)
                _leave_inode(replaced)
                return
            # The master knows it under the old name, or something that it replaces there: that stays until this one has
            # come. Its content goes first: a reader of the new name must not find half of what was written here.
            hiding = [replaced] if _hides(replaced, node) else ()
            await self._make_durable(node, target, *holders, *hiding, *inside)
            async with self._namespace.changing_names(tree):
                if children_of(source).get(old_name) is not node or (
                    node.pending is not None and node.pending.place
                ):
                    continue
                if tree.left_names.holders((target, new_name), node):
                    continue
                if _check_rename(node, target, new_name, no_replace=no_replace) is not replaced:
                    continue
                if _hides(replaced, node):
                    continue
                request = names.RenameRequest(
                    request_id=new_request_id(),
                    task_id=tree.task_id,
                    node_id=node.node_id,
                    old_parent_node_id=source.node_id,
                    old_name=old_name,
                    new_parent_node_id=target.node_id,
                    new_name=new_name,
                    no_replace=no_replace,
                    mtime_ns=time.time_ns(),
                )
                is_renamed = await self._rename_at_master(request, source, target, node, replaced)
                if is_renamed:
                    _leave_inode(replaced)
                    return
            # Who renames knew of one name, and wants it gone.
            with suppress(NotFound):
                await self._remove(tree.current(source), old_name, partial(_find_still, node))
            return

    # --- within ------------------------------------------------------------------------------------------

    async def _make_durable(self, *nodes: Node) -> None:
        """As that of Uploader; an outage is waited out once, and not by each name in a directory."""
        await self._client.wait_out(lambda: self._uploader.make_durable(nodes))

    def _record_removal(self, directory: Node, name: bytes) -> Node | None:
        """The node that had the name, which is removed here; None: the master is to be asked first."""
        removals = self._staging.removals
        node = _find_file(directory, name)
        if removals.may_be_recorded(directory, name, node):
            with suppress(OSError):  # a full disk, on which `rm` may be there to make room
                removals.record(directory, name, node)
                return node
        return None

    async def _remove(self, directory: Node, name: bytes, find: Callable[[Node, bytes], Node]) -> Node:
        """`find` says what the name stands for, or raises what speaks against removing it."""
        tree = directory.tree
        while True:
            node = find(directory, name)
            # The master would find it full.
            if not (inside := tree.left_names.inside(node)):
                break
            await self._make_durable(*inside)
        moment_ns = time.time_ns()
        if node.ids_at_master or node.stray_ids:
            async with self._namespace.changing_names(tree):
                node = find(directory, name)
                moment_ns = time.time_ns()
                revision = 0
                with self._staging.rows.removing(node):
                    for node_id in node.ids_at_master:
                        revision = await self._remove_at_master(directory, name, node_id, moment_ns)
                        if node.pending is not None:
                            node.pending.uncover(node_id)  # whatever becomes of the next one
                    await self._remove_strays(node, moment_ns)
                directory = tree.current(directory)
                # (What has the name by now of a directory that is not there was hidden by what was staged in it.)
                tree.is_in_doubt |= node.is_directory and not revision
                is_told = 0 < revision <= tree.revision and not stays(node)
                if is_told or children_of(directory).get(name) is not node:
                    # The watch was faster, and may have told of its return since: it does not tell of the node, nor of
                    # what has a change pending.
                    node.note_change(moment_ns)
                    directory.touch()
                    self._staging.note_times(directory)
                    _leave_inode(node)
                    return node
        tree.detach(directory, name)
        tree.is_in_doubt |= bool(node.children)  # by news that came meanwhile, and are not the last ones
        node.note_change(moment_ns)
        if node.pending is not None:
            tree.note_left(node.pending, (directory.node_id, name))
        if node.first_edge is None:
            self._staging.discard(node)
            tree.forget_if_unused(node)  # the kernel may not have seen that the name is this one's
        self._staging.note_times(directory)
        _leave_inode(node)
        return node

    async def _remove_at_master(self, directory: Node, name: bytes, node_id: int, moment_ns: int) -> int:
        """The revision of the removal; 0: there was nothing to remove."""
        request = names.RemoveRequest(
            request_id=new_request_id(),
            task_id=directory.tree.task_id,
            node_id=node_id,
            parent_node_id=directory.node_id,
            name=name,
            mtime_ns=moment_ns,
        )
        with suppress(NotFound):  # it had not arrived after all, or somebody else was faster
            try:
                with directory.tree.asking((directory.node_id, name)):
                    response = await self._client.remove(request)
            except DirectoryNotEmpty:
                # Here it is empty: what is in it has yet to be shown.
                directory.tree.is_in_doubt = True
                raise
            answered = directory.tree.answered
            answered.note_touched(node_id, response.revision)
            answered.note_place((directory.node_id, name), response.revision)
            return response.revision
        return 0

    async def _remove_strays(self, node: Node, moment_ns: int) -> None:
        """What the master may have of the node, and of what that has replaced, under names that nobody here knows."""
        tree = node.tree
        if node.node_id in node.stray_ids:
            tree.stray_names.note(node.node_id, tree.left_names.of(node))
        for node_id in node.stray_ids:
            await remove_stray(self._client, tree, node_id, moment_ns)
            self._staging.forget_stray(tree, node_id)

    def _rename_here(self, source: Node, old_name: bytes, target: Node, new_name: bytes, node: Node) -> None:
        """Renames what the master has not placed yet; the commit will place it. Raises OSError: nothing changed."""
        tree = source.tree
        replaced = tree.move(source, old_name, target, new_name)
        pending = tree.note_pending(node)
        if pending.sent:
            tree.left_names.note(node, (source, old_name))
        tree.note_left(pending, (source.node_id, old_name))
        pending.covered_ids = replaced.ids_at_master if replaced is not None else ()
        strays_before, had_xattrs = pending.stray_ids, pending.xattrs
        if replaced is not None:
            pending.stray_ids += replaced.stray_ids
            self._note_stray_names(replaced, (target, new_name))
            # A directory becomes that one at the master, and would be given what it has.
            pending.xattrs |= node.is_directory and bool(pending.replaced_ids)
        try:
            self._staging.note_moved(node, replaced)
        except OSError:
            tree.move(target, new_name, source, old_name)
            pending.covered_ids = ()
            pending.stray_ids, pending.xattrs = strays_before, had_xattrs
            if replaced is not None:
                tree.add(target, new_name, replaced)
                tree.stray_names.forget(replaced.node_id)
            raise
        if replaced is not None:
            tree.left_names.pass_on(replaced, node)
        if replaced is not None and replaced.first_edge is not None:
            # The commit takes a name from it, and says nothing of its change time: news of that would move it back.
            self._staging.note_times(replaced)
        self._note_moved(source, target, replaced)

    @staticmethod
    def _note_stray_names(replaced: Node, edge: Edge) -> None:
        """The node has lost this name to another here. The master may have it there, or where it was before."""
        tree, pending = replaced.tree, replaced.pending
        if pending is None or replaced.node_id not in replaced.stray_ids:
            return
        edges = (edge, *tree.left_names.of(replaced))
        tree.stray_names.note(replaced.node_id, edges)
        places = {(parent.node_id, name) for parent, name in edges}
        # What others have given it, or where they have moved it, was left aside while it was to be placed here.
        tree.is_in_doubt |= any(
            news.edge is not None and at not in places for at, news in pending.held_news.items()
        )

    async def _rename_at_master(
        self, request: names.RenameRequest, source: Node, target: Node, node: Node, replaced: Node | None
    ) -> bool:
        """Asks for it, with names being changed by nobody else, and does the same here. Raises its refusal.

        False: the new name is the node's already, as is shown now, by a link whose answer was lost or that somebody
        else has made; it still has the old one.
        """
        old_name, new_name = request.old_name, request.new_name
        if replaced is not None and replaced.edge_count == 1:
            await self._remove_strays(replaced, request.mtime_ns)
        asking = source.tree.asking((source.node_id, old_name), (target.node_id, new_name))
        with self._staging.rows.replacing(replaced, node), asking:
            response = await self._client.rename(request)
        source, target = source.tree.current(source), source.tree.current(target)
        if response.already_named:
            self._take_further_name(target, new_name, node, response.revision)
            return False
        self._finish_rename(source, old_name, target, new_name, node, replaced, response.revision)
        for renamed in (node, replaced):
            if renamed is not None:
                renamed.note_change(request.mtime_ns)
        return True

    def _finish_rename(
        self,
        source: Node,
        old_name: bytes,
        target: Node,
        new_name: bytes,
        node: Node,
        replaced: Node | None,
        revision: int,
    ) -> None:
        """The master has renamed at this revision. The watch may have told of it before, and of what came after."""
        tree = source.tree
        is_news = revision > tree.revision or (
            replaced is not None and children_of(target).get(new_name) is replaced
        )
        if is_news and (is_inside(target, node) or not target.is_attached):
            # Others had moved the target into it and out again before, and only the first is known here; or it has
            # lost its name ahead of the news of what has left it.
            tree.is_in_doubt = True
            return
        if is_news:
            for parent, name in list(node.edges):
                if (parent, name) == (source, old_name):
                    tree.detach(source, old_name)
                elif node.is_directory:
                    # Others had moved it there and back before, and only the first is known here. It has one name.
                    tree.detach(parent, name)
                    self._uploader.tell_kernel([Invalidation(parent.ino, name), Invalidation(parent.ino)])
            self._give_name(target, new_name, node)
        for place in ((source.node_id, old_name), (target.node_id, new_name)):
            tree.answered.note_place(place, revision)
        for renamed in (node, replaced):
            if renamed is not None:
                tree.answered.note_touched(renamed.node_id, revision)
        source.touch()
        target.touch()
        with suppress(OSError):  # a full disk: the master has it under the new name, whatever the row says
            self._staging.note_path(node)
        self._note_moved(source, target, replaced)

    def _take_further_name(self, directory: Node, name: bytes, node: Node, revision: int) -> None:
        """The master has the node under this name, too, at this revision."""
        # The watch may have told of the name before, of what became of it since, or of the directory's end.
        if revision > directory.tree.revision and directory.is_attached:
            self._give_name(directory, name, node)
        directory.tree.answered.note_place((directory.node_id, name), revision)

    def _give_name(self, directory: Node, name: bytes, node: Node) -> None:
        """What has the name by older news loses it, unless it is a directory of which the watch has made this node."""
        tree, holder = directory.tree, children_of(directory).get(name)
        if holder is not None and holder.node_id == node.node_id:
            return
        if holder is not None and holder.children:
            self._uploader.tell_kernel(tree.pass_on_name(directory, name, node))
            self._staging.note_news(tree)
            if holder.is_attached:
                with suppress(OSError):  # a full disk: the next mount finds it by the path that the rows have
                    self._staging.note_path(holder)
        elif holder is not None:
            tree.detach(directory, name)
            tree.forget_if_unused(holder)
        tree.add(directory, name, node)

    def _note_moved(self, source: Node, target: Node, replaced: Node | None) -> None:
        if replaced is not None and replaced.first_edge is None:
            self._staging.discard(replaced)
            replaced.tree.forget_if_unused(replaced)  # as in _remove
        self._staging.note_times(source)
        if target is not source:
            self._staging.note_times(target)


def _is_needed_by(node: Node, target: Node, holders: Sequence[Node]) -> bool:
    """Whether the master must be told of the node, or of something in it, before it can be of the target, or of what
    has left its new name to it: with that name, each would wait for the other.
    """
    if not node.tree.left_names:
        return False
    before = order_for_commit([target])
    before_holders = order_for_commit(holders)
    # (Files get one another's names in one batch.)
    if any(member.is_directory for member in (node, *before_holders)):
        before += before_holders
    return any(is_inside(member, node) for member in before)


def _hides(replaced: Node | None, node: Node) -> bool:
    """Whether the new name may stand for the node itself at the master, of which it is a further name, until what has
    replaced it here is there: to rename one of two names of a file to the other does nothing.
    """
    return replaced is not None and node.node_id in replaced.ids_at_master


def _leave_inode(removed: Node | None) -> None:
    """The kernel is told that a name was removed, of what may be a directory."""
    if removed is not None and removed.is_directory:
        removed.tree.leave_inode(removed)


def _find_file(directory: Node, name: bytes) -> Node:
    """The file or symlink of this name."""
    node = _find(directory, name)
    if node.is_directory:
        raise IsADirectory(name=name)
    return node


def _find_still(expected: Node, directory: Node, name: bytes) -> Node:
    """The file or symlink, if it still has the name."""
    node = _find_file(directory, name)
    if node is not expected:
        raise NotFound(name=name)
    return node


def _find_empty_directory(directory: Node, name: bytes) -> Node:
    node = _find(directory, name)
    if not node.is_directory:
        raise NotADirectory(name=name)
    if node.children:
        raise DirectoryNotEmpty(name=name)
    return node


def _find(directory: Node, name: bytes) -> Node:
    node = children_of(directory).get(name)
    if node is None:
        raise NotFound(name=name)
    return node


def _check_rename(node: Node, target: Node, new_name: bytes, *, no_replace: bool) -> Node | None:
    """What the new name stands for now. Raises by the rules of rename(2)."""
    if is_inside(target, node):
        raise InvalidRequest("a directory cannot be moved into itself")
    if not target.is_attached:
        raise NotFound("the directory is removed")
    replaced = children_of(target).get(new_name)
    if replaced is None or replaced is node:
        return replaced
    if no_replace:
        raise AlreadyExists(name=new_name)
    if replaced.is_directory and not node.is_directory:
        raise IsADirectory(name=new_name)
    if node.is_directory and not replaced.is_directory:
        raise NotADirectory(name=new_name)
    if replaced.children:
        raise DirectoryNotEmpty(name=new_name)
    return replaced
