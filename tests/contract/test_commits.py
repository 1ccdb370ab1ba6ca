from __future__ import annotations

import secrets

import pytest

from cloudai_fusefs.master_client import MasterClient
from cloudai_model import errors
from cloudai_model.chunks import digest_of
from cloudai_model.limits import COMMIT_NODES_MAX, INLINE_BYTES_MAX, MESSAGE_BYTES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.storage_requests import (
    ATTRIBUTES,
    DIRECTORY,
    OTHER_USER,
    append,
    chunk_of,
    commit,
    commit_one,
    directory_commit,
    file_commit,
    link,
    list_pages,
    make_run,
    manifest_commit,
    node_id,
    put,
    read_file,
    remove,
    rename,
    request_id,
    seal,
    symlink_commit,
    tree_of,
)


async def test_committed_data_is_read_back(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"metrics.csv", b"epoch,loss\n"))
    assert await read_file(client, run, node) == b"epoch,loss\n"
    assert (node.size_bytes, node.generation, node.link_count) == (11, 1, 1)
    assert node.digest == digest_of(b"epoch,loss\n")
    assert node.attributes == ATTRIBUTES


async def test_commit_makes_missing_parents(client: MasterClient, run: types.Run) -> None:
    await commit_one(client, run, file_commit(b"a/b/c", b"x"))
    tree = await tree_of(client, run)
    assert sorted(tree) == [b"", b"a", b"a/b", b"a/b/c"]
    assert tree[b"a/b"].kind == DIRECTORY
    assert tree[b"a/b"].attributes.mode == 0o755


async def test_manifest_of_several_chunks_is_read_back(client: MasterClient, run: types.Run) -> None:
    await put(client, run, b"one", b"two")
    node = await commit_one(client, run, manifest_commit(b"f", [b"one", b"two", b"one"]))
    assert await read_file(client, run, node) == b"onetwoone"
    assert node.digest == b""


async def test_new_file_without_content_is_empty(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"empty"))
    assert (node.size_bytes, node.generation) == (0, 1)
    assert await client.get_manifest(run.task_id, node.node_id, 1) == []


async def test_same_content_again_is_no_new_generation(client: MasterClient, run: types.Run) -> None:
    first = await commit_one(client, run, file_commit(b"f", b"x"))
    again = await commit_one(client, run, file_commit(b"f", b"x", node=first.node_id))
    assert again.generation == 1
    assert again.revision == first.revision


async def test_earlier_generations_stay_readable(client: MasterClient, run: types.Run) -> None:
    first = await commit_one(client, run, file_commit(b"f", b"old"))
    second = await commit_one(client, run, file_commit(b"f", b"newer", node=first.node_id, place=False))
    assert second.generation == 2
    assert await read_file(client, run, first) == b"old"
    assert await read_file(client, run, second) == b"newer"


async def test_place_of_another_file_takes_the_name(client: MasterClient, run: types.Run) -> None:
    first = await commit_one(client, run, file_commit(b"f", b"mine"))
    second = await commit_one(client, run, file_commit(b"f", b"theirs"))
    assert (await tree_of(client, run))[b"f"].node_id == second.node_id
    assert await read_file(client, run, first) == b"mine"


