"""Sends a staged file's chunks: read, hash, ask whether the master lacks them, put.

Several at a time over all files of the mount. A failure is returned, not raised: what arrived has arrived,
and the next attempt goes on from there.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.layout import Segment
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.staged_file import StagedFile
from cloudai_model.chunks import digest_of
from cloudai_model.errors import CloudAIError, InternalError, MasterUnavailable

logger = logging.getLogger(__name__)

# 4 in flight fill the wire (FACTS: 0.5-0.85 GB/s); each holds up to three copies of a chunk.
CHUNKS_IN_FLIGHT_MAX: Final = 4

FAST_CHUNK_SECONDS: Final = 1.0
SLOW_CHUNK_SECONDS: Final = 5.0
"""A chunk that was sent faster lets one more be in flight, one that took longer one fewer: four that share a slow
link would each miss the deadline of a call, again and again, where one alone arrives."""

HASH_THREADS_MAX: Final = 2
"""One thread hashes 6.8 GB/s; two keep a slow read of the staging disk from stopping the other."""


class ChunkSender:
    """The way of chunks from the staged files of a mount to its master."""

    def __init__(self, client: MasterClient, reader: ChunkReader) -> None:
        self._client = client
        self._reader = reader
        self._slots = trio.CapacityLimiter(1)
        self._hash_threads = trio.CapacityLimiter(HASH_THREADS_MAX)
        self.sent_bytes = 0

    async def send_segments(
        self, task_id: str, staged: StagedFile, segments: list[Segment]
    ) -> CloudAIError | None:
        """Sends the segments that have not changed meanwhile. Returns the first failure, None without one.

        Cancelled: what was sent before stays sent.
        """
        failures: list[CloudAIError] = []
        async with trio.open_nursery() as nursery:
            for segment in segments:
                slot = object()
                await self._slots.acquire_on_behalf_of(slot)
                if failures:
                    self._slots.release_on_behalf_of(slot)
                    break
                nursery.start_soon(self._send_in_slot, slot, task_id, staged, segment, failures)
        return failures[0] if failures else None

    async def _send_in_slot(
        self,
        slot: object,
        task_id: str,
        staged: StagedFile,
        segment: Segment,
        failures: list[CloudAIError],
    ) -> None:
        try:
            await self._send(task_id, staged, segment)
        except CloudAIError as error:
            failures.append(error)
        except OSError as error:
            failures.append(InternalError(f"staged bytes cannot be read: {error.strerror}"))
        finally:
            self._slots.release_on_behalf_of(slot)

    async def _send(self, task_id: str, staged: StagedFile, segment: Segment) -> None:
        data = await staged.read(segment.start_bytes, segment.length_bytes)
        if len(data) != segment.length_bytes:
            return  # truncated meanwhile: it is another segment now
        digest = await trio.to_thread.run_sync(digest_of, data, limiter=self._hash_threads)
        if await self._client.find_missing_chunks(task_id, [digest]):
            await self._put(task_id, digest, data)
            self.sent_bytes += len(data)
        self._reader.keep_written(digest, data)
        staged.layout.note_stored(segment, digest)

    async def _put(self, task_id: str, digest: bytes, data: bytes) -> None:
        began_seconds = trio.current_time()
        try:
            await self._client.put_chunk(task_id, digest, data)
        except MasterUnavailable:
            self._slots.total_tokens = 1
            raise
        passed_seconds = trio.current_time() - began_seconds
        if passed_seconds < FAST_CHUNK_SECONDS:
            self._slots.total_tokens = min(self._slots.total_tokens + 1, CHUNKS_IN_FLIGHT_MAX)
        elif passed_seconds > SLOW_CHUNK_SECONDS:
            self._slots.total_tokens = max(self._slots.total_tokens - 1, 1)
