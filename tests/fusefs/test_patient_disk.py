from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio

from cloudai_fusefs import patient_disk
from cloudai_fusefs.patient_disk import HUNG_SECONDS, PatientDisk


@pytest.fixture
def answers() -> Iterator[threading.Event]:
    """Set, the disk answers; at the end of a test it does, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_disk, "PATIENCE_SECONDS", 0.2)


def stop_the_clock_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look seems to have begun just now."""
    monkeypatch.setattr(patient_disk, "monotonic", lambda: 0.0)


async def test_what_a_look_finds_or_raises_is_passed_on() -> None:
    disk = PatientDisk(1)
    assert await disk.look(divmod, 7, 2) == (3, 1)
    with pytest.raises(FileNotFoundError):
        await disk.look(open, "/no/such/file")


async def test_disk_that_hangs_is_asked_once_and_holds_nobody(answers: threading.Event) -> None:
    disk = PatientDisk(2)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await disk.look(answers.wait, 60)
    assert len(disk._began_at_seconds) <= 2


async def test_those_who_wait_behind_a_look_that_hangs_are_let_go(answers: threading.Event) -> None:
    disk = PatientDisk(1)

    async def be_let_go() -> None:
        with pytest.raises(TimeoutError):
            await disk.look(answers.wait, 60)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(be_let_go)


async def test_waiting_for_a_turn_is_no_hanging(
    answers: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_the_clock_of_threads(monkeypatch)
    disk = PatientDisk(1)
    found: list[bool] = []

    async def look() -> None:
        found.append(await disk.look(answers.wait, 60))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(look)
            await trio.sleep(3 * patient_disk.PATIENCE_SECONDS)
            answers.set()
    assert found == [True] * 3


async def test_disk_is_asked_again_after_a_while(
    answers: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = PatientDisk(2)
    with pytest.raises(TimeoutError):
        await disk.look(answers.wait, 60)
    answers.set()
    later = trio.current_time() + HUNG_SECONDS
    monkeypatch.setattr(trio, "current_time", lambda: later)
    assert await disk.look(answers.wait, 60)