async def test_place_moves_a_file_that_its_maker_renamed(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f.tmp", b"x"))
    moved = await commit_one(client, run, file_commit(b"f", None, node=node.node_id))
    assert sorted(await tree_of(client, run)) == [b"", b"f"]
    assert (moved.link_count, moved.generation) == (1, 1)


async def test_place_of_a_directory_that_is_there_keeps_its_id(client: MasterClient, run: types.Run) -> None:
    first = await commit_one(client, run, directory_commit(b"d"))
    await commit_one(client, run, file_commit(b"d/f", b"x"))
    attributes = types.Attributes(mode=0o700, mtime_ns=9)
    again = directory_commit(b"d")
    again.attributes.CopyFrom(attributes)
    second = await commit_one(client, run, again)
    assert second.node_id == first.node_id
    assert second.attributes == attributes
    assert sorted(await tree_of(client, run)) == [b"", b"d", b"d/f"]


@pytest.mark.parametrize("is_empty", [True, False])
async def test_place_moves_a_directory_that_its_maker_renamed_over_an_empty_one(
    client: MasterClient, run: types.Run, *, is_empty: bool
) -> None:
    made = await commit_one(client, run, directory_commit(b"made"))
    await commit_one(client, run, file_commit(b"made/f", b"x"))
    there = await commit_one(client, run, directory_commit(b"there"))
    if not is_empty:
        await commit_one(client, run, file_commit(b"there/g", b"y"))

    moved = await commit_one(client, run, directory_commit(b"there", node=made.node_id))

    tree = await tree_of(client, run)
    if is_empty:
        assert (moved.node_id, sorted(tree)) == (made.node_id, [b"", b"there", b"there/f"])
    else:
        assert (moved.node_id, sorted(tree)) == (
            there.node_id,
            [b"", b"made", b"made/f", b"there", b"there/g"],
        )


async def test_change_without_place_keeps_the_name(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    await commit_one(client, run, file_commit(b"elsewhere", b"y", node=node.node_id, place=False))
    assert sorted(await tree_of(client, run)) == [b"", b"f"]


async def test_change_without_place_of_a_removed_file_puts_it_back(
    client: MasterClient, run: types.Run
) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    await remove(client, run, run.root_node_id, b"f", node.node_id)
    changes = [file_commit(b"f", content, node=node.node_id, place=False) for content in (b"y", b"z")]
    (put_back, changed) = (await commit(client, run, *changes)).results
    assert (put_back.placed, changed.placed) == (True, False)
    back = (await tree_of(client, run))[b"f"]
    assert (back.node_id, back.link_count, back.generation) == (node.node_id, 1, 3)


@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.parametrize(
    "old", [file_commit(b"f", b"old"), symlink_commit(b"f", b"old")], ids=["file", "symlink"]
)
async def test_attributes_of_what_was_removed_do_not_put_it_back(
    client: MasterClient, run: types.Run, old: names.NodeCommit, *, is_replaced: bool
) -> None:
    node = await commit_one(client, run, old)
    await remove(client, run, run.root_node_id, b"f", node.node_id)
    if is_replaced:
        await commit_one(client, run, file_commit(b"f", b"new"))
    change = names.NodeCommit(node_id=node.node_id, kind=node.kind, path=b"f", attributes=ATTRIBUTES)
    change.symlink_target = old.symlink_target
    with pytest.raises(errors.NotFound):
        await commit_one(client, run, change)
    tree = await tree_of(client, run)
    assert sorted(tree) == ([b"", b"f"] if is_replaced else [b""])
    if is_replaced:
        assert await read_file(client, run, tree[b"f"]) == b"new"


async def test_change_without_place_of_an_unknown_node_is_not_found(
    client: MasterClient, run: types.Run
) -> None:
    with pytest.raises(errors.NotFound):
        await commit_one(client, run, file_commit(b"f", b"x", place=False))


async def test_attributes_of_the_root_are_changed(client: MasterClient, run: types.Run) -> None:
    change = directory_commit(b"", node=run.root_node_id)
    change.place = False
    await commit_one(client, run, change)
    assert (await tree_of(client, run))[b""].attributes == change.attributes


async def test_symlink_keeps_its_target(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, symlink_commit(b"l", b"../elsewhere\xff"))
    assert node.symlink_target == b"../elsewhere\xff"
    assert node.size_bytes == 13


async def test_later_commits_of_a_batch_see_earlier_ones(client: MasterClient, run: types.Run) -> None:
    id_of_file = node_id()
    response = await commit(
        client,
        run,
        directory_commit(b"d"),
        file_commit(b"d/f", b"x", node=id_of_file),
        file_commit(b"d/g", None, node=id_of_file),
    )
    assert [result.WhichOneof("result") for result in response.results] == ["node"] * 3
    assert sorted(await tree_of(client, run)) == [b"", b"d", b"d/g"]


async def test_failing_commit_of_a_batch_leaves_no_trace(client: MasterClient, run: types.Run) -> None:
    response = await commit(
        client,
        run,
        file_commit(b"a", b"x"),
        manifest_commit(b"new/b", [b"never put"]),
        file_commit(b"c", b"y"),
    )
    assert [result.error.reason for result in response.results] == ["", "MISSING_CHUNKS", ""]
    assert sorted(await tree_of(client, run)) == [b"", b"a", b"c"]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"", errors.InvalidName),
        (b"/absolute", errors.InvalidName),
        (b"a//b", errors.InvalidName),
        (b"a/./b", errors.InvalidName),
        (b"../escape", errors.InvalidName),
        (b"a/..", errors.InvalidName),
        (b"nul\0byte", errors.InvalidName),
        (b"n" * 256, errors.NameTooLong),
        (b"/".join([b"d"] * 257), errors.NameTooLong),
        (b"/".join([b"d" * 255] * 33), errors.NameTooLong),
    ],
)
async def test_bad_path_is_refused(
    client: MasterClient, run: types.Run, path: bytes, error: type[errors.CloudAIError]
) -> None:
    with pytest.raises(error):
        await commit_one(client, run, file_commit(path, b"x"))
    assert sorted(await tree_of(client, run)) == [b""]


