"""A trio loop in a thread of its own, for tests that are not coroutines: Hypothesis asks for one step at a time."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeAlias, TypeVar

import outcome
import trio
from trio.testing import MockClock

R = TypeVar("R")

# Not 0: a task that waits for a thread looks idle, and must not meet its timeouts.
QUIET_SECONDS = 0.002

Step: TypeAlias = Callable[[], Awaitable[Any]]


class LoopThread:
    """Runs coroutines, and tasks beside them. Between two calls the loop stands still, and time with it: Hypothesis
    takes whatever uses the `random` module while it draws for a part of what it drew. Within a call, time jumps from
    one deadline to the next while nothing else happens.
    """

    def __init__(self) -> None:
        self.clock = MockClock()
        self.nursery: trio.Nursery
        self._steps: SimpleQueue[Step | None] = SimpleQueue()
        # None: the loop has ended, and what it was asked for with it.
        self._answers: SimpleQueue[outcome.Outcome[Any] | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="test loop")
        self._thread.start()
        self.call(trio.lowlevel.checkpoint)

    def call(self, act: Callable[[], Awaitable[R]]) -> R:
        """What the coroutine returns or raises; what a task raised in between, instead."""
        if self._thread.is_alive():
            self._steps.put(act)
            answer = self._answers.get()
            if answer is not None:
                result: R = answer.unwrap()
                return result
            self._thread.join()
        raise self._failure or trio.RunFinishedError("the loop has ended")

    def call_now(self, act: Callable[[], R]) -> R:
        """What the function returns or raises, called on the loop while no task runs."""

        async def call() -> R:
            return act()

        return self.call(call)

    def close(self) -> None:
        """Ends all tasks and the thread; raises what a task raised before."""
        self._steps.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            trio.run(self._serve, clock=self.clock)
        except BaseException as error:  # noqa: BLE001 - raised where the next step is asked for
            self._failure = error
        finally:
            self._answers.put(None)

    async def _serve(self) -> None:
        async with trio.open_nursery() as self.nursery:
            while (act := self._steps.get()) is not None:
                self._answers.put(await self._outcome(act))
            self.nursery.cancel_scope.cancel()

    async def _outcome(self, act: Step) -> outcome.Outcome[Any]:
        self.clock.autojump_threshold = QUIET_SECONDS
        try:
            return outcome.Value(await act())
        except Exception as error:  # noqa: BLE001 - raised where the step was asked for
            return outcome.Error(error)
        finally:
            self.clock.autojump_threshold = math.inf
