"""RemoveNodes: many names that somebody has removed already, in one call."""

from __future__ import annotations

import pytest

from cloudai_fusefs.master_client import MasterClient
from cloudai_model import errors
from cloudai_model.limits import COMMIT_NODES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.storage_requests import (
    commit_one,
    directory_commit,
    file_commit,
    link,
    read_file,
    removal_of,
    remove_nodes,
    rename,
    request_id,
    seal,
    symlink_commit,
    tree_of,
)


def kinds(response: names.RemoveNodesResponse) -> list[str | None]:
    return [result.WhichOneof("result") for result in response.results]


async def test_files_and_symlinks_are_removed_in_one_call(client: MasterClient, run: types.Run) -> None:
    root = run.root_node_id
    file = await commit_one(client, run, file_commit(b"f", b"still open"))
    symlink = await commit_one(client, run, symlink_commit(b"s", b"f"))
    await commit_one(client, run, file_commit(b"d/inside", b"y"))
    tree = await tree_of(client, run)

    response = await remove_nodes(
        client,
        run,
        removal_of(root, b"f", file),
        removal_of(root, b"s", symlink),
        removal_of(tree[b"d"].node_id, b"inside", tree[b"d/inside"]),
    )

    assert kinds(response) == ["removed"] * 3
    left = await tree_of(client, run)
    assert sorted(left) == [b"", b"d"]
    assert left[b""].attributes.mtime_ns == left[b"d"].attributes.mtime_ns == 77
    assert response.revision == max(node.revision for node in left.values())
    assert await read_file(client, run, file) == b"still open"


async def test_file_of_another_generation_is_kept_and_told(client: MasterClient, run: types.Run) -> None:
    root = run.root_node_id
    old = await commit_one(client, run, file_commit(b"f", b"old"))
    gone = await commit_one(client, run, file_commit(b"g", b"x"))
    new = await commit_one(client, run, file_commit(b"f", b"new", node=old.node_id))

    response = await remove_nodes(client, run, removal_of(root, b"f", old), removal_of(root, b"g", gone))

    assert kinds(response) == ["kept", "removed"]
    assert response.results[0].kept == new
    assert (await tree_of(client, run)).keys() == {b"", b"f"}


async def test_name_that_stands_for_something_else_is_left(client: MasterClient, run: types.Run) -> None:
    root = run.root_node_id
    moved = await commit_one(client, run, file_commit(b"moved", b"1"))
    replaced = await commit_one(client, run, file_commit(b"replaced", b"2"))
    await rename(client, run, moved.node_id, (root, b"moved"), (root, b"elsewhere"))
    await commit_one(client, run, file_commit(b"replaced", b"3"))
    before = await tree_of(client, run)

    response = await remove_nodes(
        client,
        run,
        removal_of(root, b"moved", moved),
        removal_of(root, b"replaced", replaced),
        removal_of(1 << 40, b"f", types.Node(node_id=1 << 40)),
    )

    assert kinds(response) == ["removed"] * 3
    assert await tree_of(client, run) == before


async def test_one_name_of_two_is_removed(client: MasterClient, run: types.Run) -> None:
    root = run.root_node_id
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    await link(client, run, node.node_id, root, b"g")

    await remove_nodes(client, run, removal_of(root, b"f", node))

    left = await tree_of(client, run)
    assert sorted(left) == [b"", b"g"]
    assert left[b"g"].link_count == 1


async def test_removal_that_is_refused_leaves_the_others(client: MasterClient, run: types.Run) -> None:
    root = run.root_node_id
    directory = await commit_one(client, run, directory_commit(b"d"))
    file = await commit_one(client, run, file_commit(b"f", b"x"))
    highest = types.Node(node_id=(1 << 64) - 1)

    response = await remove_nodes(
        client,
        run,
        removal_of(root, b"d", directory),
        removal_of(root, b"..", file),
        removal_of(root, b"f", highest),
        removal_of(highest.node_id, b"f", file),
        removal_of(root, b"f", file),
    )

    assert kinds(response) == ["error", "error", "error", "error", "removed"]
    assert [result.error.reason for result in response.results[:4]] == [
        "IS_A_DIRECTORY",
        "INVALID_NAME",
        "INVALID_REQUEST",
        "INVALID_REQUEST",
    ]
    assert sorted(await tree_of(client, run)) == [b"", b"d"]


async def test_repeated_with_its_request_id_it_answers_the_same_and_removes_once(
    client: MasterClient, run: types.Run
) -> None:
    root = run.root_node_id
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    request = names.RemoveNodesRequest(
        request_id=request_id(), task_id=run.task_id, removals=[removal_of(root, b"f", node)]
    )
    first = await client.remove_nodes(request)
    await commit_one(client, run, file_commit(b"f", b"x", node=node.node_id))

    assert await client.remove_nodes(request) == first

    assert (await tree_of(client, run)).keys() == {b"", b"f"}


async def test_sealed_run_keeps_its_names(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    await seal(client, run)

    with pytest.raises(errors.RunSealed):
        await remove_nodes(client, run, removal_of(run.root_node_id, b"f", node))

    assert (await tree_of(client, run)).keys() == {b"", b"f"}


async def test_more_than_a_call_may_hold_is_refused(client: MasterClient, run: types.Run) -> None:
    removal = names.NodeRemoval(node_id=1 << 40, parent_node_id=run.root_node_id, name=b"f")
    with pytest.raises(errors.InvalidRequest):
        await remove_nodes(client, run, *[removal] * (COMMIT_NODES_MAX + 1))


async def test_run_of_somebody_else_is_not_found(other: MasterClient, run: types.Run) -> None:
    with pytest.raises(errors.NotFound):
        await remove_nodes(other, run)


async def test_watchers_hear_of_each_name_and_once_of_the_directory(
    client: MasterClient, run: types.Run
) -> None:
    root = run.root_node_id
    nodes = [await commit_one(client, run, file_commit(b"f%d" % n, b"x")) for n in range(3)]
    revision = (await client.list_tree(run.task_id)).revision

    await remove_nodes(client, run, *(removal_of(root, b"f%d" % n, node) for n, node in enumerate(nodes)))

    async with client.watch(names.WatchRequest(task_id=run.task_id, after_revision=revision)) as messages:
        changes = (await anext(messages)).changes
    assert [change.WhichOneof("change") for change in changes] == [*["edge_removed"] * 3, "node_changed"]
    assert [change.edge_removed.name for change in changes[:3]] == [b"f0", b"f1", b"f2"]
    assert changes[3].node_changed.node_id == root
