"""Tells the kernel what is not true any more, from threads of its own.

A notification can wait for a request that this process has yet to answer, so it must never run on the loop.
Attributes alone, for a start: with AUTO_INVAL_DATA, which libfuse turns on, a changed size or mtime drops the
pages at the next look, and `open` decides about the rest. Of a file that grew the pages must go first (see
Node.hide_growth); that waits for reads under way, and so has a thread that holds up no other news.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import pyfuse3
import trio

from cloudai_fusefs.node import Node
from cloudai_fusefs.run_nodes import Invalidation

log = logging.getLogger(__name__)

WAITING_MAX: Final = 100_000
"""Beyond it notifications are dropped: timeouts of at most half a minute make up for them."""


_Waiting = queue.SimpleQueue[Invalidation | None]


class KernelNotifier:
    """Started when the mount is up, stopped before it goes."""

    def __init__(self) -> None:
        self._waiting = _Waiting()
        self._growing = _Waiting()
        self._loop: trio.lowlevel.TrioToken | None = None  # None: not started, or stopped

    def start(self) -> None:
        """From the loop of the mount."""
        self._loop = trio.lowlevel.current_trio_token()
        for name, waiting, notify in (
            ("kernel-notifier", self._waiting, self.notify),
            ("page-dropper", self._growing, self._drop_pages),
        ):
            threading.Thread(target=self._run, args=(waiting, notify), name=name, daemon=True).start()

    def tell(self, invalidations: Iterable[Invalidation]) -> None:
        """Returns at once. What is told before the start, or after the stop, nobody has cached."""
        told: set[Invalidation] = set()
        for invalidation in invalidations:
            if invalidation in told and invalidation.grown is None:
                continue  # each growth counts: the last one of a file shows its size
            told.add(invalidation)
            waiting = self._waiting if invalidation.grown is None else self._growing
            if self._loop is not None and waiting.qsize() < WAITING_MAX:
                waiting.put(invalidation)
            elif invalidation.grown is not None:
                invalidation.grown.show_growth()

    def stop(self) -> None:
        """No notification starts after this; one under way ends with the mount."""
        if self._loop is not None:
            self._loop = None
            self._waiting.put(None)
            self._growing.put(None)

    def _run(self, waiting: _Waiting, notify: Callable[[Invalidation], None]) -> None:
        while (invalidation := waiting.get()) is not None:
            if self._loop is None:
                return
            try:
                notify(invalidation)
            except OSError as error:
                # ENOENT: the kernel had nothing cached. ENOTEMPTY, EBUSY: somebody is at work below.
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
                    log.info("the kernel refused a notification: %s", error)

    def _drop_pages(self, invalidation: Invalidation) -> None:
        loop = self._loop
        try:
            pyfuse3.invalidate_inode(pyfuse3.InodeT(invalidation.ino), attr_only=False)
        finally:
            if loop is not None and invalidation.grown is not None:
                with suppress(trio.RunFinishedError):
                    loop.run_sync_soon(self._show, invalidation.grown)

    def _show(self, node: Node) -> None:
        node.show_growth()
        self.tell([Invalidation(node.ino)])

    @staticmethod
    def notify(invalidation: Invalidation) -> None:
        """In a thread: it may wait for a request that this process has yet to answer. Raises OSError."""
        ino = pyfuse3.InodeT(invalidation.ino)
        if invalidation.name is None:
            pyfuse3.invalidate_inode(ino, attr_only=True)
        else:
            name = pyfuse3.FileNameT(invalidation.name)
            pyfuse3.invalidate_entry(ino, name, pyfuse3.InodeT(invalidation.removed_ino))
