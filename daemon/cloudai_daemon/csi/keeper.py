"""Looks again and again whether what is staged and published is there still, and has repaired what is not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Final

from cloudai_daemon.csi.errors import VolumeFailed
from cloudai_daemon.csi.repairs import Repairs
from cloudai_daemon.csi.volume_mounts import VolumeMounts

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
PAUSE_SECONDS_MAX: Final = 30.0
"""Between two attempts at a volume that cannot be repaired; they begin with LOOK_SECONDS and double."""

REPAIRS_MAX: Final = 4
"""Side by side. One takes a second of a core, and half a minute where its master or its daemon says nothing; with more,
the first volume of many comes as late as the last (benchmarks/volume_repairs.py).
"""


class Keeper:
    """A thread of its own, from `start` until the process ends, and one for each repair that is under way.

    A volume whose repair takes long holds up no other, unless there are REPAIRS_MAX of them.
    """

    def __init__(
        self,
        repairs: Repairs,
        mounts: VolumeMounts,
        workers: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repairs = repairs
        self._mounts = mounts
        self._clock = clock
        self._workers = workers or ThreadPoolExecutor(REPAIRS_MAX, thread_name_prefix="repair")
        # One for each volume at most.
        self._under_way: dict[str, Future[None]] = {}
        self._pauses: dict[str, float] = {}
        self._not_before: dict[str, float] = {}

    def start(self) -> None:
        threading.Thread(target=self._run, name="keeper", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.look()
            # Whatever it was, the next look may be better.
            except Exception:
                log.exception("volumes could not be looked at")
            time.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Once at all volumes. Returns without waiting for the repairs that it begins."""
        self._mounts.reap_supervisors()
        self._note_ended()
        broken = self._repairs.list_broken()
        for whole in self._pauses.keys() - set(broken):
            self._forget(whole)
        now_seconds = self._clock()
        for volume_id in broken:
            if volume_id not in self._under_way and now_seconds >= self._not_before.get(volume_id, 0.0):
                self._under_way[volume_id] = self._workers.submit(self._repairs.repair, volume_id)

    def _note_ended(self) -> None:
        for volume_id, repair in list(self._under_way.items()):
            if not repair.done():
                continue
            del self._under_way[volume_id]
            error = repair.exception()
            if error is None:
                self._forget(volume_id)
                continue
            is_foreseen = isinstance(error, VolumeFailed | OSError)
            log.warning("%s: %s", volume_id, error, exc_info=None if is_foreseen else error)
            pause = min(2 * self._pauses.get(volume_id, LOOK_SECONDS / 2), PAUSE_SECONDS_MAX)
            self._pauses[volume_id] = pause
            self._not_before[volume_id] = self._clock() + pause

    def _forget(self, volume_id: str) -> None:
        self._pauses.pop(volume_id, None)
        self._not_before.pop(volume_id, None)
