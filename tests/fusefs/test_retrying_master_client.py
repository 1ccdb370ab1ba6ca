"""Patience with a master that comes and goes; the clock jumps, nothing waits."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.retrying_master_client import LAST_CHANCE_SECONDS, RetryingMasterClient
from cloudai_fusefs.wire_chunks import ChunkAnswer
from cloudai_model.errors import MasterUnavailable, NotFound
from cloudai_proto.storage.v1 import names_pb2 as names

HANGS = "hangs"


class ScriptedMaster:
    """Each call plays the next entry of the script: an error, a hang, or an answer; at its end the answer."""

    def __init__(self, *script: Exception | str) -> None:
        self.script = list(script)
        self.call_times: list[float] = []

    async def _play(self) -> None:
        self.call_times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        step = self.script.pop(0) if self.script else ""
        if isinstance(step, Exception):
            raise step
        if step == HANGS:
            await trio.sleep_forever()

    async def list_users(self) -> list[str]:
        await self._play()
        return ["user-123"]

    async def get_capabilities(self) -> names.GetCapabilitiesResponse:
        await self._play()
        return names.GetCapabilitiesResponse(user="user-123")

    async def read_chunk(
        self, task_id: str, node_id: int, generation: int, chunk_index: int, *, verify: bool = False
    ) -> ChunkAnswer:
        await self._play()
        return ChunkAnswer(memoryview(f"{task_id} {node_id} {generation} {chunk_index}".encode()), b"")

    @asynccontextmanager
    async def watch(self, request: names.WatchRequest) -> AsyncIterator[AsyncIterator[names.WatchResponse]]:
        async def messages() -> AsyncIterator[names.WatchResponse]:
            while True:
                await self._play()
                yield names.WatchResponse(revision=request.after_revision)

        yield messages()


def make_client(master: ScriptedMaster, *, timeo_seconds: float = 60.0) -> RetryingMasterClient:
    return RetryingMasterClient(cast(MasterClient, master), timeo_seconds=timeo_seconds)


def away(count: int) -> list[Exception]:
    return [MasterUnavailable(f"attempt {number}") for number in range(count)]


async def test_call_is_repeated_until_the_master_answers(autojump_clock: MockClock) -> None:
    master = ScriptedMaster(*away(5))
    assert bytes((await make_client(master).read_chunk("run-1", 2, 3, 4)).data) == b"run-1 2 3 4"
    assert len(master.call_times) == 6


async def test_pauses_are_at_most_two_seconds(autojump_clock: MockClock) -> None:
    master = ScriptedMaster(*away(20))
    await make_client(master).list_users()
    times = master.call_times
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[0] <= 0.2
    assert max(pauses) <= 2.0


async def test_clients_of_a_master_that_comes_back_do_not_come_back_together(
    autojump_clock: MockClock,
) -> None:
    masters = [ScriptedMaster(*away(8)) for _ in range(20)]
    async with trio.open_nursery() as nursery:
        for master in masters:
            nursery.start_soon(make_client(master).list_users)

    pauses = [[after - before for before, after in pairwise(master.call_times)] for master in masters]
    bounds_seconds = [0.2, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    for drawn, bound_seconds in zip(zip(*pauses, strict=True), bounds_seconds, strict=True):
        assert len(set(drawn)) > 1
        assert max(drawn) <= bound_seconds


async def test_last_error_is_raised_once_timeo_is_over(autojump_clock: MockClock) -> None:
    master = ScriptedMaster(*away(1000))
    with pytest.raises(MasterUnavailable) as caught:
        await make_client(master, timeo_seconds=30.0).list_users()
    assert caught.value.detail == f"attempt {len(master.call_times) - 1}"
    assert trio.current_time() - master.call_times[0] == pytest.approx(30.0)


async def test_call_that_hangs_ends_with_timeo(autojump_clock: MockClock) -> None:
    master = ScriptedMaster(HANGS)
    client = make_client(master, timeo_seconds=30.0)
    with pytest.raises(MasterUnavailable):
        await client.list_users()
    assert trio.current_time() - master.call_times[0] == pytest.approx(30.0)
    assert not client.is_connected


async def test_master_that_says_nothing_is_waited_for_once_by_all_who_ask(autojump_clock: MockClock) -> None:
    master = ScriptedMaster(*[HANGS] * 10)
    client = make_client(master, timeo_seconds=30.0)
    with pytest.raises(MasterUnavailable):
        await client.list_users()
    # Those who wait for one page of a file come one after another.
    for _ in range(100):
        with pytest.raises(MasterUnavailable):
            await client.list_users()
    assert trio.current_time() - master.call_times[0] <= 30.0 + 2 * LAST_CHANCE_SECONDS


async def test_master_that_answers_again_after_saying_nothing_is_asked_soon(
    autojump_clock: MockClock,
) -> None:
    master = ScriptedMaster(HANGS)
    client = make_client(master, timeo_seconds=30.0)
    with pytest.raises(MasterUnavailable):
        await client.list_users()
    await trio.sleep(LAST_CHANCE_SECONDS)
    assert await client.list_users() == ["user-123"]
    assert client.is_connected


async def test_one_call_that_hangs_while_others_are_answered_is_no_outage(autojump_clock: MockClock) -> None:
    master = ScriptedMaster(HANGS)
    client = make_client(master, timeo_seconds=30.0)
    async with trio.open_nursery() as nursery:

        async def hang() -> None:
            with pytest.raises(MasterUnavailable):
                await client.list_users()

        nursery.start_soon(hang)
        await trio.sleep(29)
        assert await client.list_users() == ["user-123"]
    master.script = [*away(1)]
    assert await client.list_users() == ["user-123"]  # asked again: it is patient as before
    assert len(master.call_times) == 4


@pytest.mark.parametrize(
    ("script", "silent_seconds"), [([HANGS] * 10, 0.0), (away(1000), 5.0)], ids=["hangs", "away"]
)
async def test_wait_ends_once_the_master_has_been_silent_for_timeo(
    autojump_clock: MockClock, script: list[Exception | str], silent_seconds: float
) -> None:
    """However late the calls of others began, whose own time may be over only then."""
    client = make_client(ScriptedMaster(*script), timeo_seconds=30.0)
    async with trio.open_nursery() as nursery:

        async def ask_later() -> None:
            await trio.sleep(5)
            with pytest.raises(MasterUnavailable):
                await client.list_users()

        nursery.start_soon(ask_later)
        began_seconds = trio.current_time()
        with pytest.raises(MasterUnavailable):
            await client.wait_out(trio.sleep_forever)
        assert trio.current_time() - began_seconds == pytest.approx(silent_seconds + 30.0)


@pytest.mark.parametrize("moment_seconds", [0.1, 1.1])
async def test_wait_ends_although_a_last_bit_of_its_time_is_left(
    autojump_clock: MockClock, moment_seconds: float
) -> None:
    """By rounding: too little for the clock to show that it has passed."""
    client = make_client(ScriptedMaster(*away(1000)), timeo_seconds=5.0)
    await trio.sleep(moment_seconds)
    with pytest.raises(MasterUnavailable):
        await client.get_capabilities()
    await trio.sleep(0.003)

    began_seconds = trio.current_time()
    with pytest.raises(MasterUnavailable):
        await client.wait_out(trio.sleep_forever)
    assert trio.current_time() - began_seconds < 5.0 + LAST_CHANCE_SECONDS


async def test_wait_goes_on_for_as_long_as_the_master_answers(autojump_clock: MockClock) -> None:
    """Nobody may have asked for anything meanwhile: a file is read from a slow disk."""
    end_seconds = trio.current_time() + 100.0
    await make_client(ScriptedMaster(), timeo_seconds=30.0).wait_out(lambda: trio.sleep_until(end_seconds))
    assert trio.current_time() == pytest.approx(end_seconds)


async def test_refusal_is_an_answer_and_passes_at_once(autojump_clock: MockClock) -> None:
    master = ScriptedMaster(NotFound(), NotFound())
    client = make_client(master)
    with pytest.raises(NotFound):
        await client.list_users()
    assert len(master.call_times) == 1
    assert client.is_connected


async def test_question_for_capabilities_is_not_repeated(autojump_clock: MockClock) -> None:
    master = ScriptedMaster(*away(1))
    client = make_client(master)
    with pytest.raises(MasterUnavailable):
        await client.get_capabilities()
    assert not client.is_connected
    assert (await client.get_capabilities()).user == "user-123"
    assert client.is_connected


async def test_connection_is_known_from_the_last_call(autojump_clock: MockClock) -> None:
    master = ScriptedMaster()
    client = make_client(master, timeo_seconds=1.0)
    known = [client.is_connected]
    await client.list_users()
    known.append(client.is_connected)
    master.script = [*away(1000)]
    with pytest.raises(MasterUnavailable):
        await client.list_users()
    known.append(client.is_connected)
    assert known == [False, True, False]


async def test_watch_is_not_repeated_and_tells_of_the_connection(autojump_clock: MockClock) -> None:
    client = make_client(ScriptedMaster("", *away(1)))
    async with client.watch(names.WatchRequest(task_id="run-1", after_revision=7)) as messages:
        assert (await anext(messages)).revision == 7
        assert client.is_connected
        with pytest.raises(MasterUnavailable):
            await anext(messages)
    assert not client.is_connected


@pytest.mark.parametrize("script", [[HANGS], [MasterUnavailable()]], ids=["in a call", "in a pause"])
async def test_cancellation_passes(autojump_clock: MockClock, script: list[Exception | str]) -> None:
    master = ScriptedMaster(*script, HANGS)
    with trio.move_on_after(1) as scope:
        await make_client(master).list_users()
    assert scope.cancelled_caught


def test_every_call_of_the_port_is_there() -> None:
    calls = {name for name, _ in inspect.getmembers(MasterClient, inspect.isfunction) if name[0] != "_"}
    assert calls == {name for name in vars(RetryingMasterClient) if name in calls}
    client: MasterClient = RetryingMasterClient(cast(MasterClient, ScriptedMaster()), timeo_seconds=1.0)
    assert client
