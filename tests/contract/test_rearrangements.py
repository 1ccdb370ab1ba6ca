from __future__ import annotations

import pytest

from cloudai_fusefs.master_client import MasterClient
from cloudai_model import errors
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.storage_requests import (
    commit_one,
    directory_commit,
    file_commit,
    link,
    read_file,
    remove,
    rename,
    request_id,
    tree_of,
)

BAD_NAMES = [
    (b"", errors.InvalidName),
    (b".", errors.InvalidName),
    (b"..", errors.InvalidName),
    (b"a/b", errors.InvalidName),
    (b"a\0b", errors.InvalidName),
    (b"n" * 256, errors.NameTooLong),
]


async def test_rename_gives_a_new_name(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"old", b"x"))
    root = run.root_node_id
    await rename(client, run, node.node_id, (root, b"old"), (root, b"new"))
    tree = await tree_of(client, run)
    assert sorted(tree) == [b"", b"new"]
    assert tree[b"new"].attributes.ctime_ns == 77
    assert tree[b""].attributes.mtime_ns == 77


async def test_rename_replaces_a_file_that_stays_readable(client: MasterClient, run: types.Run) -> None:
    old = await commit_one(client, run, file_commit(b"last", b"old"))
    new = await commit_one(client, run, file_commit(b"last.tmp", b"new"))
    root = run.root_node_id
    await rename(client, run, new.node_id, (root, b"last.tmp"), (root, b"last"))
    tree = await tree_of(client, run)
    assert {path: node.node_id for path, node in tree.items()} == {b"": root, b"last": new.node_id}
    assert await read_file(client, run, old) == b"old"


async def test_rename_of_a_directory_takes_its_entries_along(client: MasterClient, run: types.Run) -> None:
    await commit_one(client, run, file_commit(b"a/d/f", b"x"))
    await commit_one(client, run, directory_commit(b"b"))
    tree = await tree_of(client, run)
    a, b, d = (tree[path].node_id for path in (b"a", b"b", b"a/d"))
    await rename(client, run, d, (a, b"d"), (b, b"e"))
    assert sorted(await tree_of(client, run)) == [b"", b"a", b"b", b"b/e", b"b/e/f"]


