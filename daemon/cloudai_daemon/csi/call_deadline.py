"""How long whoever made a call waits for its answer, shared by all that the call waits for."""

from __future__ import annotations

import time


class CallDeadline:
    """Of one call, from the moment this is made."""

    def __init__(self, seconds: float) -> None:
        self._end_seconds = time.monotonic() + seconds

    def left(self, seconds_max: float) -> float:
        """For how many seconds something may still be waited for, at most those given; 0 once the time is over."""
        return max(0.0, min(seconds_max, self._end_seconds - time.monotonic()))

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end_seconds
