"""The bytes of files: whole chunks and ranges, their blocks' digests, and many small files at once."""

from __future__ import annotations

import secrets

import pytest

from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.wire_chunks import ChunkAnswer
from cloudai_model import errors
from cloudai_model.chunks import block_digests_of, blocks_match, digest_of
from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, READ_FILES_BYTES_MAX, READ_FILES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.master_under_test import Master
from support.storage_requests import (
    USER,
    append,
    commit,
    commit_one,
    directory_commit,
    file_commit,
    manifest_commit,
    put,
    remove,
    request_id,
)


async def file_of(client: MasterClient, run: types.Run, *data: bytes, path: bytes = b"f") -> types.Node:
    """A file of these chunks."""
    await put(client, run, *data)
    return await commit_one(client, run, manifest_commit(path, data))


@pytest.mark.parametrize(
    ("offset_bytes", "length_bytes"),
    [(0, 1), (5, 4096), (BLOCK_BYTES - 1, 2), (3 * BLOCK_BYTES, 7), (0, 3 * BLOCK_BYTES + 7), (9, 0)],
)
async def test_range_is_read_with_and_without_the_digests_of_blocks(
    client: MasterClient, run: types.Run, offset_bytes: int, length_bytes: int
) -> None:
    data = secrets.token_bytes(3 * BLOCK_BYTES + 7)
    node = await file_of(client, run, b"first chunk", data)
    expected = data[offset_bytes : offset_bytes + length_bytes] if length_bytes else data[offset_bytes:]
    # Again and again: what a master remembers of a file is as good as what it looked up.
    for _ in range(3):
        for with_block_digests in (False, True):
            found = await client.read_range(
                run.task_id,
                node.node_id,
                1,
                1,
                offset_bytes,
                length_bytes,
                with_block_digests=with_block_digests,
            )
            assert bytes(found.data) == expected
            assert found.block_digests == (block_digests_of(data) if with_block_digests else b"")


async def test_block_of_a_full_chunk_is_verified_by_the_digests(client: MasterClient, run: types.Run) -> None:
    data = secrets.token_bytes(CHUNK_BYTES_MAX)
    node = await file_of(client, run, data)
    found = await client.read_range(
        run.task_id, node.node_id, 1, 0, 17 * BLOCK_BYTES, 2 * BLOCK_BYTES, with_block_digests=True
    )
    assert len(found.block_digests) == 32 * (CHUNK_BYTES_MAX // BLOCK_BYTES)
    assert blocks_match(found.data, 17, found.block_digests)
    assert not blocks_match(found.data, 18, found.block_digests)


async def test_chunk_of_one_block_has_its_own_digest_for_it(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"small"))
    found = await client.read_range(run.task_id, node.node_id, 1, 0, 1, 2, with_block_digests=True)
    assert (bytes(found.data), found.block_digests) == (b"ma", digest_of(b"small"))


@pytest.mark.parametrize(("offset_bytes", "length_bytes"), [(10, 0), (10, 1), (5, 6), (2**32 - 1, 1)])
async def test_range_outside_the_chunk_is_refused(
    client: MasterClient, run: types.Run, offset_bytes: int, length_bytes: int
) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"0123456789"))
    for _ in range(2):
        with pytest.raises(errors.InvalidRequest):
            await client.read_range(
                run.task_id, node.node_id, 1, 0, offset_bytes, length_bytes, with_block_digests=False
            )


async def test_whole_chunk_is_verified_on_request(client: MasterClient, run: types.Run) -> None:
    data = secrets.token_bytes(CHUNK_BYTES_MAX)
    node = await file_of(client, run, data)
    answer = await client.read_chunk(run.task_id, node.node_id, 1, 0, verify=True)
    assert answer == ChunkAnswer(memoryview(data), digest_of(data), block_digests_of(data))


async def test_damage_is_sent_until_verify_is_asked_for_and_healed_by_the_next_writer(
    master: Master, client: MasterClient, run: types.Run
) -> None:
    data = secrets.token_bytes(2 * BLOCK_BYTES)
    node = await file_of(client, run, data)
    master.damage_chunk(USER, digest_of(data))
    sent = await client.read_chunk(run.task_id, node.node_id, 1, 0)
    assert len(sent.data) == len(data)
    assert sent.digest == digest_of(sent.data) != digest_of(data)
    with pytest.raises(errors.ChunkDamaged):
        await client.read_chunk(run.task_id, node.node_id, 1, 0, verify=True)
    assert await client.find_missing_chunks(run.task_id, [digest_of(data)]) == {digest_of(data)}
    await put(client, run, data)
    assert (await client.read_chunk(run.task_id, node.node_id, 1, 0, verify=True)).data == data
    found = await client.read_range(run.task_id, node.node_id, 1, 0, 0, 1, with_block_digests=True)
    assert (bytes(found.data), found.block_digests) == (data[:1], block_digests_of(data))