async def test_deepest_path_and_longest_name_are_accepted(client: MasterClient, run: types.Run) -> None:
    await commit_one(client, run, file_commit(b"/".join([b"d"] * 256), b"x"))
    await commit_one(client, run, file_commit(b"n" * 255, b"x"))
    assert len(await tree_of(client, run)) == 258


@pytest.mark.parametrize("bad_id", [0, 1, (1 << 32) - 1, 1 << 63, (1 << 64) - 1])
async def test_node_id_out_of_range_is_refused(client: MasterClient, run: types.Run, bad_id: int) -> None:
    change = file_commit(b"f", b"x")
    change.node_id = bad_id
    with pytest.raises(errors.InvalidRequest):
        await commit_one(client, run, change)


async def test_node_id_of_another_kind_is_refused(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    with pytest.raises(errors.InvalidRequest):
        await commit_one(client, run, directory_commit(b"d", node=node.node_id))


async def test_node_of_no_kind_is_refused(client: MasterClient, run: types.Run) -> None:
    with pytest.raises(errors.InvalidRequest):
        await commit_one(client, run, names.NodeCommit(node_id=node_id(), path=b"f", place=True))


async def test_mode_beyond_its_bits_is_refused(client: MasterClient, run: types.Run) -> None:
    change = file_commit(b"f", b"x")
    change.attributes.mode = 0o100644
    with pytest.raises(errors.InvalidRequest):
        await commit_one(client, run, change)


async def test_path_through_a_file_is_not_a_directory(client: MasterClient, run: types.Run) -> None:
    await commit_one(client, run, file_commit(b"f", b"x"))
    with pytest.raises(errors.NotADirectory):
        await commit_one(client, run, file_commit(b"f/g", b"x"))


async def test_file_onto_a_directory_is_refused(client: MasterClient, run: types.Run) -> None:
    await commit_one(client, run, directory_commit(b"d"))
    with pytest.raises(errors.IsADirectory):
        await commit_one(client, run, file_commit(b"d", b"x"))


async def test_directory_onto_a_file_is_refused(client: MasterClient, run: types.Run) -> None:
    await commit_one(client, run, file_commit(b"name", b"x"))
    with pytest.raises(errors.AlreadyExists):
        await commit_one(client, run, directory_commit(b"name"))
    assert await read_file(client, run, (await tree_of(client, run))[b"name"]) == b"x"


async def test_removed_directory_does_not_come_back_over_a_file(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, directory_commit(b"name"))
    await remove(client, run, run.root_node_id, b"name", node.node_id)
    await commit_one(client, run, file_commit(b"name", b"x"))
    again = directory_commit(b"name", node=node.node_id)
    again.place = False
    with pytest.raises(errors.AlreadyExists):
        await commit_one(client, run, again)
    assert await read_file(client, run, (await tree_of(client, run))[b"name"]) == b"x"


async def test_directory_into_itself_is_refused(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, directory_commit(b"d"))
    with pytest.raises(errors.InvalidRequest):
        await commit_one(client, run, directory_commit(b"d/e", node=node.node_id))
    assert sorted(await tree_of(client, run)) == [b"", b"d"]


@pytest.mark.parametrize("target", [b"", b"nul\0", b"t" * 4096])
async def test_bad_symlink_target_is_refused(client: MasterClient, run: types.Run, target: bytes) -> None:
    with pytest.raises(errors.InvalidRequest):
        await commit_one(client, run, symlink_commit(b"l", target))


async def test_missing_chunks_are_named(client: MasterClient, run: types.Run) -> None:
    """D7. A commit names only chunks that the master has on disk."""
    await put(client, run, b"there")
    with pytest.raises(errors.MissingChunks) as caught:
        await commit_one(client, run, manifest_commit(b"f", [b"there", b"not there"]))
    assert caught.value.digests == (digest_of(b"not there"),)
    assert list(await tree_of(client, run)) == [b""]


async def test_refused_batch_is_tried_anew_once_its_chunks_are_there(
    client: MasterClient, run: types.Run
) -> None:
    request = names.CommitNodesRequest(
        request_id=request_id(), task_id=run.task_id, commits=[manifest_commit(b"f", [b"late"])]
    )
    assert (await client.commit_nodes(request)).results[0].error.reason == "MISSING_CHUNKS"
    await put(client, run, b"late")
    assert (await client.commit_nodes(request)).results[0].node.size_bytes == 4


async def test_digest_that_is_not_the_datas_is_refused(client: MasterClient, run: types.Run) -> None:
    other = digest_of(secrets.token_bytes(8))
    change = file_commit(b"f", b"x")
    change.digest = other
    with pytest.raises(errors.DigestMismatch):
        await commit_one(client, run, change)
    assert await client.find_missing_chunks(run.task_id, [other]) == {other}


async def test_sizes_that_do_not_add_up_are_refused(client: MasterClient, run: types.Run) -> None:
    await put(client, run, b"abc")
    wrong_sum = manifest_commit(b"f", [b"abc"])
    wrong_sum.size_bytes = 4
    wrong_length = manifest_commit(b"f", [b"abc"])
    wrong_length.manifest.chunks[0].length_bytes = wrong_length.size_bytes = 2
    wrong_data = file_commit(b"f", b"abc")
    wrong_data.size_bytes = 2
    for change in (wrong_sum, wrong_length, wrong_data):
        with pytest.raises(errors.SizeMismatch):
            await commit_one(client, run, change)


@pytest.mark.parametrize("length_bytes", [0, 4 * 1024 * 1024 + 1])
async def test_chunk_of_no_or_too_many_bytes_is_refused(
    client: MasterClient, run: types.Run, length_bytes: int
) -> None:
    change = file_commit(b"f")
    change.manifest.chunks.add(length_bytes=length_bytes, digest=b"d" * 32)
    change.size_bytes = length_bytes
    with pytest.raises(errors.SizeMismatch):
        await commit_one(client, run, change)


async def test_somebody_elses_chunk_is_missing(
    client: MasterClient, other: MasterClient, run: types.Run
) -> None:
    theirs = await make_run(other, OTHER_USER)
    await put(other, theirs, b"a secret of user-456")
    with pytest.raises(errors.MissingChunks):
        await commit_one(client, run, manifest_commit(b"f", [b"a secret of user-456"]))


async def test_data_over_the_inline_limit_is_refused(client: MasterClient, run: types.Run) -> None:
    await commit_one(client, run, file_commit(b"most", bytes(INLINE_BYTES_MAX)))
    with pytest.raises(errors.InvalidRequest):
        await commit_one(client, run, file_commit(b"more", bytes(INLINE_BYTES_MAX + 1)))


async def test_batch_over_the_limit_is_refused(client: MasterClient, run: types.Run) -> None:
    with pytest.raises(errors.InvalidRequest):
        await commit(client, run, *[directory_commit(b"d")] * (COMMIT_NODES_MAX + 1))


async def test_message_over_the_limit_is_refused(client: MasterClient, run: types.Run) -> None:
    with pytest.raises(errors.InvalidRequest):
        await commit(client, run, file_commit(b"f", bytes(MESSAGE_BYTES_MAX + 1)))
    await commit_one(client, run, file_commit(b"f", b"and the connection goes on"))


async def test_full_batch_of_small_files_is_read_back(client: MasterClient, run: types.Run) -> None:
    files = [file_commit(b"d%d/f%d" % (i % 10, i), b"content %d" % i) for i in range(COMMIT_NODES_MAX)]
    response = await commit(client, run, *files)
    assert {result.WhichOneof("result") for result in response.results} == {"node"}
    assert await read_file(client, run, response.results[-1].node) == b"content 999"
    assert sum(len(page.edges) for page in await list_pages(client, run)) == COMMIT_NODES_MAX + 10


async def test_commit_in_a_sealed_run_is_refused(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    await seal(client, run)
    with pytest.raises(errors.RunSealed):
        await commit(client, run, file_commit(b"g", b"y"))
    with pytest.raises(errors.RunSealed):
        await append(client, run, node, b"y")
    with pytest.raises(errors.RunSealed):
        await link(client, run, node.node_id, run.root_node_id, b"g")
    with pytest.raises(errors.RunSealed):
        await rename(client, run, node.node_id, (run.root_node_id, b"f"), (run.root_node_id, b"g"))
    with pytest.raises(errors.RunSealed):
        await remove(client, run, run.root_node_id, b"f", node.node_id)
    assert await read_file(client, run, node) == b"x"


async def test_appended_chunks_follow_the_content(client: MasterClient, run: types.Run) -> None:
    first = await commit_one(client, run, file_commit(b"train.log", b"one\n"))
    second = await append(client, run, first, b"two\n")
    third = await append(client, run, second, b"three\n", b"four\n")
    assert await read_file(client, run, third) == b"one\ntwo\nthree\nfour\n"
    assert (third.generation, third.size_bytes, third.digest) == (3, 19, b"")


async def test_generations_before_an_append_stay_what_they_were(client: MasterClient, run: types.Run) -> None:
    empty = await commit_one(client, run, file_commit(b"train.log"))
    first = await append(client, run, empty, b"one\n")
    second = await append(client, run, first, b"two\n")
    assert first.digest == digest_of(b"one\n")
    merged = await commit_one(
        client, run, file_commit(b"train.log", b"one\ntwo\n", node=empty.node_id, place=False)
    )
    assert await read_file(client, run, empty) == b""
    assert await read_file(client, run, first) == b"one\n"
    assert await read_file(client, run, second) == b"one\ntwo\n"
    assert await read_file(client, run, merged) == b"one\ntwo\n"
    assert merged.generation == 4


async def test_append_to_an_earlier_generation_is_refused(client: MasterClient, run: types.Run) -> None:
    first = await commit_one(client, run, file_commit(b"f", b"x"))
    await append(client, run, first, b"y")
    with pytest.raises(errors.GenerationChanged):
        await append(client, run, first, b"z")


async def test_append_that_does_not_add_up_is_refused(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    request = names.AppendFileRequest(
        request_id=request_id(),
        task_id=run.task_id,
        node_id=node.node_id,
        expected_generation=1,
        size_bytes=2,
    )
    with pytest.raises(errors.InvalidRequest):
        await client.append_file(request)
    request.chunks.append(chunk_of(b"nowhere"))
    with pytest.raises(errors.SizeMismatch):
        await client.append_file(request)
    request.size_bytes = 8
    with pytest.raises(errors.MissingChunks):
        await client.append_file(request)


async def test_append_to_a_directory_is_refused(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, directory_commit(b"d"))
    with pytest.raises(errors.IsADirectory):
        await append(client, run, node, b"x")


async def test_commit_repeated_with_its_request_id_answers_the_same(
    client: MasterClient, run: types.Run
) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"one"))
    request = names.CommitNodesRequest(
        request_id=request_id(),
        task_id=run.task_id,
        commits=[file_commit(b"f", b"two", node=node.node_id, place=False)],
    )
    first = await client.commit_nodes(request)
    await commit_one(client, run, file_commit(b"f", b"three", node=node.node_id, place=False))
    assert await client.commit_nodes(request) == first
    assert await read_file(client, run, (await tree_of(client, run))[b"f"]) == b"three"


async def test_append_repeated_with_its_request_id_appends_once(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    await put(client, run, b"y")
    request = names.AppendFileRequest(
        request_id=request_id(),
        task_id=run.task_id,
        node_id=node.node_id,
        expected_generation=1,
        chunks=[chunk_of(b"y")],
        size_bytes=2,
    )
    first = await client.append_file(request)
    assert await client.append_file(request) == first
    assert await read_file(client, run, first.node) == b"xy"


async def test_request_id_of_another_request_is_refused(client: MasterClient, run: types.Run) -> None:
    request = names.CommitNodesRequest(
        request_id=request_id(), task_id=run.task_id, commits=[file_commit(b"f", b"x")]
    )
    await client.commit_nodes(request)
    request.commits[0].path = b"g"
    with pytest.raises(errors.InvalidRequest):
        await client.commit_nodes(request)


@pytest.mark.parametrize("bad_id", [b"", b"short", b"x" * 17])
async def test_request_id_of_another_length_is_refused(
    client: MasterClient, run: types.Run, bad_id: bytes
) -> None:
    with pytest.raises(errors.InvalidRequest):
        await client.commit_nodes(names.CommitNodesRequest(request_id=bad_id, task_id=run.task_id))
