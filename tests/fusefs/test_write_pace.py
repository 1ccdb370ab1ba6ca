"""Where a write is carried out: on the loop while the disk takes it at once, else in a thread."""

from __future__ import annotations

import pytest

from cloudai_fusefs.write_pace import AT_ONCE_BYTES_MAX, HELD_UP_SECONDS, REST_SECONDS, WritePace


class Clock:
    def __init__(self) -> None:
        self.now_seconds = 100.0

    def __call__(self) -> float:
        return self.now_seconds

    def pass_by(self, seconds: float) -> None:
        self.now_seconds += seconds


def test_writes_go_at_once_while_the_disk_takes_them_at_once() -> None:
    clock = Clock()
    pace = WritePace(clock)
    for _ in range(3):
        pace.write(clock.pass_by, HELD_UP_SECONDS / 2)
        assert pace.is_quick(AT_ONCE_BYTES_MAX)


def test_write_of_more_than_the_kernel_sends_at_once_goes_by_a_thread() -> None:
    assert not WritePace(Clock()).is_quick(AT_ONCE_BYTES_MAX + 1)


def test_after_a_write_that_was_held_up_the_next_ones_go_by_a_thread_for_a_while() -> None:
    clock = Clock()
    pace = WritePace(clock)
    pace.write(clock.pass_by, 2 * HELD_UP_SECONDS)
    assert not pace.is_quick(1)
    clock.now_seconds += REST_SECONDS / 2
    assert not pace.is_quick(1)
    clock.now_seconds += REST_SECONDS / 2
    assert pace.is_quick(1)


def test_write_that_failed_after_it_was_held_up_counts_too() -> None:
    clock = Clock()
    pace = WritePace(clock)

    def fail_late() -> None:
        clock.pass_by(2 * HELD_UP_SECONDS)
        raise OSError

    with pytest.raises(OSError):
        pace.write(fail_late)
    assert not pace.is_quick(1)
