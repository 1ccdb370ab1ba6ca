"""Whether the state disk takes what is written at once.

Into the page cache 128 KiB take 20-100 us, less than the way to another thread and back (100 us of CPU, two
changes of thread). While too many pages wait for the disk, the kernel holds up who writes for up to 200 ms:
that must not be the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, ParamSpec

from cloudai_model.limits import MIB

P = ParamSpec("P")

AT_ONCE_BYTES_MAX: Final = MIB
"""Of one write: 0.7 ms where every page is a new one. Also the most that the kernel sends at once."""

HELD_UP_SECONDS: Final = 0.01
"""Of one write; longer than the loop may stand still for it."""

REST_SECONDS: Final = 1.0
"""After a write that was held up, all go by a thread."""


class WritePace:
    """The pace of one state disk. Used from the mount's loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at_once_from_seconds = clock()

    def is_quick(self, length_bytes: int) -> bool:
        """Whether so much may be written on the loop."""
        return length_bytes <= AT_ONCE_BYTES_MAX and self._clock() >= self._at_once_from_seconds

    def write(self, write_at_once: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls it, on the loop, and notes how long it took, also of one that raises."""
        begun_seconds = self._clock()
        try:
            write_at_once(*args, **kwargs)
        finally:
            ended_seconds = self._clock()
            if ended_seconds - begun_seconds > HELD_UP_SECONDS:
                self._at_once_from_seconds = ended_seconds + REST_SECONDS
