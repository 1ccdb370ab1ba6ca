"""The scrub that a running master does by itself: a pass over all chunks each interval, in the background.

How far it has come is in the database, so that a pass goes on after a restart where it stood.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import insert, select, update

from cloudai_master import schema
from cloudai_master.chunk_store import ChunkStore
from cloudai_master.database import Database
from cloudai_master.scrub import Pace, Position, find_forgotten, scrub
from cloudai_model.limits import MIB

log = logging.getLogger(__name__)

INTERVAL_HOURS_DEFAULT: Final = 168.0
INTERVAL_HOURS_MAX: Final = 87_600.0

# 4.6 TiB in a week, and a few percent of one disk.
BYTES_PER_SECOND: Final = 8 * MIB

POSITION_KEPT_SECONDS: Final = 30.0
"""How much of a pass is done again, at most, after a crash."""

NS_PER_SECOND: Final = 1_000_000_000
_ROW_KEY: Final = 1


class Stopped(Exception):
    """The master stops in the middle of a pass."""


@dataclass(frozen=True, kw_only=True)
class PassState:
    """The row of the table scrub."""

    started_at_ns: int
    finished_at_ns: int | None
    position: Position


class PeriodicScrub:
    """Runs passes on a thread of its own. `stop` ends it within a part of a chunk."""

    def __init__(
        self,
        database: Database,
        store: ChunkStore,
        interval_seconds: float,
        *,
        bytes_per_second: float = BYTES_PER_SECOND,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._database = database
        self._store = store
        self._interval_ns = int(interval_seconds * NS_PER_SECOND)
        self._bytes_per_second = bytes_per_second
        self._clock_ns = clock_ns
        self._stopping = threading.Event()

    def run(self) -> None:
        """Returns after `stop`. Raises what database and disk raise; it may be run again then."""
        while not self._stopping.is_set():
            wait_seconds = self.seconds_until_due()
            if wait_seconds > 0:
                self._stopping.wait(wait_seconds)
            else:
                self.do_pass()

    def stop(self) -> None:
        """From any thread."""
        self._stopping.set()

    def wait(self, seconds: float) -> bool:
        """Sleeps, but not beyond `stop`; whether it was stopped."""
        return self._stopping.wait(seconds)

    def seconds_until_due(self) -> float:
        """0 or less: a pass is due, or under way since before a restart."""
        state = self._load()
        if state.finished_at_ns is None:
            return 0.0
        return (state.started_at_ns + self._interval_ns - self._clock_ns()) / NS_PER_SECOND

    def do_pass(self) -> None:
        """One pass to its end, or to `stop`: then the next call goes on from there."""
        state = self._load()
        if state.finished_at_ns is not None:
            state = PassState(started_at_ns=self._clock_ns(), finished_at_ns=None, position=Position())
        self._store_state(state)
        pace = Pace(self._bytes_per_second, self._sleep)
        kept_at_ns = self._clock_ns()
        chunk_count = size_bytes = damaged_count = 0
        try:
            for looked in scrub(self._database, self._store, pace, state.position):
                state = replace(state, position=looked.position)
                chunk_count += 1
                size_bytes += looked.length_bytes
                damaged_count += looked.damaged is not None
                if self._clock_ns() - kept_at_ns > POSITION_KEPT_SECONDS * NS_PER_SECOND:
                    self._store_state(state)
                    kept_at_ns = self._clock_ns()
                self._sleep(0)
        except Stopped:
            self._store_state(state)
            return
        forgotten_count = len(find_forgotten(self._database))
        self._store_state(replace(state, finished_at_ns=self._clock_ns()))
        log.log(
            logging.WARNING if forgotten_count else logging.INFO,
            "scrub: looked at %d chunks, %d MiB: %d damaged now, %d that files need are missing",
            chunk_count,
            size_bytes // MIB,
            damaged_count,
            forgotten_count,
        )

    def _sleep(self, seconds: float) -> None:
        """Raises Stopped."""
        if self._stopping.wait(seconds):
            raise Stopped

    def _load(self) -> PassState:
        """The state; at the first time it is that of a pass that has just been done."""
        with self._database.read() as connection:
            row = connection.execute(select(schema.scrub)).first()
        if row is not None:
            return PassState(
                started_at_ns=row.started_at_ns,
                finished_at_ns=row.finished_at_ns,
                position=Position(row.user_key, row.digest),
            )
        now_ns = self._clock_ns()
        state = PassState(started_at_ns=now_ns, finished_at_ns=now_ns, position=Position())
        self._store_state(state)
        return state

    def _store_state(self, state: PassState) -> None:
        values = {
            "started_at_ns": state.started_at_ns,
            "finished_at_ns": state.finished_at_ns,
            "user_key": state.position.user_key,
            "digest": state.position.digest,
        }
        with self._database.write() as transaction:
            changed = transaction.connection.execute(
                update(schema.scrub).where(schema.scrub.c.scrub_key == _ROW_KEY).values(values)
            )
            if not changed.rowcount:
                transaction.connection.execute(insert(schema.scrub).values(scrub_key=_ROW_KEY, **values))
