"""How many chunks are in flight at a time, by how fast they go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.chunk_sender import CHUNKS_IN_FLIGHT_MAX
from cloudai_master.authorization import Caller
from cloudai_model.errors import MasterUnavailable
from cloudai_model.limits import CHUNK_BYTES_MAX, KIB
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import open_file_system
from support.storage_requests import USER, published

CALL_SECONDS_MAX = 30.0
STEP_BYTES = 64 * KIB


class SlowLinkClient(FakeMasterClient):
    """The chunks in flight share a link, evenly, and each that takes longer than a call may fails."""

    bytes_per_second = 0
    in_flight_count = 0
    in_flight_count_max = 0

    async def put_chunk(self, task_id: str, digest: bytes, data: bytes | memoryview) -> None:
        self.in_flight_count += 1
        self.in_flight_count_max = max(self.in_flight_count_max, self.in_flight_count)
        try:
            with trio.fail_after(CALL_SECONDS_MAX):
                for _ in range(0, len(data), STEP_BYTES):
                    await trio.sleep(self.in_flight_count * STEP_BYTES / self.bytes_per_second)
            await super().put_chunk(task_id, digest, data)
        except trio.TooSlowError:
            raise MasterUnavailable("deadline exceeded") from None
        finally:
            self.in_flight_count -= 1


@pytest.fixture
def link(master: FakeMaster) -> SlowLinkClient:
    master.client(USER)  # makes the user
    return SlowLinkClient(master, Caller(user=USER))


async def upload(
    client: FakeMasterClient,
    link: SlowLinkClient,
    run: types.Run,
    directory: Path,
    name: bytes,
    content: bytes,
) -> None:
    async with open_file_system(link, run, directory) as file_system:
        await file_system.write_file(name, content)
        await file_system.make_all_durable()
    assert (await published(client, run))[name] == content


async def test_link_that_carries_one_chunk_within_a_calls_deadline_carries_a_file(
    clock: MockClock, link: SlowLinkClient, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    link.bytes_per_second = 150 * KIB
    content = os.urandom(3 * CHUNK_BYTES_MAX)

    began_seconds = trio.current_time()
    await upload(client, link, run, tmp_path, b"model", content)

    assert link.in_flight_count_max == 1
    assert trio.current_time() - began_seconds < 1.1 * len(content) / link.bytes_per_second


async def test_fast_link_gets_as_many_chunks_as_fill_it(
    clock: MockClock, link: SlowLinkClient, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    link.bytes_per_second = 400 * 1024 * KIB

    await upload(client, link, run, tmp_path, b"model", os.urandom(10 * CHUNK_BYTES_MAX))

    assert link.in_flight_count_max == CHUNKS_IN_FLIGHT_MAX


async def test_link_that_becomes_slow_gets_fewer_chunks(
    clock: MockClock, link: SlowLinkClient, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    link.bytes_per_second = 400 * 1024 * KIB
    content = os.urandom(6 * CHUNK_BYTES_MAX)
    async with open_file_system(link, run, tmp_path) as file_system:
        await file_system.write_file(b"first", os.urandom(10 * CHUNK_BYTES_MAX))
        await file_system.make_all_durable()
        link.bytes_per_second = 150 * KIB

        await file_system.write_file(b"second", content)
        with trio.fail_after(600):
            await file_system.make_all_durable()

    assert (await published(client, run))[b"second"] == content
