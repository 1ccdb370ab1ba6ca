"""Small pieces on their way to the disk cache, gathered: a thread's turn for many of them, when readers rest.

Writing 2,000 chunks of 16 KiB one by one cost their readers more than fetching them did. What waits here is
also in memory; a kill loses it from the cache and from nothing else.
"""

from __future__ import annotations

import math
from typing import Final

import trio

from cloudai_fusefs.background import keep_running
from cloudai_fusefs.block_file import BlockSpan
from cloudai_fusefs.chunk_memory import Data
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.patient_disk import HUNG_SECONDS
from cloudai_model.limits import MIB

WAITING_BYTES_MAX: Final = 32 * MIB
"""Then those that bring more wait for the disk. Two thousand files of 16 KiB fit."""

REST_SECONDS: Final = 0.5
"""Nothing came for so long: the readers rest."""

GATHER_SECONDS_MAX: Final = 5.0
"""What waits for longer is written whatever the readers do: a daemon that dies loses as much."""


ROOM_SECONDS_MAX: Final = 5.0
"""A disk that takes longer is no cache: what comes meanwhile is not kept, and readers go on."""


class WriteBehind:
    """The queue to one DiskChunkCache, and the task that empties it."""

    def __init__(
        self, disk_cache: DiskChunkCache, nursery: trio.Nursery, *, waiting_bytes_max: int | None = None
    ) -> None:
        """waiting_bytes_max None: WAITING_BYTES_MAX."""
        self._disk_cache = disk_cache
        self._waiting_bytes_max = WAITING_BYTES_MAX if waiting_bytes_max is None else waiting_bytes_max
        self._nursery = nursery
        self._chunks: dict[bytes, Data] = {}
        self._spans: list[BlockSpan] = []
        self._waiting_bytes = 0
        self._came_at_seconds = -math.inf
        self._need_not_rest = trio.Event()
        self._has_room_again = trio.Event()
        self._is_writing = False
        self._is_flushing = False
        self._hung_until_seconds = -math.inf

    @property
    def has_room(self) -> bool:
        """Whether those that bring more need not wait."""
        return self._waiting_bytes <= self._waiting_bytes_max

    def add_chunk(self, digest: bytes, data: Data) -> None:
        """A whole chunk that was verified. Never waits."""
        if digest not in self._chunks:
            self._chunks[digest] = data
            self._note(len(data))

    def add_blocks(self, span: BlockSpan) -> None:
        """Verified blocks of a chunk. Never waits."""
        self._spans.append(span)
        self._note(len(span.data))

    async def wait_for_room(self) -> None:
        """Returns when no more waits than may, or when the disk hangs, for which nobody waits twice in a while.

        Cancelled: nothing changed.
        """
        if trio.current_time() < self._hung_until_seconds:
            return
        with trio.move_on_after(ROOM_SECONDS_MAX):
            while not self.has_room:
                await self._has_room_again.wait()
            return
        self._hung_until_seconds = trio.current_time() + HUNG_SECONDS

    async def flush(self) -> None:
        """Returns when nothing waits any more; from now on readers are not given time to rest.

        Cancelled: what waits is still written for as long as the nursery lives.
        """
        self._is_flushing = True
        self._need_not_rest.set()
        while self._waiting_bytes:
            await self._has_room_again.wait()

    def _note(self, added_bytes: int) -> None:
        self._waiting_bytes += added_bytes
        # Looked at when the rest may be over: waking the task with each piece cost a random read a twentieth.
        self._came_at_seconds = trio.current_time()
        if not self.has_room:
            self._need_not_rest.set()
        if not self._is_writing:
            self._is_writing = True
            self._nursery.start_soon(keep_running, "writing to the disk cache", self._write_all)

    async def _write_all(self) -> None:
        while self._chunks or self._spans:
            await self._wait_for_rest()
            await self._write_gathered()
        self._is_writing = False

    async def _write_gathered(self) -> None:
        chunks, self._chunks = self._chunks, {}
        spans, self._spans = self._spans, []
        try:
            if chunks:
                await self._disk_cache.put_many(chunks)
            if spans:
                await self._disk_cache.put_blocks(spans)
        finally:
            # Whatever failed: it is lost from the cache, and nobody may wait for its room for ever.
            self._waiting_bytes -= sum(map(len, chunks.values())) + sum(len(span.data) for span in spans)
            self._has_room_again.set()
            self._has_room_again = trio.Event()

    async def _wait_for_rest(self) -> None:
        with trio.move_on_after(GATHER_SECONDS_MAX):
            while self.has_room and not self._is_flushing:
                rested_at_seconds = self._came_at_seconds + REST_SECONDS
                if trio.current_time() >= rested_at_seconds:
                    return
                self._need_not_rest = trio.Event()
                with trio.move_on_at(rested_at_seconds):
                    await self._need_not_rest.wait()
