"""What every MasterClient is held to: each test here runs against the fake master and against a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from cloudai_fusefs.grpc_master_client import GrpcMasterClient
from cloudai_fusefs.master_client import MasterClient
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster
from support.master_process import MasterProcess
from support.master_under_test import Master
from support.storage_requests import OTHER_USER, USER, make_run


def _damaged(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


class _Fake:
    def __init__(self) -> None:
        self.fake = FakeMaster()
        for user in (USER, OTHER_USER):
            self.fake.client(user)

    @asynccontextmanager
    async def open(self, user: str, *, admin: bool = False, task_id: str = "") -> AsyncIterator[MasterClient]:
        yield self.fake.client(user, admin=admin, task_id=task_id)

    def damage_chunk(self, user: str, digest: bytes) -> None:
        self.fake.store.chunks[user, digest] = _damaged(self.fake.store.chunks[user, digest])


class _Real:
    def __init__(self, process: MasterProcess) -> None:
        self.process = process
        self._tokens: dict[tuple[str, bool, str], str] = {}
        for user in (USER, OTHER_USER):
            self._token(user)

    @asynccontextmanager
    async def open(self, user: str, *, admin: bool = False, task_id: str = "") -> AsyncIterator[MasterClient]:
        token = self._token(user, admin, task_id)
        async with GrpcMasterClient(
            self.process.address, token_provider=lambda: token, insecure=True
        ) as client:
            yield client

    def damage_chunk(self, user: str, digest: bytes) -> None:
        name = digest.hex()
        path = self.process.data_dir / "chunks" / user / name[:2] / name
        path.write_bytes(_damaged(path.read_bytes()))

    def _token(self, user: str, admin: bool = False, task_id: str = "") -> str:
        scope = (user, admin, task_id)
        if scope not in self._tokens:
            self._tokens[scope] = self.process.make_token(user, admin=admin, task_id=task_id)
        return self._tokens[scope]


@pytest.fixture(scope="session")
def real_master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Real]:
    process = MasterProcess(tmp_path_factory.mktemp("contract") / "master")
    process.start()
    yield _Real(process)
    assert process.terminate() == 0
    assert "Traceback" not in process.log_text()


@pytest.fixture(params=["fake", "real"])
def master(request: pytest.FixtureRequest) -> Iterator[Master]:
    if request.param == "real":
        yield request.getfixturevalue("real_master")
        return
    fake = _Fake()
    yield fake
    fake.fake.close()


@pytest.fixture
async def client(master: Master) -> AsyncIterator[MasterClient]:
    async with master.open(USER) as opened:
        yield opened


@pytest.fixture
async def other(master: Master) -> AsyncIterator[MasterClient]:
    """Somebody else."""
    async with master.open(OTHER_USER) as opened:
        yield opened


@pytest.fixture
async def run(client: MasterClient) -> types.Run:
    """A new open run of USER."""
    return await make_run(client, USER)
