"""Closes the descriptors of removed files in a thread of its own.

The last close of a removed file frees its blocks: 2 ms on a busy disk, half a second of the mount's loop for an
acknowledged batch of small files.
"""

from __future__ import annotations

import os
import queue
import threading


class DescriptorCloser:
    """A thread that begins with the first descriptor. Used from the mount's loop only."""

    def __init__(self, *, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def has_room(self) -> bool:
        """Whether one more may wait."""
        return self._waiting.qsize() < self._waiting_max

    def close(self, descriptor: int) -> None:
        """Closes it soon and does not wait; at once where too many wait already."""
        if not self.has_room:
            os.close(descriptor)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="descriptor-closer", daemon=True)
            self._thread.start()
        self._waiting.put(descriptor)

    def stop(self) -> None:
        """Returns when everything is closed."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (descriptor := self._waiting.get()) is not None:
            os.close(descriptor)
