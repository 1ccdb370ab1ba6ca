"""Who works on a volume: one at a time, and requests before whoever looks after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from google.rpc import code_pb2 as codes

from cloudai_daemon.csi.call_deadline import CallDeadline
from cloudai_daemon.csi.errors import VolumeFailed
from cloudai_daemon.csi.volume_ids import task_id_of

KEEPER_SECONDS_MAX: Final = 60.0
"""A mount that is made again takes half of it at most."""


class VolumeTurns:
    """Of all volumes of a driver, by their runs: a volume may have an id with and one without its user's mark. For any
    threads.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requested: set[str] = set()
        self._kept: set[str] = set()

    @contextmanager
    def take(self, volume_id: str, deadline: CallDeadline) -> Iterator[None]:
        """For a request. Raises VolumeFailed (ABORTED) at once while another has it; waits for the keeper."""
        key = task_id_of(volume_id)
        with self._changed:
            if key in self._requested:
                raise _aborted(volume_id)
            # From here on the keeper finds it taken, and further requests are aborted.
            self._requested.add(key)
            seconds_max = deadline.left(KEEPER_SECONDS_MAX)
            if not self._changed.wait_for(lambda: key not in self._kept, seconds_max):
                self._requested.remove(key)
                raise _aborted(volume_id)
        try:
            yield
        finally:
            with self._changed:
                self._requested.remove(key)

    @contextmanager
    def take_if_free(self, volume_id: str) -> Iterator[bool]:
        """For a repair: whether it is its turn."""
        key = task_id_of(volume_id)
        with self._changed:
            is_free = key not in self._requested and key not in self._kept
            if is_free:
                self._kept.add(key)
        try:
            yield is_free
        finally:
            if is_free:
                with self._changed:
                    self._kept.remove(key)
                    self._changed.notify_all()


def _aborted(volume_id: str) -> VolumeFailed:
    return VolumeFailed(
        codes.ABORTED, f"another request for {volume_id} is not answered yet: repeat this one later"
    )
