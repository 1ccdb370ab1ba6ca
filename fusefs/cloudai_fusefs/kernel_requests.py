"""How the kernel's requests are taken from its device: by one task for as long as they are answered at once.

pyfuse3 hands a lock to another of its tasks before each request, and waits for the device by way of trio's loop: half
of what a request costs that is answered from memory. It takes its lock and its wait from whatever stands in the place
of trio in its module, which is how it runs on asyncio; `trio_for_pyfuse3` is trio with two others (decision 0017).
"""

from __future__ import annotations

import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import trio

IN_A_ROW_MAX: Final = 4
"""Requests taken before everybody else on the loop has a turn."""

READ_SECONDS_MAX: Final = 0.02
"""How long the process may stand still for a request that is not there any more, whatever kept it from the read."""


class _ReadAlarm:
    """SIGALRM every READ_SECONDS_MAX, from the look at the device until what was read is being answered."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, READ_SECONDS_MAX, READ_SECONDS_MAX)
        self._is_set = True

    def clear(self) -> None:
        """Does nothing where it is not set: the timer may be somebody else's then."""
        if self._is_set:
            self._is_set = False
            signal.setitimer(signal.ITIMER_REAL, 0)


_alarm: Final = _ReadAlarm()  # one, as the process has one such timer


def note_taken() -> None:
    """A request has been read: what answers it is not to be interrupted. SQLite would wait a fifth of its time for a
    lock, since each signal ends one of its sleeps.
    """
    _alarm.clear()


class RequestLock:
    """Who may take the next request: whoever comes first once it is free, as a rule the task that has just answered."""

    def __init__(self) -> None:
        self._is_held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        """Waits only while it is held. Cancelled then: nothing was taken."""
        while self._is_held:
            await self._waiting.park()
        self._is_held = True

    async def __aexit__(self, *_: object) -> None:
        self._is_held = False
        # It comes to run when the holder waits for something or has ended; if that holds the lock again, it waits on.
        self._waiting.unpark()


class RequestWait:
    """The waits for one device, whose owner then reads from it, in the main thread and holding Python's lock.

    A program that is killed takes back what it has asked. Where that was the only request, the read waits for the next
    one, and with it all that the process has to do. So the device is looked at last of all before the read, and
    signals are on their way that end a read which has begun too late: libfuse and pyfuse3 then go on with the next
    wait. One signal is not enough: a process that was stopped, or throttled, has had it before it reads.
    """

    def __init__(self) -> None:
        """Takes SIGALRM and the timer of this process. Raises ValueError in another than the main thread."""
        self._poll: select.poll | None = None
        self._in_a_row = 0
        signal.signal(signal.SIGALRM, _do_nothing)

    async def wait_readable(self, fd: int) -> None:
        """As trio.lowlevel.wait_readable, of which it makes use where no request is there or others have to run."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        if self._in_a_row < IN_A_ROW_MAX and self._poll.poll(0):
            self._in_a_row += 1
        else:
            self._in_a_row = 1
            _alarm.clear()  # nobody is woken for nothing
            await trio.lowlevel.wait_readable(fd)
            while not self._poll.poll(0):
                await trio.lowlevel.wait_readable(fd)
        _alarm.set()


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """What the signal is for has happened: the call that it came into has ended."""


class _Instead:
    """What stands for a module: some names are what was given for them, all others are the module's."""

    def __init__(self, module: Any, **others: object) -> None:
        self._module = module
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def trio_for_pyfuse3() -> Any:
    """What to put in the place of `pyfuse3.trio`."""
    lowlevel = _Instead(trio.lowlevel, wait_readable=RequestWait().wait_readable)
    return _Instead(trio, Lock=RequestLock, lowlevel=lowlevel)


@contextmanager
def taking_requests(pyfuse3: Any) -> Iterator[None]:
    """Around the main loop of that module, of which a process has one, in its main thread. What unmounts afterwards,
    in C and with programs of its own, is not to be interrupted.
    """
    pyfuse3.trio = trio_for_pyfuse3()
    try:
        yield
    finally:
        _alarm.clear()
