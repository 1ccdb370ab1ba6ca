"""Tells the kernel what is not true any more, from a thread of its own.

A notification can wait for a request that this process has yet to answer, so it must never run on the loop.
Attributes alone: with AUTO_INVAL_DATA, which libfuse turns on, a changed size or mtime drops the pages at
the next look, and `open` decides about the rest.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
from collections.abc import Iterable
from typing import Final

import pyfuse3

from cloudai_fusefs.run_tree import Invalidation

logger = logging.getLogger(__name__)

WAITING_MAX: Final = 100_000
"""Beyond it notifications are dropped: timeouts of at most half a minute make up for them."""


class KernelNotifier:
    """Started when the mount is up, stopped before it goes."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Invalidation | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="kernel-notifier", daemon=True)
        self._thread.start()

    def tell(self, invalidations: Iterable[Invalidation]) -> None:
        """Returns at once. What is told before the start, or after the stop, nobody has cached."""
        if self._thread is None:
            return
        for invalidation in dict.fromkeys(invalidations):
            if self._waiting.qsize() < WAITING_MAX:
                self._waiting.put(invalidation)

    def stop(self) -> None:
        """No notification starts after this; one under way ends with the mount."""
        if self._thread is not None:
            self._thread = None
            self._waiting.put(None)

    def _run(self) -> None:
        while (invalidation := self._waiting.get()) is not None:
            if self._thread is None:
                return
            try:
                self._notify(invalidation)
            except OSError as error:
                # ENOENT: the kernel had nothing cached. ENOTEMPTY, EBUSY: somebody is at work below.
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
                    logger.info("the kernel refused a notification: %s", error)

    @staticmethod
    def _notify(invalidation: Invalidation) -> None:
        ino = pyfuse3.InodeT(invalidation.ino)
        if invalidation.name is None:
            pyfuse3.invalidate_inode(ino, attr_only=True)
        else:
            name = pyfuse3.FileNameT(invalidation.name)
            pyfuse3.invalidate_entry(ino, name, pyfuse3.InodeT(invalidation.removed_ino))
