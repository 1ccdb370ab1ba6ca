"""Requests come into memory when there is room, within a time, and leave it: without a wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps

import pytest

from cloudai_master.intake import (
    CHUNK_REQUEST_BYTES_MAX,
    CHUNKS_BYTES_MAX,
    COMMITS_BYTES_MAX,
    SHORT_BYTES_MAX,
    STRANGERS_MAX,
    Intake,
    NoMessage,
)
from cloudai_model.errors import InvalidRequest, MasterUnavailable
from cloudai_model.limits import MESSAGE_BYTES_MAX

ONE_USERS_CHUNKS = 42
ONE_USERS_COMMITS = 5

assert int((CHUNKS_BYTES_MAX / CHUNK_REQUEST_BYTES_MAX + 1) / 3) == ONE_USERS_CHUNKS
assert int((COMMITS_BYTES_MAX / MESSAGE_BYTES_MAX + 1) / 3) == ONE_USERS_COMMITS


def on_asyncio(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Runs the test on a loop of its own, which is asyncio's as the master's is."""

    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    # pytest would take what is wrapped for the test, and run it on trio.
    del run.__wrapped__
    return run


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class SlowPeer:
    """Begins messages; they are whole once `end` is set."""

    def __init__(self) -> None:
        self.begun_count = 0
        self.end = asyncio.Event()

    async def read(self) -> bytes:
        self.begun_count += 1
        await self.end.wait()
        return b"x"


def peer_that_sends(message: object) -> Callable[[], Awaitable[object]]:
    async def read() -> object:
        return message

    return read


@on_asyncio
async def test_one_users_slow_chunks_leave_room_for_others_and_for_commits() -> None:
    intake, slow, other = Intake(), SlowPeer(), SlowPeer()
    tasks = [asyncio.create_task(intake.take("PutChunk", "a", slow.read)) for _ in range(200)]
    await settle()
    assert slow.begun_count == ONE_USERS_CHUNKS
    tasks += [asyncio.create_task(intake.take("PutChunk", "b", other.read)) for _ in range(10)]
    await settle()
    assert other.begun_count == 10

    assert (await intake.take("CommitNodes", "a", peer_that_sends(b"log")))[0] == b"log"
    assert (await intake.take("ReadChunk", "a", peer_that_sends(b"range")))[0] == b"range"
    slow.end.set()
    other.end.set()
    await settle()
    # What is short holds no room once it is there.
    assert [(await task)[0] for task in tasks] == [b"x"] * 210


@on_asyncio
async def test_long_request_holds_room_as_long_as_it_is_until_its_call_has_ended() -> None:
    intake = Intake()
    message = bytes(MESSAGE_BYTES_MAX)
    rooms = [
        (await intake.take("CommitNodes", "a", peer_that_sends(message)))[1] for _ in range(ONE_USERS_COMMITS)
    ]
    slow = SlowPeer()
    waiting = asyncio.create_task(intake.take("CommitNodes", "a", slow.read))
    await settle()
    assert slow.begun_count == 0

    rooms[0].release()
    await settle()

    assert slow.begun_count == 1
    slow.end.set()
    assert (await waiting)[0] == b"x"


@on_asyncio
async def test_request_that_does_not_arrive_in_time_gives_its_room_back() -> None:
    intake = Intake(seconds_max=0.01)
    for _ in range(3 * ONE_USERS_COMMITS):
        with pytest.raises(MasterUnavailable):
            await intake.take("CommitNodes", "a", SlowPeer().read)

    assert (await intake.take("CommitNodes", "a", peer_that_sends(b"log")))[0] == b"log"


@on_asyncio
async def test_client_that_goes_away_gives_its_room_back() -> None:
    intake, slow = Intake(), SlowPeer()
    tasks = [asyncio.create_task(intake.take("CommitNodes", "a", slow.read)) for _ in range(20)]
    await settle()
    for task in tasks:
        task.cancel()
    await settle()

    assert slow.begun_count == ONE_USERS_COMMITS
    assert (await intake.take("CommitNodes", "a", peer_that_sends(b"log")))[0] == b"log"


@on_asyncio
async def test_call_that_ends_without_a_message_is_refused() -> None:
    intake = Intake()

    with pytest.raises(NoMessage):
        await intake.take("PutChunk", "a", peer_that_sends(object()))


@on_asyncio
async def test_strangers_are_few_and_short() -> None:
    intake, slow = Intake(), SlowPeer()
    tasks = [
        asyncio.create_task(intake.take_from_stranger(f"connection {number}", slow.read))
        for number in range(STRANGERS_MAX)
    ]
    await settle()
    assert slow.begun_count == 4
    with pytest.raises(MasterUnavailable):
        await intake.take_from_stranger("another", slow.read)
    slow.end.set()
    assert await asyncio.gather(*tasks) == [b"x"] * STRANGERS_MAX

    with pytest.raises(InvalidRequest):
        await intake.take_from_stranger("another", peer_that_sends(bytes(SHORT_BYTES_MAX + 1)))
