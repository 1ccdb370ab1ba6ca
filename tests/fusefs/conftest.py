"""A mount without a kernel over a master in memory, for the tests of the write path."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from cloudai_model.errors import NoSpace
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER, make_run
from support.threadless import run_threads_work_on_the_loop


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Time passes only while nothing else happens. To be taken by the test itself, or it has no effect."""
    run_threads_work_on_the_loop(monkeypatch)
    return MockClock(autojump_threshold=0)


@pytest.fixture
def master() -> Iterator[FakeMaster]:
    fake = FakeMaster()
    yield fake
    fake.close()


@pytest.fixture
def client(master: FakeMaster) -> FakeMasterClient:
    return master.client(USER)


@pytest.fixture
def full_client(client: FakeMasterClient, monkeypatch: pytest.MonkeyPatch) -> FakeMasterClient:
    """Of a master that makes directories and takes no chunks."""
    monkeypatch.setattr(client, "put_chunk", _refuse_chunk)
    return client


@pytest.fixture
async def run(client: FakeMasterClient) -> types.Run:
    return await make_run(client, USER)


@pytest.fixture
async def file_system(
    client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> AsyncIterator[FileSystemHarness]:
    async with open_file_system(client, run, tmp_path / "mount", timeo_seconds=10) as opened:
        yield opened


async def _refuse_chunk(task_id: str, digest: bytes, data: bytes | memoryview) -> None:
    raise NoSpace
