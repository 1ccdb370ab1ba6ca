"""What is forgotten after a day: change logs and the answers to repeated requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from cloudai_master.authorization import Caller
from cloudai_master.data_dir import DataDir
from cloudai_master.database import Database
from cloudai_master.schema import changes, requests
from cloudai_master.service import StorageService
from cloudai_master.tokens import Tokens
from cloudai_proto.storage.v1 import names_pb2 as names
from fakes.memory_chunk_store import MemoryChunkStore
from support.storage_requests import directory_commit, request_id

CALLER = Caller(user="user-123")
TWO_DAYS_NS = 2 * 86_400 * 10**9


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = DataDir(tmp_path).open_database()
    Tokens(opened, b"k" * 32).create(CALLER.user, valid_seconds=60)
    yield opened
    opened.close()


def test_watcher_that_knows_less_than_is_kept_lists_again(database: Database) -> None:
    service = StorageService(database, MemoryChunkStore(), Tokens(database, b"k" * 32))
    request = names.CreateRunRequest(request_id=request_id(), user=CALLER.user, task="task")
    run = service.create_run(CALLER, request).run

    def make_directory(name: bytes) -> int:
        commit = names.CommitNodesRequest(
            request_id=request_id(), task_id=run.task_id, commits=[directory_commit(name)]
        )
        return service.commit_nodes(CALLER, commit).revision

    make_directory(b"a")
    old = make_directory(b"b")
    with database.write() as transaction:
        transaction.connection.execute(update(changes).values(made_at_ns=changes.c.made_at_ns - TWO_DAYS_NS))
        transaction.connection.execute(
            update(requests).values(answered_at_ns=requests.c.answered_at_ns - TWO_DAYS_NS)
        )
    new = make_directory(b"c")
    service.forget_old()

    watched = service.find_watched(CALLER, names.WatchRequest(task_id=run.task_id))
    assert service.read_changes(watched, old - 1).reload
    kept = service.read_changes(watched, old)
    assert (kept.reload, [change.edge_set.name for change in kept.changes]) == (False, [b"c"])
    assert service.read_changes(watched, new).revision == new
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(requests)).scalar_one() == 1
