"""Over the limit of names, sealed runs that were looked into longest ago leave the memory, but for what is in use."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs import tree_memory, tree_sync
from cloudai_fusefs.node import Node
from cloudai_fusefs.open_directories import DOT_COUNT
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.sealed_cache import SealedCache
from cloudai_fusefs.tree_memory import ASK_AGAIN_SECONDS, REST_SECONDS
from cloudai_model.errors import MasterUnavailable, NotFound
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import (
    USER,
    commit,
    directory_commit,
    file_commit,
    make_run,
    request_id,
    seal,
    symlink_commit,
)
from support.two_mounts import open_both

# Of the run itself: its root, d, d/e, d/e/deep, d/file, link, and the same file by two names in d and f.
NODE_COUNT = 8


async def fill(client: FakeMasterClient, run: types.Run) -> None:
    answer = await commit(
        client,
        run,
        directory_commit(b"d"),
        directory_commit(b"d/e"),
        directory_commit(b"f"),
        file_commit(b"d/e/deep", b"deep"),
        file_commit(b"d/file", b"content"),
        file_commit(b"d/first", b"linked"),
        symlink_commit(b"link", b"d/file"),
    )
    nodes = {result.node.node_id: result.node for result in answer.results}
    directory, first = answer.results[2].node, answer.results[5].node
    assert len(nodes) == NODE_COUNT - 1
    await client.link(
        names.LinkRequest(
            request_id=request_id(),
            task_id=run.task_id,
            node_id=first.node_id,
            parent_node_id=directory.node_id,
            name=b"second",
        )
    )


@pytest.fixture
async def mount(client: FakeMasterClient, run: types.Run, tmp_path: Path) -> AsyncIterator[FileSystemHarness]:
    """A mount that keeps nothing but what it must, with a sealed run that was looked into before another one."""
    await fill(client, run)
    await seal(client, run)
    other = await make_run(client, USER)
    await seal(client, other)
    async with open_file_system(client, run, tmp_path / "mount") as opened:
        opened.tree_memory.names_max = 0
        await opened.namespace.load(opened.tree.root)
        await trio.sleep(1)
        await opened.namespace.load(opened.managed.runs[other.task_id].root)
        await trio.sleep(REST_SECONDS)
        yield opened


def of_run(mount: FileSystemHarness, tree: RunTree) -> set[int]:
    """The ids of its nodes in the table of inodes."""
    return {
        node.node_id for node in mount.managed.inodes.values() if isinstance(node, Node) and node.tree is tree
    }


def in_memory(tree: RunTree) -> int:
    """How many of its nodes anything holds; those in circles too, which nobody has searched for."""
    return sum(isinstance(found, Node) and found.tree is tree for found in gc.get_objects())


async def let_go(mount: FileSystemHarness) -> None:
    """Another run is looked into, and the mount's is not any more."""
    other = next(tree for tree in mount.managed.runs.values() if tree is not mount.tree)
    await trio.sleep(REST_SECONDS)
    await mount.namespace.load(other.root)
    await mount.tree_memory.shrink()
    assert mount.tree.is_let_go


def refer_to(node: Node) -> Node:
    """As an answer to the kernel does."""
    node.lookup_count += 1
    return node


def forget(node: Node) -> None:
    """As the kernel does."""
    node.lookup_count = 0
    node.tree.forget_if_unused(node)


async def test_run_that_nobody_looks_at_leaves_the_memory(clock: MockClock, mount: FileSystemHarness) -> None:
    tree = mount.tree
    assert len(of_run(mount, tree)) == NODE_COUNT
    gc.disable()

    await mount.tree_memory.shrink()

    left = in_memory(tree)
    gc.enable()
    assert left == 1

    assert of_run(mount, tree) == set(tree.nodes) == {tree.root.node_id}
    assert mount.asked_back == []
    assert (await mount.control.counters()).let_go_count == 1


