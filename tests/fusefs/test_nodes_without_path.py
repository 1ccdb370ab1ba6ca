"""A directory may lose its name here ahead of the news of what has left it: what is in it then has names and no path,
until those news or a listing come.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
import trio
from google.protobuf.message import Message
from trio.testing import MockClock

from cloudai_fusefs.commit_composer import ComposedCommit, compose_commit
from cloudai_fusefs.commit_order import find_obstacle
from cloudai_fusefs.journal import Journal
from cloudai_fusefs.node import DIRECTORY, FILE, Node
from cloudai_fusefs.run_tree import RunTree
from cloudai_model.errors import NoSpace
from cloudai_model.limits import NODE_ID_MIN
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import HEARTBEAT_SECONDS, FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness
from support.listings import apply_tree
from support.storage_requests import USER, published, tree_of
from support.told_trees import ROOT_ID, edge, listing, make_tree
from support.two_mounts import open_both

DIRECTORY_ID = NODE_ID_MIN + 1
FILE_ID = NODE_ID_MIN + 2
OTHER_ID = NODE_ID_MIN + 3
OWN_ID = NODE_ID_MIN + 4


def make_tree_of_two() -> RunTree:
    """`directory`, and a file beside it."""
    return make_tree(edge(ROOT_ID, b"directory", DIRECTORY_ID, DIRECTORY), edge(ROOT_ID, b"file", FILE_ID))


def tell_moved(tree: RunTree, revision: int, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
    """The file was renamed."""
    removed = names.EdgeRemoved(parent_node_id=old[0], name=old[1], node_id=FILE_ID)
    changes = [
        names.Change(revision=revision, edge_set=edge(*new, FILE_ID, revision=revision)),
        names.Change(revision=revision, edge_removed=removed),
    ]
    tree.apply_changes(names.WatchResponse(changes=changes, revision=revision))


def remove_ahead_of_news(tree: RunTree) -> Node:
    """The directory, which the kernel still refers to; others have moved the file into it, and out again since."""
    directory = tree.nodes[DIRECTORY_ID]
    directory.lookup_count = 1
    tree.detach(tree.root, b"directory")
    tell_moved(tree, 2, (ROOT_ID, b"file"), (DIRECTORY_ID, b"moved"))
    assert not tree.has_path(tree.nodes[FILE_ID])
    return directory


def test_directory_that_is_in_use_no_more_is_known_for_as_long_as_something_is_in_it() -> None:
    tree = make_tree_of_two()
    directory = remove_ahead_of_news(tree)
    directory.lookup_count = 0
    tree.forget_if_unused(directory)

    tell_moved(tree, 3, (DIRECTORY_ID, b"moved"), (ROOT_ID, b"file"))

    assert tree.nodes[FILE_ID].edges == ((tree.root, b"file"),)
    tree.forget_all_unused()
    assert DIRECTORY_ID not in tree.nodes


def test_listing_frees_what_was_left_in_a_directory_without_a_name() -> None:
    tree = make_tree_of_two()
    directory = remove_ahead_of_news(tree)
    directory.lookup_count = 0
    tree.forget_if_unused(directory)
    assert tree.is_in_doubt

    apply_tree(tree, [listing(3)])

    assert tree.nodes.keys() == {ROOT_ID}
    assert not tree.is_in_doubt


def test_directory_made_here_does_not_become_one_in_which_something_is_left() -> None:
    """That has its news, and they would find nothing in this one."""
    tree = make_tree_of_two()
    directory = remove_ahead_of_news(tree)
    tree.is_in_doubt = False
    own = Node(tree, OWN_ID, DIRECTORY)
    tree.add(tree.root, b"directory", own)

    tree.take_node_id(own, DIRECTORY_ID)

    assert tree.is_in_doubt
    assert tree.nodes[DIRECTORY_ID] is directory


def test_directory_that_becomes_another_has_left_no_names() -> None:
    """What has them now may be above it, and each would wait for the other."""
    tree = make_tree_of_two()
    own = Node(tree, OWN_ID, DIRECTORY)
    tree.add(tree.root, b"moved", own)
    tree.note_pending(own).place = True
    tree.left_names.note(own, (tree.root, b"left"))
    directory = Node(tree, OWN_ID + 1, DIRECTORY)
    tree.add(tree.root, b"left", directory)
    tree.note_pending(directory).place = True
    assert find_obstacle(directory) == (directory, own)

    tree.apply_changes(
        names.WatchResponse(
            changes=[
                names.Change(revision=2, edge_set=edge(ROOT_ID, b"moved", OTHER_ID, DIRECTORY, revision=2))
            ],
            revision=2,
        )
    )

    assert own.node_id == OTHER_ID
    assert find_obstacle(directory) is None


def test_staged_file_goes_on_with_the_directory_that_has_taken_the_name_of_its_own() -> None:
    tree = make_tree_of_two()
    directory = tree.nodes[DIRECTORY_ID]
    file = Node(tree, OWN_ID, FILE)
    tree.add(directory, b"staged", file)
    tree.note_pending(file).place = True
    tell_moved(tree, 2, (ROOT_ID, b"file"), (DIRECTORY_ID, b"moved"))
    successor = Node(tree, OWN_ID + 1, DIRECTORY)

    told = tree.pass_on_name(tree.root, b"directory", successor)
    tree.add(tree.root, b"directory", successor)

    assert tree.path_of(file) == b"directory/staged"
    assert tree.nodes.keys() == {ROOT_ID, OWN_ID, OWN_ID + 1}
    assert told


async def test_file_in_a_directory_without_a_name_is_not_committed_in_the_root_of_the_run(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await file_system.mkdir(b"directory")
    await file_system.make_all_durable()
    await trio.sleep(HEARTBEAT_SECONDS)
    await file_system.write_file(b"directory/file", b"content")
    tree = file_system.tree
    tree.detach(tree.root, b"directory")
    tree.is_in_doubt = True

    await file_system.uploader.make_durable(list(tree.pending))

    assert await published(client, run) == {b"directory/file": b"content"}
    assert (await tree_of(client, run)).keys() == {b"", b"directory", b"directory/file"}
    assert file_system.shown().keys() == {b"directory", b"directory/file"}


async def test_directory_that_came_along_and_had_no_path_for_a_while_is_committed_in_its_own_time(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Although what needed it is gone by then."""
    await file_system.mkdir(b"above")
    await file_system.make_all_durable()
    await trio.sleep(HEARTBEAT_SECONDS)
    await file_system.mkdir(b"above/directory")
    await file_system.write_file(b"above/directory/file", b"content")
    tree = file_system.tree
    above = await file_system.find(b"above")
    directory, file = [await file_system.find(b"above/directory" + name) for name in (b"", b"/file")]
    await trio.sleep(0.02)
    await file_system.set_attributes(b"above/directory", mode=0o700)  # due after the file in it

    async def compose_while_news_come(node: Node) -> ComposedCommit | None:
        item = await compose_commit(node)
        if node is file and above.is_attached:
            tree.detach(tree.root, b"above")
            tree.is_in_doubt = True
        return item

    with monkeypatch.context() as patched:
        patched.setattr("cloudai_fusefs.commit_sender.compose_commit", compose_while_news_come)
        while above.is_attached:
            await trio.sleep(0.01)
    tree.detach(directory, b"file")
    file_system.staging.discard(file)
    tree.add(tree.root, b"above", above)
    tree.is_in_doubt = False

    await trio.sleep(10)

    assert (await tree_of(client, run)).keys() == {b"", b"above", b"above/directory"}


