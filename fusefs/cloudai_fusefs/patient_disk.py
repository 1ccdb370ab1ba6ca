"""Looks at a disk in threads, for as long as it answers: a disk of a cache that hangs is left alone for a while.

A thread cannot be stopped, so one that hangs keeps its place until the disk answers: then those who come find no
place, and no thread piles up.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from time import monotonic
from typing import Final, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

PATIENCE_SECONDS: Final = 2.0
"""A look that takes longer hangs. Waiting for a turn behind others is none: a busy disk answers."""

HUNG_SECONDS: Final = 30.0
"""How long nobody looks then: the master has what is asked for."""


class PatientDisk:
    """One disk, or some threads' share of it."""

    def __init__(self, threads_max: int) -> None:
        self._threads = trio.CapacityLimiter(threads_max)
        self._began_at_seconds: dict[object, float] = {}  # of the looks under way, by the clock of threads
        self._hung_until_seconds = float("-inf")

    async def look(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """What the call returns. Raises what it raises, and OSError (ETIMEDOUT) when the disk does not answer.

        The call may be made twice. Cancelled: returns at once, and the call may still be carried out.
        """
        while trio.current_time() >= self._hung_until_seconds:
            with trio.move_on_after(PATIENCE_SECONDS):
                return await trio.to_thread.run_sync(
                    self._note_time_of, call, *arguments, limiter=self._threads, abandon_on_cancel=True
                )
            if self._is_hung():
                self._hung_until_seconds = trio.current_time() + HUNG_SECONDS
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def _note_time_of(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        look = object()
        self._began_at_seconds[look] = monotonic()
        try:
            return call(*arguments)
        finally:
            del self._began_at_seconds[look]

    def _is_hung(self) -> bool:
        """Whether a look has been under way for about as long as anybody waits."""
        before_seconds = monotonic() - PATIENCE_SECONDS * 0.9
        return any(began_at <= before_seconds for began_at in list(self._began_at_seconds.values()))
