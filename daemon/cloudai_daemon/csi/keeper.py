"""Looks again and again whether what is staged and published is there still, and has repaired what is not."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from cloudai_daemon.csi.errors import VolumeFailed
from cloudai_daemon.csi.repairs import Repairs
from cloudai_daemon.csi.volume_mounts import VolumeMounts

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
PAUSE_SECONDS_MAX: Final = 30.0
"""Between two attempts at a volume that cannot be repaired; they begin with LOOK_SECONDS and double."""


class Keeper:
    """A thread of its own, from `start` until the process ends."""

    def __init__(self, repairs: Repairs, mounts: VolumeMounts) -> None:
        self._repairs = repairs
        self._mounts = mounts
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
        """Once at all volumes."""
        self._mounts.reap_supervisors()
        broken = self._repairs.list_broken()
        for whole in self._pauses.keys() - set(broken):
            self._forget(whole)
        for volume_id in broken:
            if time.monotonic() >= self._not_before.get(volume_id, 0.0):
                self._repair(volume_id)

    def _repair(self, volume_id: str) -> None:
        try:
            self._repairs.repair(volume_id)
        except (VolumeFailed, OSError) as error:
            log.warning("%s: %s", volume_id, error)
            pause = min(2 * self._pauses.get(volume_id, LOOK_SECONDS / 2), PAUSE_SECONDS_MAX)
            self._pauses[volume_id] = pause
            self._not_before[volume_id] = time.monotonic() + pause
        else:
            self._forget(volume_id)

    def _forget(self, volume_id: str) -> None:
        self._pauses.pop(volume_id, None)
        self._not_before.pop(volume_id, None)
