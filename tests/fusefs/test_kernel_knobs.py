"""The kernel's limits of a mount: raised, never lowered, and left where they may not be touched."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from cloudai_fusefs.handler_patience import PATIENT_HANDLERS_MAX
from cloudai_fusefs.kernel_knobs import (
    BACKGROUND_REQUESTS_MAX,
    CONGESTION_REQUESTS,
    READ_AHEAD_KIB,
    background_knobs,
    read_ahead_knob,
    turn_up_knobs,
)

DEVICE = os.makedev(0, 57)


@pytest.fixture
def sys_dir(tmp_path: Path) -> Path:
    """Files where the kernel has them, with its usual numbers."""
    for path, number in (
        ("class/bdi/0:57/read_ahead_kb", 128),
        ("fs/fuse/connections/57/max_background", 12),
        ("fs/fuse/connections/57/congestion_threshold", 9),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{number}\n")
    return tmp_path


def numbers(sys_dir: Path) -> list[int | None]:
    return [knob.read() for knob in (read_ahead_knob(DEVICE, sys_dir), *background_knobs(DEVICE, sys_dir))]


def test_all_three_are_raised(sys_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    turn_up_knobs(DEVICE, sys_dir)
    assert numbers(sys_dir) == [READ_AHEAD_KIB, BACKGROUND_REQUESTS_MAX, CONGESTION_REQUESTS]
    assert not caplog.records


def test_what_is_higher_stays(sys_dir: Path) -> None:
    for knob in (read_ahead_knob(DEVICE, sys_dir), *background_knobs(DEVICE, sys_dir)):
        knob.path.write_text("16384\n")
    turn_up_knobs(DEVICE, sys_dir)
    assert numbers(sys_dir) == [16384, 16384, 16384]


def test_without_fusectl_the_others_are_raised_and_the_log_says_what_is_not(
    sys_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection = sys_dir / "fs/fuse/connections/57"
    for path in connection.iterdir():
        path.unlink()
    turn_up_knobs(DEVICE, sys_dir)
    assert numbers(sys_dir) == [READ_AHEAD_KIB, None, None]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.INFO, "the kernel's max_background stays as it is: No such file or directory"),
        (logging.INFO, "the kernel's congestion_threshold stays as it is: No such file or directory"),
    ]
    assert not list(connection.iterdir())  # nothing is made there


def test_read_ahead_of_all_readers_leaves_handlers_to_everything_else() -> None:
    assert CONGESTION_REQUESTS < BACKGROUND_REQUESTS_MAX < PATIENT_HANDLERS_MAX
