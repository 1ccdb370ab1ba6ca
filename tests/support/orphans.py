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
    left_behind: set[int] = set()
    while not is_over.wait(_LOOK_SECONDS):
        children = _children()
        left_behind &= children
        left_behind |= {process for process in children - left_behind if _is_left_behind(process)}
        for process in left_behind:
            # Of one that has not ended it does nothing.
            with suppress(ChildProcessError):
                os.waitpid(process, os.WNOHANG)


def _children() -> set[int]:
    found: set[int] = set()
    for tasks in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            found.update(map(int, tasks.read_text().split()))
    return found


def _is_left_behind(process: int) -> bool:
    """Whether it is one of those that somebody else has started: a zombie does not say, so it is asked before."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return command[0].endswith(b"/conmon") or b"cloudai_daemon.mount_process" in command
