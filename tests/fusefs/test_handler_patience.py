"""How long handlers may wait when there are too many of them; the clock jumps, nothing waits."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.handler_patience import (
    HANDLERS_MAX,
    HASTE_SECONDS,
    PATIENT_HANDLERS_MAX,
    PRESSED_SECONDS,
    HandlerPatience,
)

TIMEO_SECONDS = 60.0


class Handlers:
    """Handlers of one mount, that ask a master which answered last at `answered_at_seconds`."""

    def __init__(self) -> None:
        self.answered_at_seconds = trio.current_time()
        self.patience = HandlerPatience(lambda: self.answered_at_seconds)
        self.gave_up_after_seconds: list[float] = []

    async def wait(
        self, seconds: float = 2 * TIMEO_SECONDS, *, seconds_max: float | None = TIMEO_SECONDS
    ) -> None:
        began = trio.current_time()
        try:
            with self.patience.limited(seconds_max):
                await trio.sleep(seconds)
        except trio.TooSlowError:
            self.gave_up_after_seconds.append(trio.current_time() - began)

    async def wait_many(self, count: int, seconds: float = 2 * TIMEO_SECONDS) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(self.wait, seconds)

    async def answer_each_second(self) -> None:
        while True:
            self.answered_at_seconds = trio.current_time()
            await trio.sleep(1)


@pytest.fixture
async def handlers() -> AsyncIterator[Handlers]:
    handlers = Handlers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handlers.patience.hurry)
        yield handlers
        nursery.cancel_scope.cancel()


async def test_as_many_as_may_wait_for_as_long_as_they_may(
    autojump_clock: MockClock, handlers: Handlers
) -> None:
    await handlers.wait_many(PATIENT_HANDLERS_MAX)

    assert handlers.gave_up_after_seconds == [TIMEO_SECONDS] * PATIENT_HANDLERS_MAX


async def test_those_beyond_give_up_once_the_master_has_been_silent(
    autojump_clock: MockClock, handlers: Handlers
) -> None:
    """R8. Who waits for the master, for whatever it is, holds up nobody who asks for what is known here; of more than
    448 at once, those beyond fail with EIO once the master has been silent for two seconds.
    """
    await handlers.wait_many(PATIENT_HANDLERS_MAX + 3)

    gave_up = sorted(handlers.gave_up_after_seconds)
    assert gave_up[:3] == [HASTE_SECONDS] * 3
    assert gave_up[3:] == [TIMEO_SECONDS] * PATIENT_HANDLERS_MAX


async def test_those_beyond_wait_for_their_turn_while_the_master_answers(
    autojump_clock: MockClock, handlers: Handlers
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handlers.answer_each_second)
        await handlers.wait_many(PATIENT_HANDLERS_MAX + 3)
        nursery.cancel_scope.cancel()

    assert handlers.gave_up_after_seconds == [TIMEO_SECONDS] * (PATIENT_HANDLERS_MAX + 3)


async def test_silence_is_waited_out_once_and_not_by_each_who_comes_to_a_place(
    autojump_clock: MockClock, handlers: Handlers
) -> None:
    """R8. Behind more than 512 at once whoever asks for what is known waits for these two seconds, and for up to three
    eighths of a second for each 64 of those before him.
    """
    reserve_count = HANDLERS_MAX - PATIENT_HANDLERS_MAX
    with ExitStack() as others:
        for _ in range(PATIENT_HANDLERS_MAX):
            others.enter_context(handlers.patience.limited(None))
        for _ in range(3):
            await trio.sleep(0.002)  # their requests are read a moment after the places are free
            await handlers.wait_many(reserve_count)
    first, others_after = (
        handlers.gave_up_after_seconds[:reserve_count],
        handlers.gave_up_after_seconds[reserve_count:],
    )
    assert len(others_after) == 2 * reserve_count
    assert HASTE_SECONDS <= min(first) <= max(first) <= HASTE_SECONDS + PRESSED_SECONDS / 2
    assert PRESSED_SECONDS <= min(others_after) <= max(others_after) <= PRESSED_SECONDS * 3 / 2


async def test_an_answer_begins_the_silence_anew(autojump_clock: MockClock, handlers: Handlers) -> None:
    with ExitStack() as others:
        for _ in range(PATIENT_HANDLERS_MAX):
            others.enter_context(handlers.patience.limited(None))
        await handlers.wait_many(HANDLERS_MAX - PATIENT_HANDLERS_MAX)
        handlers.gave_up_after_seconds.clear()

        handlers.answered_at_seconds = trio.current_time()
        await handlers.wait_many(HANDLERS_MAX - PATIENT_HANDLERS_MAX)

    assert set(handlers.gave_up_after_seconds) == {HASTE_SECONDS}


async def test_a_crowd_waits_the_silence_out_whatever_an_earlier_one_found(
    autojump_clock: MockClock, handlers: Handlers
) -> None:
    reserve_count = HANDLERS_MAX - PATIENT_HANDLERS_MAX
    with ExitStack() as others:
        for _ in range(PATIENT_HANDLERS_MAX):
            others.enter_context(handlers.patience.limited(None))
        await handlers.wait_many(reserve_count)
        await trio.sleep(1)  # nobody is there who is too many
        await handlers.wait_many(reserve_count)

    assert handlers.gave_up_after_seconds == [HASTE_SECONDS] * (2 * reserve_count)


async def test_while_requests_are_taken_each_of_those_beyond_has_its_two_seconds(
    autojump_clock: MockClock, handlers: Handlers
) -> None:
    with ExitStack() as others:
        for _ in range(PATIENT_HANDLERS_MAX):
            others.enter_context(handlers.patience.limited(None))
        for _ in range(2):
            await handlers.wait_many(HANDLERS_MAX - PATIENT_HANDLERS_MAX - 1)

    assert set(handlers.gave_up_after_seconds) == {HASTE_SECONDS}


async def test_one_that_bounds_its_own_wait_gives_up_only_where_they_are_too_many(
    autojump_clock: MockClock, handlers: Handlers
) -> None:
    await handlers.wait(seconds_max=None)
    assert handlers.gave_up_after_seconds == []

    with ExitStack() as others:
        for _ in range(PATIENT_HANDLERS_MAX):
            others.enter_context(handlers.patience.limited(None))
        await handlers.wait(seconds_max=None)
    assert handlers.gave_up_after_seconds == [HASTE_SECONDS]


async def test_what_takes_no_time_is_never_too_much(autojump_clock: MockClock, handlers: Handlers) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handlers.wait_many, PATIENT_HANDLERS_MAX + 3)
        for _ in range(20):
            await trio.sleep(0.5)
            await handlers.wait(HASTE_SECONDS / 2)
        assert len(handlers.gave_up_after_seconds) == 3
        nursery.cancel_scope.cancel()


async def test_when_there_are_few_again_all_are_patient(
    autojump_clock: MockClock, handlers: Handlers
) -> None:
    await handlers.wait_many(PATIENT_HANDLERS_MAX + 3, seconds=1)

    await handlers.wait()

    assert handlers.gave_up_after_seconds == [TIMEO_SECONDS]


async def test_nothing_is_kept_of_those_that_have_ended(handlers: Handlers) -> None:
    with ExitStack() as others:
        for _ in range(PATIENT_HANDLERS_MAX):
            others.enter_context(handlers.patience.limited(None))
        before_count = count_scopes()
        for _ in range(100):
            with handlers.patience.limited(None):
                pass
        assert count_scopes() < before_count + 50


def count_scopes() -> int:
    gc.collect()
    return sum(isinstance(found, trio.CancelScope) for found in gc.get_objects())