async def test_each_generation_is_read_as_it_was(client: MasterClient, run: types.Run) -> None:
    first = await file_of(client, run, b"one")
    second = await append(client, run, first, b"two")
    await commit_one(client, run, file_commit(b"f", b"three", node=first.node_id, place=False))
    for _ in range(2):
        for generation, index, data in ((1, 0, b"one"), (2, 0, b"one"), (2, 1, b"two"), (3, 0, b"three")):
            assert (await client.read_chunk(run.task_id, first.node_id, generation, index)).data == data
        with pytest.raises(errors.NotFound):
            await client.read_chunk(run.task_id, second.node_id, 1, 1)


async def test_what_is_remembered_is_not_for_others(
    client: MasterClient, other: MasterClient, run: types.Run
) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"mine"))
    for _ in range(2):
        assert bytes((await client.read_chunk(run.task_id, node.node_id, 1, 0)).data) == b"mine"
        for attempt in (
            lambda: other.read_chunk(run.task_id, node.node_id, 1, 0),
            lambda: other.read_range(run.task_id, node.node_id, 1, 0, 0, 1, with_block_digests=True),
            lambda: other.read_files(run.task_id, [(node.node_id, 1)]),
        ):
            with pytest.raises(errors.NotFound) as caught:
                await attempt()
            with pytest.raises(errors.NotFound) as absent:
                await other.read_chunk("no-such-run", node.node_id, 1, 0)
            assert str(caught.value) == str(absent.value).replace("no-such-run", run.task_id)


async def test_removed_run_is_not_read(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    await client.read_chunk(run.task_id, node.node_id, 1, 0)
    await remove(client, run, run.root_node_id, b"f", node.node_id)
    assert bytes((await client.read_chunk(run.task_id, node.node_id, 1, 0)).data) == b"x"
    await client.remove_run(names.RemoveRunRequest(request_id=request_id(), task_id=run.task_id))
    with pytest.raises(errors.NotFound):
        await client.read_chunk(run.task_id, node.node_id, 1, 0)


async def test_most_files_that_one_call_takes_are_read_in_their_order(
    client: MasterClient, run: types.Run
) -> None:
    data = [secrets.token_bytes(100) for _ in range(READ_FILES_MAX)]
    response = await commit(client, run, *(file_commit(b"f%d" % i, chunk) for i, chunk in enumerate(data)))
    versions = [(result.node.node_id, 1) for result in response.results]
    assert await client.read_files(run.task_id, versions) == data
    assert await client.read_files(run.task_id, versions[::-1]) == data[::-1]
    with pytest.raises(errors.InvalidRequest):
        await client.read_files(run.task_id, [*versions, versions[0]])


async def test_files_of_any_generation_are_read(client: MasterClient, run: types.Run) -> None:
    first = await file_of(client, run, b"one")
    await append(client, run, first, b"two")
    await commit_one(client, run, file_commit(b"f", b"three", node=first.node_id, place=False))
    versions = [(first.node_id, generation) for generation in (1, 2, 3, 4)]
    assert await client.read_files(run.task_id, versions) == [b"one", None, b"three", None]


async def test_what_is_no_file_of_one_chunk_is_none_in_its_place(
    client: MasterClient, run: types.Run
) -> None:
    long = await file_of(client, run, b"1", b"2")
    directory = await commit_one(client, run, directory_commit(b"d"))
    good = await commit_one(client, run, file_commit(b"good", b"good"))
    versions = [(long.node_id, 1), (directory.node_id, 0), (1 << 40, 1), (good.node_id, 1)]
    assert await client.read_files(run.task_id, versions) == [None, None, None, b"good"]
    assert await client.read_files(run.task_id, []) == []


async def test_answer_with_files_ends_when_it_is_full(client: MasterClient, run: types.Run) -> None:
    third = READ_FILES_BYTES_MAX // 3
    data = [secrets.token_bytes(size) for size in (third, third, third, third, CHUNK_BYTES_MAX)]
    nodes = [await file_of(client, run, chunk, path=b"f%d" % index) for index, chunk in enumerate(data)]
    versions = [(node.node_id, 1) for node in nodes]
    assert await client.read_files(run.task_id, versions) == data[:3]
    assert await client.read_files(run.task_id, versions[3:]) == data[3:4]
    assert await client.read_files(run.task_id, versions[4:]) == data[4:]
