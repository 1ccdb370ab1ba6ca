"""The messages of a watch, without a wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cloudai_master.rpc import WATCH_REST_SECONDS, RpcServer
from cloudai_master.tokens import Tokens
from cloudai_master.wakeups import Wakeups
from cloudai_proto.storage.v1 import names_pb2 as names
from support.local_storage import LocalStorage
from support.storage_requests import USER, file_commit


def test_changes_that_come_one_after_another_are_one_message(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(storage.database, b"k" * 32)
    token = tokens.create(USER, valid_seconds=3600)
    rests: list[float] = []

    async def change_meanwhile(seconds: float) -> None:
        rests.append(seconds)
        for number in range(3):
            storage.commit(file_commit(b"%d.%d" % (len(rests), number), b"x"))

    async def watch() -> list[names.WatchResponse]:
        server = RpcServer(storage.service, tokens, Wakeups(asyncio.get_running_loop()))
        request = names.WatchRequest(task_id=storage.run.task_id)
        messages: AsyncIterator[names.WatchResponse] = server._changes(request, token)
        storage.commit(file_commit(b"first", b"x"))
        monkeypatch.setattr(asyncio, "sleep", change_meanwhile)
        found = [await anext(messages) for _ in range(3)]
        monkeypatch.undo()
        return found

    received = asyncio.run(watch())
    assert [
        [change.edge_set.name for change in message.changes if change.HasField("edge_set")]
        for message in received
    ] == [[b"first"], [b"1.0", b"1.1", b"1.2"], [b"2.0", b"2.1", b"2.2"]]
    assert rests == [WATCH_REST_SECONDS] * 2
