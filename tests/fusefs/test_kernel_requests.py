"""Who takes the kernel's next request: the task that has just answered, another where it waits; and all have a turn."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cloudai_fusefs.handler_guard import handler
from cloudai_fusefs.handler_patience import HandlerPatience
from cloudai_fusefs.kernel_requests import (
    IN_A_ROW_MAX,
    READ_SECONDS_MAX,
    RequestLock,
    note_taken,
    taking_requests,
    trio_for_pyfuse3,
)
from cloudai_fusefs.request_counters import RequestCounters

Handler = Callable[[bytes], Awaitable[None]]

# What is tested takes SIGALRM, by which other tests are ended.
pytestmark = pytest.mark.timeout(60, method="thread")


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGALRM)
    yield
    note_taken()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)


class Device:
    """A pipe, a byte of which is a request."""

    def __init__(self) -> None:
        self.fd, self._sender = os.pipe()
        os.set_blocking(self.fd, False)

    def send(self, requests: bytes) -> None:
        os.write(self._sender, requests)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._sender)


class Loop:
    """What pyfuse3's main loop does: a task that takes a request makes another where none waits for the next."""

    def __init__(self, device: Device, handler: Handler, used_trio: Any) -> None:
        self.trio = used_trio
        self.task_count = 0
        self.waiting_count = 0
        self.taken_by: list[tuple[bytes, int]] = []
        self._device = device
        self._handler = handler
        self._lock = used_trio.Lock()
        self._is_over = False

    async def run(self) -> None:
        async with self.trio.open_nursery() as nursery:
            self._nursery = nursery
            self._start()

    def end(self) -> None:
        self._is_over = True
        self.trio.lowlevel.notify_closing(self._device.fd)

    def _start(self) -> None:
        self.task_count += 1
        self._nursery.start_soon(self._work, self.task_count)

    async def _work(self, number: int) -> None:
        while not self._is_over and self.waiting_count <= 1:
            if not await self._wait():
                break
            request = os.read(self._device.fd, 1)
            if not self.waiting_count:
                self._start()
            self.taken_by.append((request, number))
            await self._handler(request)

    async def _wait(self) -> bool:
        self.waiting_count += 1
        try:
            async with self._lock:
                if self._is_over:
                    return False
                await self.trio.lowlevel.wait_readable(self._device.fd)
        except self.trio.ClosedResourceError:
            return False
        finally:
            self.waiting_count -= 1
        return True


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    device.close()


async def answer_at_once(_: bytes) -> None:
    pass


@asynccontextmanager
async def running(device: Device, handler: Handler = answer_at_once) -> AsyncIterator[Loop]:
    """Ended when all that was sent has been taken."""
    async with trio.open_nursery() as nursery:
        loop = Loop(device, handler, trio_for_pyfuse3())
        nursery.start_soon(loop.run)
        yield loop
        await wait_all_tasks_blocked()
        loop.end()


async def test_who_has_answered_takes_the_next_request(device: Device) -> None:
    async with running(device) as loop:
        for _ in range(5):
            device.send(b"a")
            await wait_all_tasks_blocked()
        device.send(b"a" * IN_A_ROW_MAX)

    assert loop.taken_by == [(b"a", 1)] * (5 + IN_A_ROW_MAX)
    assert loop.task_count == 2


