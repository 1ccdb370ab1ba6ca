"""A bound on how many do something at a time that costs nothing while it is not reached."""

from __future__ import annotations

import trio
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from cloudai_fusefs.slots import Slots


async def test_free_slot_is_taken_without_a_turn_of_the_loop() -> None:
    slots = Slots(1)
    with assert_no_checkpoints():
        async with slots:
            pass


async def test_no_more_than_so_many_at_a_time() -> None:
    slots = Slots(2)
    gate = trio.Event()
    began: list[int] = []

    async def take(number: int) -> None:
        async with slots:
            began.append(number)
            await gate.wait()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(take, number)
            await wait_all_tasks_blocked()
        assert began == [0, 1]
        gate.set()
    assert sorted(began) == [0, 1, 2, 3, 4]


async def test_one_that_is_cancelled_while_it_waits_takes_none() -> None:
    slots = Slots(1)
    async with slots:
        with trio.move_on_after(0):
            async with slots:
                raise AssertionError("it was taken")
    with assert_no_checkpoints():
        async with slots:
            pass