async def test_next_look_brings_all_of_it_back_from_the_disk(
    clock: MockClock, mount: FileSystemHarness, master: FakeMaster
) -> None:
    before, inos = mount.shown(), {node.ino for node in mount.tree.nodes.values()}
    await let_go(mount)
    master.go_away()

    assert (await mount.find(b"d/e/deep")).link_count == 1

    assert mount.shown() == before
    assert {node.ino for node in mount.tree.nodes.values()} == inos


async def test_nothing_leaves_the_memory_within_the_limit(clock: MockClock, mount: FileSystemHarness) -> None:
    mount.tree_memory.names_max = NODE_COUNT - 1  # without the root

    await mount.tree_memory.shrink()

    assert len(mount.tree.nodes) == NODE_COUNT


async def test_no_more_leaves_the_memory_than_the_limit_wants(
    clock: MockClock, mount: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    runs = [run]
    for _ in range(3):
        runs.append(await make_run(client, USER))
        await fill(client, runs[-1])
        await seal(client, runs[-1])
    await trio.sleep(1)
    trees = [mount.managed.runs[one.task_id] for one in runs]
    for tree in (trees[2], trees[0], trees[3], trees[1]):
        await mount.namespace.load(tree.root)
        await trio.sleep(1)
    await trio.sleep(REST_SECONDS)
    mount.tree_memory.names_max = 2 * NODE_COUNT

    await mount.tree_memory.shrink()

    assert [tree.is_let_go for tree in trees] == [True, False, True, False]


async def test_run_that_was_looked_into_last_stays_whatever_its_size(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    await mount.namespace.load(mount.tree.root)
    await trio.sleep(10 * REST_SECONDS)

    await mount.tree_memory.shrink()

    assert len(mount.tree.nodes) == NODE_COUNT


async def test_runs_that_are_walked_through_at_once_all_stay(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    other = next(tree for tree in mount.managed.runs.values() if tree is not mount.tree)
    for tree in (mount.tree, other):
        await mount.namespace.load(tree.root)
        await trio.sleep(REST_SECONDS / 4)

    await mount.tree_memory.shrink()

    assert len(mount.tree.nodes) == NODE_COUNT


async def test_opening_a_file_is_a_look_into_its_run(clock: MockClock, mount: FileSystemHarness) -> None:
    node = await mount.find(b"d/file")
    mount.tree.looked_at_seconds = -1
    mount.close_handle((await mount.files.open(node, os.O_RDONLY)).handle)

    await mount.tree_memory.shrink()

    assert len(mount.tree.nodes) == NODE_COUNT


async def test_open_run_stays(clock: MockClock, file_system: FileSystemHarness) -> None:
    await file_system.write_file(b"file", b"content")
    await file_system.make_all_durable()
    file_system.tree_memory.names_max = 0
    await trio.sleep(10 * REST_SECONDS)

    await file_system.tree_memory.shrink()

    assert list(file_system.shown()) == [b"file"]


async def test_sealed_run_with_something_that_the_master_refused_stays(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    # As what was staged elsewhere when the run was sealed.
    mount.tree.note_pending(await mount.find(b"d/file"))
    mount.tree.looked_at_seconds = -1

    assert not mount.sync.let_go(mount.tree)


async def test_run_whose_names_are_being_listed_stays(clock: MockClock, mount: FileSystemHarness) -> None:
    handle = await mount.directories.open(mount.tree.root)
    await mount.directories.look(handle)
    mount.tree.looked_at_seconds = -1
    await mount.tree_memory.shrink()
    assert len(mount.tree.nodes) == NODE_COUNT

    mount.directories.close(handle)
    await mount.tree_memory.shrink()

    assert len(mount.tree.nodes) == 1


async def test_directory_that_is_open_and_not_read_keeps_no_names(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    """As one that a program has opened for fsync() alone, or for openat()."""
    directory = refer_to(await mount.find(b"d"))
    handle = await mount.directories.open(directory)
    await let_go(mount)
    assert set(mount.tree.nodes.values()) == {mount.tree.root, directory}

    await mount.directories.look(handle)

    listed = [name for _, name, _ in mount.directories.entries(handle, DOT_COUNT)]
    assert sorted(listed) == [b"e", b"file", b"first"]
    mount.directories.close(handle)


async def test_directory_is_read_from_the_middle_on_at_first(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    handle = await mount.directories.open(mount.tree.root)
    assert mount.directories.needs_look(handle, DOT_COUNT + 1)

    await mount.directories.look(handle)

    assert not mount.directories.needs_look(handle, DOT_COUNT + 1)
    assert [name for _, name, _ in mount.directories.entries(handle, DOT_COUNT + 1)] == [b"f", b"link"]
    mount.directories.close(handle)


async def test_warm_up_holds_what_it_is_about(
    clock: MockClock, mount: FileSystemHarness, master: FakeMaster
) -> None:
    master.latency_seconds = 10 * REST_SECONDS
    progress: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            mount.control.warmup, [mount.tree.path], lambda told: progress.append(told.done_files)
        )
        await trio.sleep(5 * REST_SECONDS)
        mount.tree.looked_at_seconds = -1
        await mount.tree_memory.shrink()
        assert len(mount.tree.nodes) == NODE_COUNT

    assert progress[-1] == 3


async def test_run_that_is_not_on_disk_is_listed_for_that_first(
    clock: MockClock,
    client: FakeMasterClient,
    file_system: FileSystemHarness,
    master: FakeMaster,
    run: types.Run,
) -> None:
    for name in (b"aside", b"removed"):
        await file_system.write_file(name, b"content")
    await file_system.make_all_durable()
    await file_system.unlink(b"removed")
    await file_system.rename(b"aside", b"file")
    await file_system.make_all_durable()
    await seal(client, run)
    other = await make_run(client, USER)
    await seal(client, other)
    await trio.sleep(1)
    await file_system.namespace.load(file_system.managed.runs[other.task_id].root)
    await trio.sleep(2 * REST_SECONDS)
    file_system.tree_memory.names_max = 0
    await file_system.tree_memory.shrink()
    assert file_system.tree.is_let_go
    master.go_away()

    assert await file_system.find(b"file")


async def test_run_that_is_not_on_disk_stays_while_the_master_is_away(
    clock: MockClock, mount: FileSystemHarness, master: FakeMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(tree: RunTree) -> bool:
        raise MasterUnavailable

    monkeypatch.setattr(mount.sync, "keep_sealed", fail)

    await mount.tree_memory.shrink()

    assert len(mount.tree.nodes) == NODE_COUNT


async def test_run_that_the_disk_does_not_take_stays(
    clock: MockClock, mount: FileSystemHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def has_not(task_id: str) -> bool:
        return False

    monkeypatch.setattr(SealedCache, "has_tree", lambda cache, task_id: has_not(task_id))

    await mount.tree_memory.shrink()

    assert len(mount.tree.nodes) == NODE_COUNT


async def test_run_that_was_sealed_while_nobody_followed_it_leaves_the_memory(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tree_sync, "RUN_WATCHES_MAX", 1)
    await fill(client, run)
    other = await make_run(client, USER)
    await file_system.sync.load_run(file_system.tree)
    await trio.sleep(1)
    await file_system.sync.load_run(file_system.managed.runs[other.task_id])
    for one in (run, other):
        await seal(client, one)
    await trio.sleep(10 * REST_SECONDS)
    assert not file_system.tree.is_kept
    file_system.managed.runs[other.task_id].looked_at_seconds = trio.current_time()
    file_system.tree_memory.names_max = 0

    await file_system.tree_memory.shrink()

    assert file_system.tree.is_let_go


async def test_run_in_use_beside_an_open_one_stays(
    clock: MockClock, mount: FileSystemHarness, client: FakeMasterClient
) -> None:
    """The open one was looked into last, as a job does with its output."""
    output = await make_run(client, USER)
    await trio.sleep(1)
    await mount.namespace.load(mount.tree.root)
    await trio.sleep(1)
    await mount.namespace.load(mount.managed.runs[output.task_id].root)
    await trio.sleep(10 * REST_SECONDS)

    await mount.tree_memory.shrink()

    assert len(mount.tree.nodes) == NODE_COUNT


async def test_small_run_stays_beside_what_is_in_use(
    clock: MockClock, mount: FileSystemHarness, client: FakeMasterClient
) -> None:
    """However much that is: nothing is won by the small one."""
    small = await make_run(client, USER)
    await commit(client, small, file_commit(b"f", b"x"))
    await seal(client, small)
    await trio.sleep(1)
    await mount.namespace.load(mount.managed.runs[small.task_id].root)
    await trio.sleep(1)
    await mount.namespace.load(mount.tree.root)
    mount.tree_memory.names_max = NODE_COUNT - 2
    with mount.tree.held():
        await trio.sleep(10 * REST_SECONDS)

        await mount.tree_memory.shrink()

    assert mount.tree_memory.let_go_count == 0


async def test_run_that_is_looked_into_every_few_seconds_is_soon_left_in_peace(
    clock: MockClock, mount: FileSystemHarness, nursery: trio.Nursery
) -> None:
    nursery.start_soon(mount.tree_memory.run)
    other = next(tree for tree in mount.managed.runs.values() if tree is not mount.tree)
    for _ in range(100):
        await mount.namespace.load(mount.tree.root)
        await mount.namespace.load(other.root)
        await trio.sleep(2 * REST_SECONDS)

    assert 0 < mount.tree_memory.let_go_count < 5


async def test_directory_that_has_another_number_than_its_id_keeps_it(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    """Both mounts have made it: one has taken the id of the other's."""
    client = master.client(USER)
    last = await make_run(client, USER)
    await seal(client, last)
    async with open_both(client, run, tmp_path) as mounts:
        async with trio.open_nursery() as nursery:
            for mount in mounts:
                nursery.start_soon(mount.mkdir, b"d")
        for mount in mounts:
            await mount.make_all_durable()
        await seal(client, run)
        await trio.sleep(1)
        nodes = [await mount.find(b"d") for mount in mounts]
        (mount,) = (
            node_mount for node, node_mount in zip(nodes, mounts, strict=True) if node.ino != node.node_id
        )
        ino = (await mount.find(b"d")).ino
        await mount.namespace.load(mount.managed.runs[last.task_id].root)
        await trio.sleep(2 * REST_SECONDS)
        mount.tree_memory.names_max = 0

        await mount.tree_memory.shrink()

        assert mount.tree.is_let_go
        assert (await mount.find(b"d")).ino == ino


# --- what is in use --------------------------------------------------------------------------------------


async def test_what_the_kernel_refers_to_stays_with_what_is_above_it(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    deep = refer_to(await mount.find(b"d/e/deep"))

    await let_go(mount)

    assert list(mount.shown()) == [b"d", b"d/e", b"d/e/deep"]
    assert mount.managed.inodes[deep.ino] is deep
    assert mount.tree.label_of(deep) == f"{mount.tree.path}/d/e/deep"
    assert mount.asked_back[0] is deep  # before the directories that it is in


async def test_what_stayed_is_part_of_the_tree_that_comes_back(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    before = mount.shown()
    deep = refer_to(await mount.find(b"d/e/deep"))
    above = await mount.find(b"d")
    await let_go(mount)

    assert await mount.find(b"d/e/deep") is deep

    assert await mount.find(b"d") is above
    assert mount.shown() == before


async def test_link_counts_are_those_of_the_whole_run_all_the_while(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    directory, linked = refer_to(await mount.find(b"d")), refer_to(await mount.find(b"f/second"))
    refer_to(mount.tree.root)
    counted = [mount.tree.root, directory, linked]
    assert [node.link_count for node in counted] == [4, 3, 2]

    await let_go(mount)
    meanwhile = [node.link_count for node in counted]
    await mount.find(b"d")

    assert meanwhile == [node.link_count for node in counted] == [4, 3, 2]


async def test_what_the_kernel_forgets_goes_with_what_was_above_it_alone(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    deep, file = refer_to(await mount.find(b"d/e/deep")), refer_to(await mount.find(b"d/file"))
    await let_go(mount)

    forget(deep)
    assert list(mount.shown()) == [b"d", b"d/file"]
    forget(file)

    assert of_run(mount, mount.tree) == set(mount.tree.nodes) == {mount.tree.root.node_id}


async def test_what_is_forgotten_after_the_next_look_keeps_its_name(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    before = mount.shown()
    deep = refer_to(await mount.find(b"d/e/deep"))
    await let_go(mount)
    await mount.find(b"link")

    forget(deep)

    assert mount.shown() == before


async def test_open_file_is_read_on(clock: MockClock, mount: FileSystemHarness) -> None:
    handle = await mount.open(b"d/file", os.O_RDONLY)
    await let_go(mount)
    assert list(mount.shown()) == [b"d", b"d/file"]

    assert await mount.read(handle) == b"content"

    mount.close_handle(handle)
    assert len(mount.tree.nodes) == 1


async def test_files_that_were_read_ahead_of_do_not_stay(clock: MockClock, mount: FileSystemHarness) -> None:
    for path in (b"d/file", b"d/first"):
        await mount.read_file(path)

    await let_go(mount)

    gc.collect()
    assert in_memory(mount.tree) == 1


async def test_what_stays_is_asked_for_again_as_long_as_the_limit_is_passed(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    deep = refer_to(await mount.find(b"d/e/deep"))
    await let_go(mount)
    mount.asked_back.clear()

    await mount.tree_memory.shrink()
    assert mount.asked_back == []
    await trio.sleep(ASK_AGAIN_SECONDS)
    await mount.tree_memory.shrink()

    assert deep in mount.asked_back


async def test_run_that_was_let_go_of_and_is_removed_leaves_nothing(
    clock: MockClock, mount: FileSystemHarness
) -> None:
    tree = mount.tree
    deep = refer_to(await mount.find(b"d/e/deep"))
    await let_go(mount)
    user = mount.managed.root.users[USER]

    mount.managed.drop_run(user, types.Run(task=tree.task, name=tree.name, task_id=tree.task_id))
    assert of_run(mount, tree) == {deep.node_id}
    forget(deep)

    assert of_run(mount, tree) == set()
    with pytest.raises(NotFound):
        mount.namespace.inode(deep.ino)


async def test_limit_is_looked_at_again_and_again(
    clock: MockClock, mount: FileSystemHarness, nursery: trio.Nursery
) -> None:
    nursery.start_soon(mount.tree_memory.run)

    for _ in range(3):
        await mount.find(b"d/file")
        await mount.namespace.load(next(t.root for t in mount.managed.runs.values() if t is not mount.tree))
        await trio.sleep(REST_SECONDS + tree_memory.ROUND_SECONDS + 0.1)
        assert len(mount.tree.nodes) == 1
        await trio.sleep(tree_memory.COMES_BACK_SECONDS)

    assert mount.tree_memory.let_go_count == 3


async def test_limit_is_seldom_looked_at_while_nothing_is_listed(
    clock: MockClock, mount: FileSystemHarness, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount.tree_memory.names_max = len(mount.managed.inodes)
    look_count = 0

    async def count_look() -> None:
        nonlocal look_count
        look_count += 1

    monkeypatch.setattr(mount.tree_memory, "shrink", count_look)
    nursery.start_soon(mount.tree_memory.run)
    await trio.sleep(3600)

    assert look_count <= 3600 / tree_memory.QUIET_ROUND_SECONDS + 1


async def test_limit_is_looked_at_within_a_second_of_a_listing(
    clock: MockClock, client: FakeMasterClient, mount: FileSystemHarness, nursery: trio.Nursery
) -> None:
    mount.tree_memory.names_max = len(mount.managed.inodes)
    nursery.start_soon(mount.tree_memory.run)
    await trio.sleep(3 * tree_memory.ROUND_SECONDS)  # it is at rest now

    for _ in range(2):
        further = await make_run(client, USER)
        await fill(client, further)
        await seal(client, further)
        await trio.sleep(REST_SECONDS)
        await mount.namespace.load(mount.managed.runs[further.task_id].root)
    await trio.sleep(tree_memory.ROUND_SECONDS + 0.1)

    assert mount.tree_memory.let_go_count > 0
