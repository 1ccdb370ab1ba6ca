from __future__ import annotations

import secrets

import pytest

from cloudai_fusefs.master_client import MasterClient
from cloudai_model import errors
from cloudai_model.chunks import digest_of
from cloudai_model.limits import CHUNK_BYTES_MAX, FIND_MISSING_DIGESTS_MAX
from cloudai_proto.storage.v1 import types_pb2 as types
from support.storage_requests import commit_one, directory_commit, file_commit, manifest_commit, put, seal


async def test_missing_chunks_are_those_not_put(client: MasterClient, run: types.Run) -> None:
    there, absent = secrets.token_bytes(10), secrets.token_bytes(10)
    await put(client, run, there)
    asked = [digest_of(there), digest_of(absent)]
    assert await client.find_missing_chunks(run.task_id, asked) == {digest_of(absent)}


async def test_more_digests_than_one_call_takes_are_asked_for_in_several(
    client: MasterClient, run: types.Run
) -> None:
    asked = [digest_of(b"never put %d" % i) for i in range(FIND_MISSING_DIGESTS_MAX + 1)]
    assert len(await client.find_missing_chunks(run.task_id, asked)) == FIND_MISSING_DIGESTS_MAX + 1


async def test_full_chunk_is_read_back(client: MasterClient, run: types.Run) -> None:
    chunk = secrets.token_bytes(CHUNK_BYTES_MAX)
    await client.put_chunk(run.task_id, digest_of(chunk), memoryview(chunk))
    node = await commit_one(client, run, manifest_commit(b"f", [chunk]))
    assert (await client.read_chunk(run.task_id, node.node_id, 1, 0)).data == chunk


async def test_chunk_put_twice_is_one_chunk(client: MasterClient, run: types.Run) -> None:
    await put(client, run, b"same", b"same")
    node = await commit_one(client, run, manifest_commit(b"f", [b"same"]))
    assert bytes((await client.read_chunk(run.task_id, node.node_id, 1, 0)).data) == b"same"


async def test_chunk_with_another_digest_is_refused(client: MasterClient, run: types.Run) -> None:
    wrong = digest_of(secrets.token_bytes(8))
    with pytest.raises(errors.DigestMismatch):
        await client.put_chunk(run.task_id, wrong, b"x")
    assert await client.find_missing_chunks(run.task_id, [wrong]) == {wrong}


@pytest.mark.parametrize("size_bytes", [0, CHUNK_BYTES_MAX + 1])
async def test_chunk_of_no_or_too_many_bytes_is_refused(
    client: MasterClient, run: types.Run, size_bytes: int
) -> None:
    data = bytes(size_bytes)
    with pytest.raises(errors.SizeMismatch):
        await client.put_chunk(run.task_id, digest_of(data), data)


async def test_digest_of_another_length_is_refused(client: MasterClient, run: types.Run) -> None:
    with pytest.raises(errors.InvalidRequest):
        await client.put_chunk(run.task_id, b"short", b"x")
    with pytest.raises(errors.InvalidRequest):
        await client.find_missing_chunks(run.task_id, [b"short"])


async def test_sealed_run_takes_no_chunks(client: MasterClient, run: types.Run) -> None:
    await seal(client, run)
    with pytest.raises(errors.RunSealed):
        await put(client, run, b"x")


async def test_chunk_that_is_not_there_is_not_found(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    directory = await commit_one(client, run, directory_commit(b"d"))
    for generation, index in ((1, 1), (2, 0), (0, 0)):
        with pytest.raises(errors.NotFound):
            await client.read_chunk(run.task_id, node.node_id, generation, index)
    with pytest.raises(errors.NotFound):
        await client.read_chunk(run.task_id, 1 << 40, 1, 0)
    with pytest.raises(errors.IsADirectory):
        await client.read_chunk(run.task_id, directory.node_id, 1, 0)