async def test_what_is_there_already_is_taken_without_a_turn_of_the_loop(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_readable = trio.lowlevel.wait_readable
    wait_count = 0

    async def counted(fd: int) -> None:
        nonlocal wait_count
        wait_count += 1
        await wait_readable(fd)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", counted)
    device.send(b"a" * 10 * IN_A_ROW_MAX)
    async with running(device) as loop:
        pass
    assert len(loop.taken_by) == 10 * IN_A_ROW_MAX
    assert wait_count <= 12


async def test_while_one_waits_another_takes_the_next_request(device: Device) -> None:
    gate = trio.Event()

    async def wait_for_gate(request: bytes) -> None:
        if request == b"w":
            await gate.wait()

    async with running(device, wait_for_gate) as loop:
        device.send(b"w" * 20 + b"a")
        await wait_all_tasks_blocked()
        assert len({number for _, number in loop.taken_by}) == 21
        gate.set()
        await wait_all_tasks_blocked()
        device.send(b"b")

    assert [request for request, _ in loop.taken_by[-2:]] == [b"a", b"b"]


async def test_no_request_waits_while_those_who_could_take_it_are_cancelled() -> None:
    """A task that waits for its turn ends, as at an unmount; the others go on."""
    lock = RequestLock()
    entered: list[str] = []

    async def enter(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                entered.append(name)

    cancelled, other = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(enter, "cancelled", cancelled)
            await wait_all_tasks_blocked()
            nursery.start_soon(enter, "other", other)
            await wait_all_tasks_blocked()
            cancelled.cancel()
        await wait_all_tasks_blocked()
    assert entered == ["other"]


async def test_one_that_is_cancelled_when_its_turn_has_come_hands_it_on() -> None:
    lock = RequestLock()
    entered: list[str] = []

    async def enter(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                await trio.lowlevel.checkpoint()
                entered.append(name)

    first = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(enter, "first", first)
            await wait_all_tasks_blocked()
            nursery.start_soon(enter, "second", trio.CancelScope())
            await wait_all_tasks_blocked()
        first.cancel()  # woken already
    assert entered == ["second"]


async def test_others_have_a_turn_however_many_requests_come(device: Device) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while len(loop.taken_by) < 40 * IN_A_ROW_MAX:
            turns += 1
            await trio.lowlevel.checkpoint()
        loop.end()

    async with trio.open_nursery() as nursery:
        loop = Loop(device, answer_at_once, trio_for_pyfuse3())
        device.send(b"a" * 40 * IN_A_ROW_MAX)
        nursery.start_soon(loop.run)
        nursery.start_soon(count_turns)
    assert turns >= 40


async def test_an_idle_loop_waits_for_the_device_and_does_not_look_again_and_again(device: Device) -> None:
    async with running(device) as loop:
        await wait_all_tasks_blocked()  # of a loop that looked on, this would not return
        device.send(b"a")
    assert loop.taken_by == [(b"a", 1)]


async def test_all_tasks_end_when_the_loop_does(device: Device) -> None:
    gate = trio.Event()

    async def wait_for_gate(_: bytes) -> None:
        await gate.wait()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            loop = Loop(device, wait_for_gate, trio_for_pyfuse3())
            nursery.start_soon(loop.run)
            device.send(b"w" * 30)
            await wait_all_tasks_blocked()
            gate.set()
            loop.end()
    assert loop.waiting_count == 0


async def test_request_that_is_gone_by_then_is_waited_for_again(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R12. Between what trio was told of the device and the turn of who waits, its program may have been killed."""
    real_wait = trio.lowlevel.wait_readable
    wait_count = 0

    async def believe_too_much(fd: int) -> None:
        nonlocal wait_count
        wait_count += 1
        if wait_count > 1:
            await real_wait(fd)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", believe_too_much)
    async with running(device) as loop:
        await wait_all_tasks_blocked()
        assert loop.taken_by == []
        device.send(b"a")
    assert loop.taken_by == [(b"a", 1)]


async def test_read_that_finds_no_request_any_more_ends_soon() -> None:
    """R12. Taken back at the last moment, it leaves the process in a read that nothing else would end."""
    device = Device()
    os.set_blocking(device.fd, True)
    wait_readable = trio_for_pyfuse3().lowlevel.wait_readable
    library = ctypes.CDLL(None, use_errno=True)  # Python's own read would go on after the signal
    for _ in range(3):
        device.send(b"a")
        await wait_readable(device.fd)
        os.read(device.fd, 1)
        began_at_seconds = time.monotonic()
        assert library.read(device.fd, ctypes.create_string_buffer(1), 1) == -1
        assert ctypes.get_errno() == errno.EINTR
        assert time.monotonic() - began_at_seconds < 30
    device.close()


async def test_read_that_begins_late_finds_no_request_and_ends_soon_too() -> None:
    """R12. A process that was stopped or throttled before it read has had the first signal already."""
    device = Device()
    os.set_blocking(device.fd, True)
    wait_readable = trio_for_pyfuse3().lowlevel.wait_readable
    library = ctypes.CDLL(None, use_errno=True)
    device.send(b"a")
    await wait_readable(device.fd)
    os.read(device.fd, 1)
    ends_at_seconds = time.monotonic() + 3 * READ_SECONDS_MAX
    while time.monotonic() < ends_at_seconds:
        pass
    assert library.read(device.fd, ctypes.create_string_buffer(1), 1) == -1
    assert ctypes.get_errno() == errno.EINTR
    device.close()


async def test_nobody_is_woken_while_no_request_comes(device: Device) -> None:
    async with running(device):
        device.send(b"a")
        await wait_all_tasks_blocked()
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


async def test_nothing_is_interrupted_after_the_loop(device: Device) -> None:
    module = SimpleNamespace(trio=trio)
    with taking_requests(module):
        device.send(b"a")
        await module.trio.lowlevel.wait_readable(device.fd)
        assert signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_has_no_other_is_trios_own() -> None:
    stand_in = trio_for_pyfuse3()
    assert stand_in.open_nursery is trio.open_nursery
    assert stand_in.lowlevel.current_task is trio.lowlevel.current_task
    assert stand_in.ClosedResourceError is trio.ClosedResourceError


class Handlers:
    """As Operations has them."""

    wait_seconds_max = 10.0

    def __init__(self) -> None:
        self.counters = RequestCounters()
        self.patience = HandlerPatience(lambda: 0.0)

    @handler
    async def read(self) -> tuple[float, float]:
        return signal.getitimer(signal.ITIMER_REAL)


async def test_nothing_that_answers_a_request_is_interrupted(device: Device) -> None:
    """SQLite would wait a fifth of its time for a lock."""
    device.send(b"a")
    await trio_for_pyfuse3().lowlevel.wait_readable(device.fd)
    assert await Handlers().read() == (0.0, 0.0)


def test_timer_of_somebody_else_goes_on() -> None:
    signal.setitimer(signal.ITIMER_REAL, 1000)
    note_taken()
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
