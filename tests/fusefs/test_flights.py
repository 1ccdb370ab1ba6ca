"""Bytes on their way: who waits for them, and what they are told when none come."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cloudai_fusefs.chunk_memory import Data
from cloudai_fusefs.file_content import FileContent
from cloudai_fusefs.flights import Flight
from cloudai_model.chunks import Manifest
from cloudai_model.errors import MasterUnavailable, NotFound

CONTENT = FileContent(task_id="run-1", node_id=1, generation=1, manifest=Manifest(), label="file")


async def waiting(flight: Flight, count: int, nursery: trio.Nursery) -> list[Data]:
    """What so many waiters get, as they get it."""
    answers: list[Data] = []

    async def wait() -> None:
        answers.append(await flight.wait())

    for _ in range(count):
        nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    return answers


async def test_all_who_wait_get_what_lands() -> None:
    flight = Flight(CONTENT)
    async with trio.open_nursery() as nursery:
        answers = await waiting(flight, 3, nursery)
        assert answers == []
        flight.land(b"bytes")
    assert answers == [b"bytes"] * 3


async def test_bytes_that_have_landed_are_got_without_waiting_for_anything_else() -> None:
    flight = Flight(CONTENT)
    flight.land(b"")
    assert await flight.wait() == b""


async def test_error_reaches_all_who_wait_and_who_comes_later() -> None:
    flight = Flight(CONTENT)
    flight.end(NotFound(node_id=7))
    for _ in range(2):
        with pytest.raises(NotFound):
            await flight.wait()


async def test_what_has_landed_stays_when_the_flight_ends_with_an_error() -> None:
    flight = Flight(CONTENT)
    flight.land(b"bytes")
    flight.end(NotFound())
    assert await flight.wait() == b"bytes"
    assert flight.error is None


async def test_first_error_stays() -> None:
    flight = Flight(CONTENT)
    flight.end(NotFound())
    flight.end(MasterUnavailable())
    flight.end()
    with pytest.raises(NotFound):
        await flight.wait()


async def test_flight_that_nothing_comes_of_says_that_the_mount_stops() -> None:
    flight = Flight(CONTENT)
    flight.end()
    with pytest.raises(MasterUnavailable, match="stopping"):
        await flight.wait()


async def test_cancelled_waiter_leaves_the_bytes_to_the_others() -> None:
    flight = Flight(CONTENT)
    async with trio.open_nursery() as nursery:
        answers = await waiting(flight, 1, nursery)
        with trio.CancelScope() as scope:
            scope.cancel()
            await flight.wait()
        flight.land(b"bytes")
    assert scope.cancelled_caught
    assert answers == [b"bytes"]


async def test_two_flights_of_the_same_bytes_are_two() -> None:
    first, second = Flight(CONTENT), Flight(CONTENT)
    assert first != second
    assert first.has_landed is not second.has_landed