async def rename_into(mount: FileSystemHarness) -> None:
    await mount.rename(b"file", b"theirs/new")


async def link_into(mount: FileSystemHarness) -> None:
    await mount.link(b"file", b"theirs/new")


async def rename_out_of(mount: FileSystemHarness) -> None:
    await mount.rename(b"theirs/linked", b"beside/new")


async def unlink_from(mount: FileSystemHarness) -> None:
    await mount.unlink(b"theirs/linked")


@pytest.mark.parametrize("change", [rename_into, link_into, rename_out_of, unlink_from])
async def test_directory_that_becomes_another_while_the_master_is_asked_is_that_one_for_the_answer(
    clock: MockClock,
    full_client: FakeMasterClient,
    master: FakeMaster,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[FileSystemHarness], Awaitable[None]],
) -> None:
    """It was moved elsewhere to where one was made here."""

    async def refuse_commit(request: names.CommitNodesRequest) -> NoReturn:
        raise NoSpace("the test's master takes nothing")

    client = master.client(USER)
    async with open_both(full_client, run, tmp_path, other_client=client) as (one, other):
        await other.mkdir(b"beside")
        await other.mkdir(b"theirs")
        await other.write_file(b"theirs/linked", b"linked")
        await other.link(b"theirs/linked", b"other")
        await other.write_file(b"file", b"content")
        await other.make_all_durable()
        await trio.sleep(HEARTBEAT_SECONDS)
        with monkeypatch.context() as patched:
            patched.setattr(full_client, "commit_nodes", refuse_commit)
            await one.mkdir(b"here")
            for name in ("rename", "link", "remove"):
                call = getattr(full_client, name)

                async def call_late(
                    request: Message, call: Callable[[Message], Awaitable[Message]] = call
                ) -> Message:
                    await other.rename(b"theirs", b"here")
                    await trio.sleep(1)
                    return await call(request)

                patched.setattr(full_client, name, call_late)
            await change(one)
        assert is_whole(one.tree)
        await one.make_all_durable()
        assert one.shown().keys() == (await tree_of(client, run)).keys() - {b""}
        assert is_whole(one.tree)


