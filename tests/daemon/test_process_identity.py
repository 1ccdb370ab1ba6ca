"""Which process a pid is, and whether that one is still there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cloudai_daemon.process_identity import ProcessIdentity


def is_alive(identity: ProcessIdentity) -> bool:
    return identity.is_alive


def test_process_that_was_looked_at_and_has_ended_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-E", "-c", "import time; time.sleep(60)"])
    identity = ProcessIdentity.of(process.pid)
    assert is_alive(identity)
    process.kill()
    process.wait()

    assert not is_alive(identity)
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(process.pid)