async def test_rename_onto_a_name_with_no_replace_is_refused(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    await commit_one(client, run, file_commit(b"g", b"y"))
    root = run.root_node_id
    with pytest.raises(errors.AlreadyExists):
        await rename(client, run, node.node_id, (root, b"f"), (root, b"g"), no_replace=True)
    await rename(client, run, node.node_id, (root, b"f"), (root, b"h"), no_replace=True)


async def test_rename_between_two_names_of_one_file_does_nothing(
    client: MasterClient, run: types.Run
) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    root = run.root_node_id
    await link(client, run, node.node_id, root, b"g")
    assert (await rename(client, run, node.node_id, (root, b"f"), (root, b"g"))).already_named
    assert sorted(await tree_of(client, run)) == [b"", b"f", b"g"]
    assert not (await rename(client, run, node.node_id, (root, b"f"), (root, b"h"))).already_named


async def test_rename_keeps_the_rules_for_files_and_directories(client: MasterClient, run: types.Run) -> None:
    file = await commit_one(client, run, file_commit(b"f", b"x"))
    empty = await commit_one(client, run, directory_commit(b"empty"))
    full = await commit_one(client, run, directory_commit(b"full"))
    await commit_one(client, run, file_commit(b"full/f", b"x"))
    root = run.root_node_id
    with pytest.raises(errors.IsADirectory):
        await rename(client, run, file.node_id, (root, b"f"), (root, b"empty"))
    with pytest.raises(errors.NotADirectory):
        await rename(client, run, empty.node_id, (root, b"empty"), (root, b"f"))
    with pytest.raises(errors.DirectoryNotEmpty):
        await rename(client, run, empty.node_id, (root, b"empty"), (root, b"full"))
    with pytest.raises(errors.InvalidRequest):
        await rename(client, run, full.node_id, (root, b"full"), (full.node_id, b"self"))
    await rename(client, run, full.node_id, (root, b"full"), (root, b"empty"))
    assert sorted(await tree_of(client, run)) == [b"", b"empty", b"empty/f", b"f"]


async def test_rename_of_another_node_than_the_name_stands_for_is_not_found(
    client: MasterClient, run: types.Run
) -> None:
    await commit_one(client, run, file_commit(b"f", b"x"))
    other = await commit_one(client, run, file_commit(b"g", b"x"))
    root = run.root_node_id
    with pytest.raises(errors.NotFound):
        await rename(client, run, other.node_id, (root, b"f"), (root, b"h"))
    with pytest.raises(errors.NotFound):
        await rename(client, run, other.node_id, (root, b"missing"), (root, b"h"))


@pytest.mark.parametrize(("name", "error"), BAD_NAMES)
async def test_bad_name_is_refused(
    client: MasterClient, run: types.Run, name: bytes, error: type[errors.CloudAIError]
) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    root = run.root_node_id
    with pytest.raises(error):
        await rename(client, run, node.node_id, (root, b"f"), (root, name))
    with pytest.raises(error):
        await link(client, run, node.node_id, root, name)
    with pytest.raises(error):
        await remove(client, run, root, name, node.node_id)
    assert sorted(await tree_of(client, run)) == [b"", b"f"]


async def test_link_is_a_further_name(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    linked = await link(client, run, node.node_id, run.root_node_id, b"g")
    assert linked.link_count == 2
    await remove(client, run, run.root_node_id, b"f", node.node_id)
    left = (await tree_of(client, run))[b"g"]
    assert (left.node_id, left.link_count) == (node.node_id, 1)


async def test_link_is_refused_where_it_cannot_be(client: MasterClient, run: types.Run) -> None:
    file = await commit_one(client, run, file_commit(b"f", b"x"))
    directory = await commit_one(client, run, directory_commit(b"d"))
    with pytest.raises(errors.AlreadyExists):
        await link(client, run, file.node_id, run.root_node_id, b"d")
    with pytest.raises(errors.IsADirectory):
        await link(client, run, directory.node_id, run.root_node_id, b"e")
    with pytest.raises(errors.NotADirectory):
        await link(client, run, file.node_id, file.node_id, b"g")
    with pytest.raises(errors.NotFound):
        await link(client, run, file.node_id, 1 << 40, b"g")
    with pytest.raises(errors.NotFound):
        await link(client, run, 1 << 40, run.root_node_id, b"g")


async def test_removed_file_stays_readable_by_id_and_generation(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"still open"))
    await remove(client, run, run.root_node_id, b"f", node.node_id)
    tree = await tree_of(client, run)
    assert sorted(tree) == [b""]
    assert tree[b""].attributes.mtime_ns == 77
    assert await read_file(client, run, node) == b"still open"


async def test_remove_without_a_name_takes_all_names_of_the_node(
    client: MasterClient, run: types.Run
) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"1"))
    directory = await commit_one(client, run, directory_commit(b"d"))
    await link(client, run, node.node_id, directory.node_id, b"second")

    await remove(client, run, 0, b"", node.node_id)

    assert sorted(await tree_of(client, run)) == [b"", b"d"]
    with pytest.raises(errors.NotFound):
        await remove(client, run, 0, b"", node.node_id)


async def test_remove_of_a_directory_with_entries_is_refused(client: MasterClient, run: types.Run) -> None:
    directory = await commit_one(client, run, directory_commit(b"d"))
    file = await commit_one(client, run, file_commit(b"d/f", b"x"))
    with pytest.raises(errors.DirectoryNotEmpty):
        await remove(client, run, run.root_node_id, b"d", directory.node_id)
    await remove(client, run, directory.node_id, b"f", file.node_id)
    await remove(client, run, run.root_node_id, b"d", directory.node_id)
    assert sorted(await tree_of(client, run)) == [b""]


async def test_name_in_a_removed_directory_is_not_found(client: MasterClient, run: types.Run) -> None:
    directory = await commit_one(client, run, directory_commit(b"d"))
    file = await commit_one(client, run, file_commit(b"f", b"x"))
    await remove(client, run, run.root_node_id, b"d", directory.node_id)
    with pytest.raises(errors.NotFound):
        await link(client, run, file.node_id, directory.node_id, b"g")


async def test_remove_of_another_node_than_the_name_stands_for_is_not_found(
    client: MasterClient, run: types.Run
) -> None:
    old = await commit_one(client, run, file_commit(b"f", b"x"))
    await commit_one(client, run, file_commit(b"f", b"y"))
    with pytest.raises(errors.NotFound):
        await remove(client, run, run.root_node_id, b"f", old.node_id)


async def test_remove_repeated_with_its_request_id_removes_once(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    request = names.RemoveRequest(
        request_id=request_id(),
        task_id=run.task_id,
        node_id=node.node_id,
        parent_node_id=run.root_node_id,
        name=b"f",
    )
    first = await client.remove(request)
    assert await client.remove(request) == first


async def test_number_beyond_63_bits_is_refused(client: MasterClient, run: types.Run) -> None:
    highest = (1 << 64) - 1
    with pytest.raises(errors.InvalidRequest):
        await remove(client, run, highest, b"f", highest)
    with pytest.raises(errors.InvalidRequest):
        await client.get_manifest(run.task_id, highest, highest)