async def rename_to(mount: FileSystemHarness) -> None:
    await mount.rename(b"source", b"name")


async def link_to(mount: FileSystemHarness) -> None:
    await mount.link(b"source", b"name")


@pytest.mark.parametrize("change", [rename_to, link_to])
async def test_file_staged_in_a_directory_whose_name_a_file_is_given_meanwhile_replaces_none_in_the_root(
    clock: MockClock,
    client: FakeMasterClient,
    master: FakeMaster,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[FileSystemHarness], Awaitable[None]],
) -> None:
    """Others made the directory while the master was asked, and removed it, which they saw empty."""
    others_client = master.client(USER)
    async with open_both(client, run, tmp_path, other_client=others_client) as (one, other):
        await other.write_file(b"source", b"content")
        await other.write_file(b"file", b"theirs")
        await other.make_all_durable()
        await trio.sleep(HEARTBEAT_SECONDS)
        call_name = change.__name__.removesuffix("_to")
        call_now = getattr(client, call_name)

        async def call_late(request: Message) -> Message:
            await other.mkdir(b"name")
            await other.make_all_durable()
            await trio.sleep(1)
            await one.write_file(b"name/file", b"staged")
            master.news_latency_seconds = 5.0
            await other.rmdir(b"name")
            response: Message = await call_now(request)
            return response

        with monkeypatch.context() as patched:
            patched.setattr(client, call_name, call_late)
            await change(one)
        with closing(Journal(one.state_dir / "journal.sqlite")) as journal:
            assert b"name.conflict-1/file" in {record.path for record in journal.records()}
        await trio.sleep(60)

        contents = {b"file": b"theirs", b"name": b"content", b"name.conflict-1/file": b"staged"}
        if change is link_to:
            contents[b"source"] = b"content"
        assert await published(others_client, run) == contents
        assert one.shown().keys() == other.shown().keys() == {*contents, b"name.conflict-1"}
        assert is_whole(one.tree)


def is_whole(tree: RunTree) -> bool:
    """Whether all that has a name has a path."""
    return all(tree.has_path(node) for node in tree.nodes.values() if node.edges)
