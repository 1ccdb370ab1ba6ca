"""A read of a part of a chunk reads that part alone: 4 KiB out of 4 MiB cost 4 KiB."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloudai_master.authorization import Caller
from cloudai_model.errors import InvalidRequest
from cloudai_proto.storage.v1 import chunks_pb2 as chunks
from fakes.fake_master import FakeMaster
from support.storage_requests import USER, commit_one, file_commit, make_run

CALLER = Caller(user=USER)


@pytest.fixture
def master() -> Iterator[FakeMaster]:
    fake = FakeMaster()
    yield fake
    fake.close()


async def request_for_ten_bytes(master: FakeMaster) -> chunks.ReadChunkRequest:
    client = master.client(USER)
    run = await make_run(client, USER)
    node = await commit_one(client, run, file_commit(b"f", b"0123456789"))
    return chunks.ReadChunkRequest(task_id=run.task_id, node_id=node.node_id, generation=1)


@pytest.mark.parametrize(
    ("offset_bytes", "length_bytes", "data"),
    [(0, 0, b"0123456789"), (3, 4, b"3456"), (7, 0, b"789"), (9, 1, b"9")],
)
async def test_range_of_a_chunk_is_read(
    master: FakeMaster, offset_bytes: int, length_bytes: int, data: bytes
) -> None:
    request = await request_for_ten_bytes(master)
    request.offset_bytes, request.length_bytes = offset_bytes, length_bytes
    assert master.service.read_chunk(CALLER, request).data == data


@pytest.mark.parametrize(("offset_bytes", "length_bytes"), [(10, 0), (10, 1), (5, 6), (2**32 - 1, 2**32 - 1)])
async def test_range_outside_the_chunk_is_refused(
    master: FakeMaster, offset_bytes: int, length_bytes: int
) -> None:
    request = await request_for_ten_bytes(master)
    request.offset_bytes, request.length_bytes = offset_bytes, length_bytes
    with pytest.raises(InvalidRequest):
        master.service.read_chunk(CALLER, request)
