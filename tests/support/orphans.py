"""Takes leave of processes whose parents have ended, where the machine's first process does not, or not at once.

podman waits for the end of conmon, which it started and left to process 1, for 20 seconds: in a container process 1 may
be anything.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_SECONDS = 0.02


@contextmanager
def reaping_orphans() -> Iterator[None]:
    """Within the context the orphans of this process's descendants are its children, and are gone once they end."""
    libc = ctypes.CDLL(None, use_errno=True)
    is_over = threading.Event()
    thread = threading.Thread(target=_reap_until, args=(is_over,), name="orphans")
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    thread.start()
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        is_over.set()
        thread.join()


def _reap_until(is_over: threading.Event) -> None:
    own_session = os.getsid(0)
    while not is_over.wait(_LOOK_SECONDS):
        for tasks in Path("/proc/self/task").glob("*/children"):
            with suppress(OSError):  # a thread that has just ended
                for process in map(int, tasks.read_text().split()):
                    # What this process started itself is in its session, and is waited for by who started it.
                    if _ended_in_another_session(process, own_session):
                        os.waitpid(process, os.WNOHANG)


def _ended_in_another_session(process: int, own_session: int) -> bool:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    state, session = fields[0], int(fields[3])
    return state == "Z" and session != own_session
