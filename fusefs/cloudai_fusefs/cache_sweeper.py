"""When a cache is swept: once at first, and again whenever much has been written to it. In a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

UNSWEPT_SHARE: Final = 0.1
"""Of the size limit: after writing this much, look again, since other processes write here as well.
N mounts exceed the limit together by N times this share at most."""

SPACE_SWEEP_INTERVAL_SECONDS: Final = 10.0
"""Between sweeps for free space: when others filled the disk, deleting our last chunks may not help."""


class CacheSweeper:
    """The sweeps of one cache by this process, one at a time. Used from the loop only."""

    def __init__(
        self,
        sweep: Callable[[], int],
        *,
        bytes_max: int,
        nursery: trio.Nursery,
        note_failure: Callable[[OSError], None],
    ) -> None:
        """`sweep` deletes what is too much and returns the bytes that remain; it runs in a thread, from now on.

        It may raise FileNotFoundError before anything was written, and any OSError, which is noted.
        """
        self._sweep = sweep
        self._bytes_max = bytes_max
        self._nursery = nursery
        self._note_failure = note_failure
        # A thread of its own: neither a read nor a write waits for it.
        self._thread = trio.CapacityLimiter(1)
        self._stored_bytes = 0  # as of the last sweep, and what this process wrote since
        self._unswept_bytes = 0
        self._is_sweeping = False
        self._has_swept = trio.Event()
        self._space_sweep_at_seconds = -SPACE_SWEEP_INTERVAL_SECONDS
        self._begin()

    @property
    def stored_bytes(self) -> int:
        """What the cache takes of its disk, as of the last sweep and with what this process wrote since."""
        return self._stored_bytes

    async def wait_swept(self) -> None:
        """Returns when the first sweep is over. Cancelled: nothing changed."""
        await self._has_swept.wait()

    def note_written(self, size_bytes: int) -> None:
        """The cache has grown by so much."""
        self._stored_bytes += size_bytes
        self._unswept_bytes += size_bytes
        if self._is_due:
            self._begin()

    def note_lack_of_space(self) -> None:
        """Something was not written, for the disk is full."""
        now = trio.current_time()
        if now - self._space_sweep_at_seconds < SPACE_SWEEP_INTERVAL_SECONDS:
            return
        self._space_sweep_at_seconds = now
        self._begin()

    @property
    def _is_due(self) -> bool:
        has_grown = self._unswept_bytes > self._bytes_max * UNSWEPT_SHARE
        return has_grown or (self._unswept_bytes > 0 and self._stored_bytes > self._bytes_max)

    def _begin(self) -> None:
        if self._is_sweeping:
            return
        self._is_sweeping = True
        self._nursery.start_soon(self._run)

    async def _run(self) -> None:
        """Cancelled: stops where the sweep looks for it; the next one goes on."""
        stored_before_bytes, self._unswept_bytes = self._stored_bytes, 0
        try:
            kept_bytes = await trio.to_thread.run_sync(
                self._sweep, limiter=self._thread, abandon_on_cancel=True
            )
        except FileNotFoundError:
            return
        except OSError as error:
            self._note_failure(error)
            return
        finally:
            self._is_sweeping = False
            self._has_swept.set()
        # What was written meanwhile may be counted twice: the next sweep comes early then, never late.
        self._stored_bytes = kept_bytes + self._stored_bytes - stored_before_bytes
        if self._is_due:
            self._begin()  # there may be no write after those that found this one under way
