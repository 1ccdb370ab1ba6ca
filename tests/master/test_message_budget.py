from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import wraps

import pytest

from cloudai_master.message_budget import MessageBudget, Reservation
from cloudai_master.rpc import answer_bytes_max
from cloudai_model.limits import CHUNK_BYTES_MAX
from cloudai_proto.storage.v1 import chunks_pb2 as chunks


def on_asyncio(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Runs the test on a loop of its own: the budget belongs to the master's loop, which is asyncio's."""

    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    # pytest would take what is wrapped for the test, and run it on trio.
    del run.__wrapped__
    return run


async def settle() -> None:
    """Lets every task run as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


class Asking:
    """Reservations that are asked for and perhaps not yet given."""

    def __init__(self, budget: MessageBudget) -> None:
        self.budget = budget
        self.given: list[tuple[str, Reservation]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, connection: str, size_bytes: int) -> asyncio.Task[None]:
        async def reserve() -> None:
            self.given.append((connection, await self.budget.reserve(connection, size_bytes)))

        task = asyncio.create_task(reserve())
        self.tasks.append(task)
        await settle()
        return task

    @property
    def connections(self) -> list[str]:
        return [connection for connection, _ in self.given]

    async def release(self, connection: str) -> None:
        """The oldest of this connection."""
        pair = next(pair for pair in self.given if pair[0] == connection)
        self.given.remove(pair)
        pair[1].release()
        await settle()


@on_asyncio
async def test_room_is_given_at_once_up_to_the_budget() -> None:
    asking = Asking(MessageBudget(100, share_of_free=1 / 4))
    await asking.ask("a", 60)
    await asking.ask("b", 40)
    assert (asking.connections, asking.budget.held_bytes) == (["a", "b"], 100)
    await asking.ask("c", 10)
    assert asking.connections == ["a", "b"]
    await asking.release("b")
    assert (asking.connections, asking.budget.held_bytes) == (["a", "c"], 70)


@on_asyncio
async def test_connection_holds_a_quarter_of_what_is_free() -> None:
    asking = Asking(MessageBudget(100, share_of_free=1 / 4))
    for _ in range(10):
        await asking.ask("a", 5)
    assert (asking.connections, asking.budget.held_bytes) == (["a"] * 4, 20)
    await asking.release("a")
    assert (asking.connections, asking.budget.held_bytes) == (["a"] * 4, 20)


@on_asyncio
async def test_connections_that_take_nothing_leave_room_for_others() -> None:
    asking = Asking(MessageBudget(100, share_of_free=1 / 4))
    for number in range(10):
        for _ in range(5):
            await asking.ask(f"stopped {number}", 4)
    assert set(asking.connections) == {f"stopped {number}" for number in range(10)}
    for _ in range(3):
        await asking.ask("a", 4)
        await asking.release("a")


@on_asyncio
async def test_room_goes_to_whoever_holds_the_least() -> None:
    asking = Asking(MessageBudget(100, share_of_free=1 / 4))
    await asking.ask("full", 96)
    for connection in ("a", "a", "a", "b", "b", "c"):
        await asking.ask(connection, 4)
    assert asking.connections == ["full", "a"]
    await asking.release("full")
    assert asking.connections == ["a", "b", "c", "a", "b", "a"]


@on_asyncio
async def test_long_answer_is_not_overtaken_by_short_ones_for_ever() -> None:
    asking = Asking(MessageBudget(100, share_of_free=1 / 4))
    await asking.ask("a", 50)
    await asking.ask("b", 40)
    await asking.ask("long", 60)
    await asking.ask("c", 10)
    assert asking.connections == ["a", "b"]
    await asking.release("a")
    assert asking.connections == ["b", "long"]
    await asking.release("b")
    assert asking.connections == ["long", "c"]


@on_asyncio
async def test_answer_larger_than_everything_is_given_room_alone() -> None:
    asking = Asking(MessageBudget(100, share_of_free=1 / 4))
    await asking.ask("a", 1)
    await asking.ask("b", 500)
    assert asking.connections == ["a"]
    await asking.release("a")
    assert asking.connections == ["b"]


@on_asyncio
async def test_answer_that_turned_out_short_makes_room() -> None:
    asking = Asking(MessageBudget(100, share_of_free=1 / 4))
    await asking.ask("a", 100)
    await asking.ask("b", 90)
    asking.given[0][1].shrink(200)
    await settle()
    assert (asking.connections, asking.budget.held_bytes) == (["a"], 100)
    asking.given[0][1].shrink(10)
    await settle()
    assert (asking.connections, asking.budget.held_bytes) == (["a", "b"], 100)
    for _, reservation in asking.given:
        reservation.release()
        reservation.release()
    assert asking.budget.held_bytes == 0


@on_asyncio
async def test_cancelled_one_holds_nothing_and_is_not_waited_for() -> None:
    asking = Asking(MessageBudget(100, share_of_free=1 / 4))
    await asking.ask("a", 100)
    waiting = await asking.ask("b", 60)
    await asking.ask("c", 60)
    waiting.cancel()
    await settle()
    await asking.release("a")
    assert (asking.connections, asking.budget.held_bytes) == (["c"], 60)


@on_asyncio
async def test_one_cancelled_while_room_is_given_to_another_is_passed_over() -> None:
    asking = Asking(MessageBudget(100, share_of_free=1 / 4))
    await asking.ask("a", 100)
    waiting = [await asking.ask(connection, 60) for connection in ("b", "b", "b")]
    # Neither has had its turn on the loop when room is handed out.
    for task in waiting[:2]:
        task.cancel()
    await asking.release("a")
    assert (asking.connections, asking.budget.held_bytes) == (["b"], 60)
    assert [task.cancelled() for task in waiting] == [True, True, False]


@on_asyncio
async def test_one_that_waited_for_much_and_is_cancelled_keeps_nobody_waiting() -> None:
    asking = Asking(MessageBudget(100, share_of_free=1 / 4))
    await asking.ask("a", 60)
    long = await asking.ask("long", 100)
    await asking.ask("b", 40)
    assert asking.connections == ["a"]
    long.cancel()
    await settle()
    assert asking.connections == ["a", "b"]


@on_asyncio
async def test_one_cancelled_in_the_moment_it_is_given_room_holds_nothing() -> None:
    asking = Asking(MessageBudget(100, share_of_free=1 / 4))
    await asking.ask("a", 100)
    waiting = await asking.ask("b", 60)
    asking.given[0][1].release()
    waiting.cancel()
    await settle()
    assert asking.budget.held_bytes == 0
    with pytest.raises(asyncio.CancelledError):
        await waiting


@on_asyncio
async def test_everybody_gets_a_turn_and_nothing_is_left_over() -> None:
    """Invariants over a long run of answers of any size: bounds hold, all finish, in equal numbers."""
    budget = MessageBudget(100, share_of_free=1 / 4)
    choice = random.Random(1)
    holding: Counter[str] = Counter()
    finished: Counter[str] = Counter()

    async def answer(connection: str) -> None:
        while sum(finished.values()) < 600:
            size_bytes = choice.randrange(1, 30)
            reservation = await budget.reserve(connection, size_bytes)
            holding[connection] += size_bytes
            assert sum(holding.values()) <= budget.held_bytes <= 100
            for _ in range(choice.randrange(4)):
                await asyncio.sleep(0)
            holding[connection] -= size_bytes
            reservation.release()
            finished[connection] += 1

    # The first asks for ten answers at a time, the others for two.
    async with asyncio.TaskGroup() as group:
        for connection in ["greedy"] * 10 + [f"c{index % 5}" for index in range(10)]:
            group.create_task(answer(connection))
    assert budget.held_bytes == 0
    assert max(finished.values()) < 2 * min(finished.values())


def test_read_needs_room_for_what_it_asks_for() -> None:
    short = chunks.ReadChunkRequest(length_bytes=4096).SerializeToString()
    whole = chunks.ReadChunkRequest().SerializeToString()
    assert answer_bytes_max("ReadChunk", short) == 4096 + 10
    assert answer_bytes_max("ReadChunk", whole) == CHUNK_BYTES_MAX + 10
    assert answer_bytes_max("PutChunk", b"") is None
