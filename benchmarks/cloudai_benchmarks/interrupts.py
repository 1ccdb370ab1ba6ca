"""Signals that end the benchmark, and never its cleanup."""

from __future__ import annotations

import atexit
import os
import signal
from types import FrameType


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP, from now until the process ends.

    The first is a KeyboardInterrupt; those that come after it, or during the cleanup and the report, change nothing.
    """

    def __init__(self) -> None:
        self._is_held = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._take)
            # While the interpreter goes down it gives signals back their default, and the exit status would be theirs.
            atexit.register(signal.signal, number, signal.SIG_IGN)

    def hold(self) -> None:
        """From now on none raises."""
        self._is_held = True

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._is_held:
            os.write(2, b"unmounting, stopping and reporting first\n")
            return
        self._is_held = True
        raise KeyboardInterrupt
