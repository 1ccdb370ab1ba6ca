"""Wakes watch streams when a commit has changed what they watch. Belongs to the event loop's thread."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from cloudai_master.database import Transaction
from cloudai_master.service import Watched


class Wakeups:
    """One event per stream. A wake-up says only that it is time to look: the database has the changes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sleepers: defaultdict[tuple[str, int], set[asyncio.Event]] = defaultdict(set)

    def announce(self, transaction: Transaction) -> None:
        """Called by the writing thread after each commit."""
        touched = [("run", key) for key in transaction.touched_runs]
        touched += [("user", key) for key in transaction.touched_users]
        if touched and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, touched)

    def wake_all(self) -> None:
        self._wake(list(self._sleepers))

    @contextmanager
    def listening(self, watched: Watched) -> Iterator[asyncio.Event]:
        """An event that is set whenever the watched changes, for as long as the block lasts."""
        key = (watched.kind, watched.key)
        event = asyncio.Event()
        self._sleepers[key].add(event)
        try:
            yield event
        finally:
            self._sleepers[key].discard(event)
            if not self._sleepers[key]:
                del self._sleepers[key]

    def _wake(self, touched: list[tuple[str, int]]) -> None:
        for key in touched:
            for event in self._sleepers.get(key, ()):
                event.set()
