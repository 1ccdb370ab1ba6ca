"""How much the staged files may take: a limit of their own where one is set, and always what is free on their disk
less a reserve. When that is used up, writers wait for uploads, which make room.

A staged file takes its space until it is durable and nobody writes to it any more.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from cloudai_fusefs.staged_file import StagedFile
from cloudai_model.limits import MIB

RESERVE_BYTES_MAX: Final = 256 * MIB
RESERVE_SHARE: Final = 0.02
"""What is left free on the disk, the lesser of both: journal and log go on when nothing more can be staged."""

DISK_LOOK_SECONDS: Final = 1.0
"""How old an answer of the disk may be; what has been written since is taken off it."""

WAITERS_MAX: Final = 32
"""More of them would take the threads of those who only want to read: they are refused at once."""

LOOK_AGAIN_SECONDS: Final = 0.2
"""Between two looks while somebody waits: the disk, unlike an upload, tells nobody that it has room."""


class StagingSpace:
    """The space of one state directory. Used from the mount's loop only."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        """`bytes_max` 0: no limit but the disk's."""
        self._directory = directory
        self.bytes_max = bytes_max
        self._used: dict[StagedFile, int] = {}
        self.used_bytes = 0
        self._claimed_bytes = 0
        self._disk_room_bytes = 0
        self._disk_looked_at_seconds = -DISK_LOOK_SECONDS
        self._waiter_count = 0
        self._freed_count = 0
        self._given_up_at_count = -1  # of freed files: since then nothing has made room

    def note_written(self, staged: StagedFile) -> None:
        """The staged file may take another space than before."""
        used_bytes = staged.used_bytes
        grown_bytes = used_bytes - self._used.get(staged, 0)
        if grown_bytes:
            self._used[staged] = used_bytes
            self.used_bytes += grown_bytes
            self._disk_room_bytes -= max(0, grown_bytes)

    def note_dropped(self, staged: StagedFile) -> None:
        """The staged file is gone."""
        self.used_bytes -= self._used.pop(staged, 0)
        self._freed_count += 1

    @contextmanager
    def claimed(self, length_bytes: int) -> Iterator[None]:
        """What is being written counts before it is there: many write at once."""
        self._claimed_bytes += length_bytes
        try:
            yield
        finally:
            self._claimed_bytes -= length_bytes

    def has_room(self, length_bytes: int) -> bool:
        """Whether so much may be written now."""
        wanted_bytes = length_bytes + self._claimed_bytes
        if self.bytes_max and self.used_bytes + wanted_bytes > self.bytes_max:
            return False
        now_seconds = trio.current_time()
        is_old = now_seconds - self._disk_looked_at_seconds > DISK_LOOK_SECONDS
        if is_old or self._disk_room_bytes < wanted_bytes:
            found = os.statvfs(self._directory)
            reserve_bytes = min(RESERVE_BYTES_MAX, int(RESERVE_SHARE * found.f_blocks * found.f_frsize))
            self._disk_room_bytes = found.f_bavail * found.f_frsize - reserve_bytes
            self._disk_looked_at_seconds = now_seconds
        return self._disk_room_bytes >= wanted_bytes

    async def wait_for_room(
        self, length_bytes: int, can_shrink: Callable[[], bool], timeout_seconds: float
    ) -> None:
        """Returns when so much may be written; it does not wait where nothing that is under way would help.

        An outage is waited out once: after a wait in vain the next is refused at once, until something has made
        room. Raises OSError (ENOSPC). Cancelled: nothing changed.
        """
        if self._waiter_count < WAITERS_MAX and self._given_up_at_count != self._freed_count:
            self._waiter_count += 1
            try:
                with trio.move_on_after(timeout_seconds):
                    while can_shrink():
                        await trio.sleep(LOOK_AGAIN_SECONDS)
                        if self.has_room(length_bytes):
                            return
                    if self.has_room(length_bytes):
                        return
            finally:
                self._waiter_count -= 1
            self._given_up_at_count = self._freed_count
        raise OSError(errno.ENOSPC, "no room to stage what is written", str(self._directory))
