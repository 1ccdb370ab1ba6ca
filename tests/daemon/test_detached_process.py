from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from cloudai_daemon.detached_process import start_detached, start_to_be_detached
from cloudai_daemon.process_identity import ProcessIdentity


@pytest.fixture
def inherited() -> Iterator[int]:
    """A descriptor that whoever called left open for its children, as flock(1) does with its lock."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    yield write
    os.close(read)
    os.close(write)


def test_detached_process_has_its_three_descriptors_and_no_others(inherited: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        process = start_detached(("/bin/sleep", "100"), {}, stdin=null, stdout=null, stderr=null)
    finally:
        os.close(null)
    try:
        assert sorted(os.listdir(f"/proc/{process.pid}/fd")) == ["0", "1", "2"]
        assert os.getsid(process.pid) == process.pid
    finally:
        _end(process)


def _end(process: ProcessIdentity) -> None:
    process.send_signal(signal.SIGKILL)
    os.waitpid(process.pid, 0)


def test_process_to_be_detached_is_in_its_callers_group() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        process = start_to_be_detached(("/bin/sleep", "100"), {}, stdin=null, stdout=null, stderr=null)
    finally:
        os.close(null)
    try:
        assert os.getpgid(process.pid) == os.getpgrp()
    finally:
        _end(process)
