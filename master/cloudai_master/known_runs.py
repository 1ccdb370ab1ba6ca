"""Runs looked up a moment ago: a reader names the same run with every call."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Final

from cachetools import TTLCache

from cloudai_master.authorization import Caller, Run, find_run
from cloudai_master.database import Database
from cloudai_master.tokens import CHECKED_SECONDS
from cloudai_model.errors import NotFound

RUNS_MAX: Final = 4096


class KnownRuns:
    """As find_run, without the database when the run was found within the last CHECKED_SECONDS.

    For reading alone: what changes in a run's row (its revision, that it was sealed) may be that old, and so
    may be what another process removed. Whether the caller may see the run is decided anew each time. Safe
    for any thread.
    """

    def __init__(self, database: Database, clock_seconds: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._runs: TTLCache[str, Run] = TTLCache(RUNS_MAX, CHECKED_SECONDS, clock_seconds)
        self._lock = Lock()

    def find(self, caller: Caller, task_id: str) -> Run:
        """Raises NotFound, word for word the same for a run that the caller may not see."""
        run = self.found_lately(caller, task_id)
        if run is None:
            with self._database.read() as connection:
                run = find_run(connection, caller, task_id)
            with self._lock:
                self._runs[task_id] = run
        return run

    def found_lately(self, caller: Caller, task_id: str) -> Run | None:
        """As find, without the database: None for a run that it would have to be asked about."""
        with self._lock:
            run = self._runs.get(task_id)
        if run is not None and not caller.sees_run(run.user, run.task_id):
            raise NotFound("run", task_id=task_id)
        return run

    def forget(self, task_id: str) -> None:
        """The run was removed: the next look is at the database."""
        with self._lock:
            self._runs.pop(task_id, None)
