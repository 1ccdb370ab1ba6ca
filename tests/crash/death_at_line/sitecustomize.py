"""Makes a mount daemon that is asked to die of SIGKILL at a line of its write path, and not before.

Python imports this module by itself where its folder is on PYTHONPATH. $CRASH_LINES is how many more lines of
these modules are carried out after the signal ARM has come, in any thread. A kill from outside meets the few
microseconds between two system calls once in thousands of rounds; this meets each as often as any other line.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Final

ARM: Final = signal.SIGRTMIN

_MODULES: Final = (
    "commit_composer.py",
    "commit_sender.py",
    "journal.py",
    "managed_changes.py",
    "namespace.py",
    "open_files.py",
    "pending_rows.py",
    "rearrangements.py",
    "recorded_removals.py",
    "refusals.py",
    "removal_sender.py",
    "run_tree.py",
    "run_uploader.py",
    "staged_file.py",
    "staging.py",
    "stray_sender.py",
)


class _DeathAtLine:
    def __init__(self, line_count: int) -> None:
        self._left = line_count
        self._is_armed = False

    def arm(self, number: int, frame: FrameType | None) -> None:
        self._is_armed = True

    def trace_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        path = frame.f_code.co_filename
        is_counted = "cloudai_fusefs" in path and path.endswith(_MODULES)
        return self._trace_line if is_counted else None

    def _trace_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and self._is_armed:
            self._left -= 1
            if self._left <= 0:
                place = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
                os.write(2, f"killed before {place} in {frame.f_code.co_name}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)
        return self._trace_line


if "cloudai_daemon.mount_process" in sys.orig_argv and os.environ.get("CRASH_LINES"):
    _death = _DeathAtLine(int(os.environ["CRASH_LINES"]))
    signal.signal(ARM, _death.arm)
    threading.settrace(_death.trace_call)
    sys.settrace(_death.trace_call)
