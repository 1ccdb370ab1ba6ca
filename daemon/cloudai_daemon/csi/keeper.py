"""Looks again and again whether what is staged and published is there still, and puts back what is not.

A driver that starts in a new container finds its mounts dead, as they died with the old one; a mount whose daemon was
killed comes back by its supervisor, and its bind mounts by this.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from cloudai_daemon.csi.errors import VolumeFailed
from cloudai_daemon.csi.node_volumes import NodeVolumes

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
PAUSE_SECONDS_MAX: Final = 30.0
"""Between two attempts at a volume that cannot be put back; they begin with LOOK_SECONDS and double."""


class Keeper:
    """A thread of its own, from `start` until the process ends."""

    def __init__(self, volumes: NodeVolumes) -> None:
        self._volumes = volumes
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
        self._volumes.gather_children()
        unwell = self._volumes.list_unwell()
        for well in self._pauses.keys() - set(unwell):
            self._forget(well)
        for volume_id in unwell:
            if time.monotonic() >= self._not_before.get(volume_id, 0.0):
                self._look_at(volume_id)

    def _look_at(self, volume_id: str) -> None:
        try:
            self._volumes.revive(volume_id)
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
