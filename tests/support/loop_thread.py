"""A trio loop in a thread of its own, for tests that are not coroutines: Hypothesis asks for one step at a time."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

import trio
from trio.testing import MockClock

R = TypeVar("R")

# Not 0: a task that waits for a thread looks idle, and must not meet its timeouts.
QUIET_SECONDS = 0.002


class LoopThread:
    """Runs coroutines, and tasks between them. Between two calls time stands still; within one it jumps from
    one deadline to the next while nothing else happens.
    """

    def __init__(self) -> None:
        self.clock = MockClock()
        self._begun: SimpleQueue[tuple[trio.lowlevel.TrioToken, trio.Nursery] | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="test loop")
        self._thread.start()
        begun = self._begun.get()
        assert begun is not None
        self._token, self.nursery = begun

    def call(self, act: Callable[[], Awaitable[R]]) -> R:
        """What the coroutine returns or raises; what a task raised in between, instead."""
        try:
            return trio.from_thread.run(self._call, act, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            self._thread.join()
            if self._failure is None:
                raise
            raise self._failure from None

    def call_now(self, act: Callable[[], R]) -> R:
        """What the function returns or raises, called on the loop."""
        return trio.from_thread.run_sync(act, trio_token=self._token)

    def close(self) -> None:
        """Ends all tasks and the thread; raises what a task raised before."""
        if self._thread.is_alive():
            with suppress(trio.RunFinishedError):
                trio.from_thread.run_sync(self.nursery.cancel_scope.cancel, trio_token=self._token)
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    async def _call(self, act: Callable[[], Awaitable[R]]) -> R:
        self.clock.autojump_threshold = QUIET_SECONDS
        try:
            return await act()
        finally:
            self.clock.autojump_threshold = math.inf

    def _run(self) -> None:
        try:
            trio.run(self._serve, clock=self.clock)
        except BaseException as error:  # noqa: BLE001 - raised where the next step is asked for
            self._failure = error

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self._begun.put((trio.lowlevel.current_trio_token(), nursery))
            await trio.sleep_forever()
