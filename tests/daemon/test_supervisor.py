"""When a supervisor starts the daemon again: its pauses, its end."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudai_daemon import supervisor
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.process_identity import ProcessIdentity
from cloudai_daemon.supervisor import PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN, Supervisor
from cloudai_fusefs.mount_control import MountConfig

CONFIG = MountConfig(
    source="127.0.0.1:7443", mount_point=Path("/mnt/not-there"), state_dir=Path("/s"), cache_dir=Path("/c")
)


class Daemons:
    """Children of this process that end as they are told, in the place of mount daemons."""

    def __init__(self, *ends: int | CommandFailed | OSError) -> None:
        """Each an exit status, or why it cannot be started."""
        self._ends = list(ends)
        self.pauses_seconds: list[float] = []

    def start(self, config: MountConfig) -> ProcessIdentity:
        end = self._ends.pop(0)
        if isinstance(end, CommandFailed | OSError):
            raise end
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"exit {end}"], {})
        return ProcessIdentity.of_child(pid)


@pytest.fixture(autouse=True)
def no_signals_kept_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it waited each time; nothing waits."""
    found: list[float] = []

    def note(seconds: float) -> bool:
        found.append(seconds)
        return False

    monkeypatch.setattr(supervisor, "_is_told_to_end", note)
    return found


@pytest.fixture(autouse=True)
def mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dead daemons leave."""
    monkeypatch.setattr(supervisor, "find_mounted", lambda path: path)
    monkeypatch.setattr(supervisor, "is_abandoned", lambda path: True)


def test_daemon_that_keeps_dying_is_started_after_pauses_that_double_up_to_a_bound(
    pauses: list[float],
) -> None:
    daemons = Daemons(*[1] * 9, 0)

    assert Supervisor(CONFIG, daemons.start).run(lambda: None) == ExitCode.OK

    doubled = [PAUSE_SECONDS_MIN * 2**step for step in range(8)]
    assert pauses == [0.0, *(min(seconds, PAUSE_SECONDS_MAX) for seconds in doubled)]


@pytest.mark.parametrize("end", [ExitCode.OK, ExitCode.NOT_DURABLE])
def test_daemon_that_ended_in_order_is_not_started_again(end: ExitCode, pauses: list[float]) -> None:
    assert Supervisor(CONFIG, Daemons(end).start).run(lambda: None) == end
    assert pauses == []


def test_daemon_that_has_served_for_long_is_started_again_at_once(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STEADY_SECONDS", 0.0)

    Supervisor(CONFIG, Daemons(1, 1, 1, 0).start).run(lambda: None)

    assert pauses == [0.0, 0.0, 0.0]


def test_mount_that_cannot_be_made_again_is_tried_again(pauses: list[float]) -> None:
    refusal = CommandFailed(ExitCode.MOUNT_FAILED, "the master is not there")

    assert Supervisor(CONFIG, Daemons(1, refusal, refusal, 0).start).run(lambda: None) == ExitCode.OK

    assert pauses == [0.0, PAUSE_SECONDS_MIN, 2 * PAUSE_SECONDS_MIN]


def test_machine_that_has_no_room_for_another_process_is_tried_again(pauses: list[float]) -> None:
    refusal = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    assert Supervisor(CONFIG, Daemons(1, refusal, 0).start).run(lambda: None) == ExitCode.OK

    assert pauses == [0.0, PAUSE_SECONDS_MIN]


def test_first_mount_that_cannot_be_made_is_refused() -> None:
    refusal = CommandFailed(ExitCode.MOUNT_FAILED, "the master is not there")

    with pytest.raises(CommandFailed):
        Supervisor(CONFIG, Daemons(refusal).start).run(lambda: pytest.fail("it is not ready"))


def test_daemon_that_dies_after_the_unmount_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "find_mounted", lambda path: None)

    assert Supervisor(CONFIG, Daemons(1).start).run(lambda: None) == 1


def test_place_that_somebody_else_has_mounted_meanwhile_is_left_to_him(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "is_abandoned", lambda path: False)

    assert Supervisor(CONFIG, Daemons(1).start).run(lambda: None) == ExitCode.OK


def test_place_that_lost_its_shield_was_unmounted_and_stays_so(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = CommandFailed(ExitCode.MOUNT_FAILED, "the master is not there")
    shields = iter([True, True, False])
    monkeypatch.setattr(supervisor, "has_shield", lambda path: next(shields))

    assert Supervisor(CONFIG, Daemons(1, refusal).start).run(lambda: None) == ExitCode.OK


def test_signal_between_two_daemons_ends_it() -> None:
    refusal = CommandFailed(ExitCode.MOUNT_FAILED, "the master is not there")
    daemons = Daemons(1, refusal, refusal, refusal, refusal, refusal)
    timer = threading.Timer(
        0.7, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    timer.start()

    assert Supervisor(CONFIG, daemons.start).run(lambda: None) == ExitCode.OK

    timer.join()
