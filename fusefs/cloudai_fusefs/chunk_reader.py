"""File bytes from the nearest place that has their chunks: memory, disk cache, master.

One per mount: one memory budget, and one request in flight for a chunk however many wait for it. Every
chunk that comes from disk or wire is verified against its digest before a byte of it is answered.
Prefetching only asks for more; it never answers.

Fetches are tasks of the nursery that was passed in, not of the reader: a reader that is cancelled leaves
the fetch to the others, or to the cache.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import trio
from cachetools import LRUCache

from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.master_client import MasterClient
from cloudai_model.chunks import ChunkRange, Manifest, digest_of
from cloudai_model.errors import ChunkDamaged, MasterUnavailable
from cloudai_model.limits import CHUNK_BYTES_MAX

_log = logging.getLogger(__name__)

FETCHES_IN_FLIGHT_MAX: Final = 8
"""32 MiB beside the memory budget. Four transfers moved 0.5-0.85 GB/s; the other slots overlap with
writing to the disk cache, during which a fetch keeps its slot."""

PREFETCHES_IN_FLIGHT_MAX: Final = FETCHES_IN_FLIGHT_MAX // 2
"""So that half the slots are left to those who wait."""

FETCH_ATTEMPTS: Final = 2
"""A chunk that arrives damaged is asked for once more: the wire may have done it, not the disk."""

KEEPING_MAX: Final = 256
"""Written chunks on their way to the disk cache; what comes beyond is in memory only."""

MEMORY_ENTRY_BYTES: Final = 256
"""What a chunk costs in memory beside its bytes; without it a million tiny chunks would count for nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileContent:
    """One generation of a file: what to read, and by which right to ask for it."""

    task_id: str
    node_id: int
    generation: int
    manifest: Manifest
    label: str
    """The file's path as it stands in logs and errors."""


@dataclass(kw_only=True, slots=True)
class ReadCounters:
    """Where the bytes came from, since the mount began. A chunk counts once per read that touches it."""

    memory_hits: int = 0
    disk_hits: int = 0
    fetched_chunks: int = 0
    """Answers of the master, damaged ones included."""
    fetched_bytes: int = 0
    damaged_chunks: int = 0
    """Answers of the master that were not the chunk."""


@dataclass(slots=True, eq=False)
class _Flight:
    """A chunk on its way. Invariant: once `has_landed` is set, at most one of data and error is there;
    neither when the mount stopped before.
    """

    is_prefetch: bool
    has_landed: trio.Event = field(default_factory=trio.Event)
    data: bytes | None = None
    error: Exception | None = None


class ChunkReader:
    """All reading of published content in one mount."""

    def __init__(
        self,
        client: MasterClient,
        disk_cache: DiskChunkCache,
        *,
        memory_bytes_max: int,
        nursery: trio.Nursery,
    ) -> None:
        """The client is one that has its own patience: nothing is repeated here but damaged answers.

        memory_bytes_max 0: chunks are not kept in memory, and nothing is prefetched.
        """
        self.counters = ReadCounters()
        self._client = client
        self._disk_cache = disk_cache
        self._memory: LRUCache[bytes, bytes] = LRUCache(memory_bytes_max, getsizeof=_memory_bytes_of)
        self._nursery = nursery
        # By run as well: what one run's reader is refused must not be the answer to another's.
        self._flights: dict[tuple[str, bytes], _Flight] = {}
        self._fetch_slots = trio.Semaphore(FETCHES_IN_FLIGHT_MAX)
        # At most a quarter of the memory is on its way unasked, else prefetched chunks push each other out
        # before they are read.
        self._prefetches_max = min(PREFETCHES_IN_FLIGHT_MAX, memory_bytes_max // (4 * CHUNK_BYTES_MAX))
        self._prefetch_count = 0
        self._keeping_count = 0

    @property
    def memory_bytes(self) -> int:
        """What the chunks in memory take of the budget."""
        return int(self._memory.currsize)

    async def read(self, content: FileContent, offset_bytes: int, length_bytes: int) -> bytes | memoryview:
        """The bytes [offset_bytes, offset_bytes + length_bytes), shorter only at the end of the file.

        Within one chunk it is a view of the cached bytes, without a copy, and a hit in memory does not
        yield. Raises ChunkDamaged when what the master stores is not the chunk; MasterUnavailable and the
        other errors of the client's read_chunk, which all who wait for the same chunk get alike. Cancelled:
        nothing changed, and what was asked for still arrives in the cache.
        """
        ranges = content.manifest.cover(offset_bytes, length_bytes)
        parts: list[memoryview] = []
        # A log's short chunks: a read may cover thousands, of which a slot's worth is asked for at a time.
        while batch := list(islice(ranges, FETCHES_IN_FLIGHT_MAX)):
            parts += await self._read_batch(content, batch)
        if len(parts) == 1:
            return parts[0]
        return b"".join(parts)

    def prefetch(self, content: FileContent, index: int) -> None:
        """Asks for a chunk that is likely to be read soon, unless it is here, asked for, or enough are.

        Never raises and never waits; a failure is the later reader's to meet.
        """
        digest = content.manifest.chunks[index].digest
        if digest in self._memory or (content.task_id, digest) in self._flights:
            return
        if self._prefetch_count < self._prefetches_max:
            self._take_off(content, index, is_prefetch=True)

    def keep_written(self, digest: bytes, data: bytes) -> None:
        """Keeps a chunk that was made on this mount, so that reading it back needs no master. Never waits.

        Short ones alone: of full chunks the kernel has all pages, of a file's last bytes it has not, and
        writing every chunk a second time would take the disk from the writer.
        """
        if len(data) >= CHUNK_BYTES_MAX:
            return
        if _memory_bytes_of(data) <= self._memory.maxsize:
            self._memory[digest] = data
        if self._keeping_count < KEEPING_MAX:
            self._keeping_count += 1
            self._nursery.start_soon(self._keep, digest, data)

    async def _keep(self, digest: bytes, data: bytes) -> None:
        try:
            await self._disk_cache.put(digest, data)
        finally:
            self._keeping_count -= 1

    async def _read_batch(self, content: FileContent, batch: list[ChunkRange]) -> list[memoryview]:
        found = [self._find_or_ask(content, part.chunk_index) for part in batch]
        return [
            memoryview(source if isinstance(source, bytes) else await _await_landing(source))[
                part.offset_bytes : part.offset_bytes + part.length_bytes
            ]
            for part, source in zip(batch, found, strict=True)
        ]

    def _find_or_ask(self, content: FileContent, index: int) -> bytes | _Flight:
        """The chunk from memory, or the flight that brings it, which begins here if there is none."""
        digest = content.manifest.chunks[index].digest
        data = self._memory.get(digest)
        if data is not None:
            self.counters.memory_hits += 1
            return data
        flight = self._flights.get((content.task_id, digest))
        return flight or self._take_off(content, index, is_prefetch=False)

    def _take_off(self, content: FileContent, index: int, *, is_prefetch: bool) -> _Flight:
        flight = _Flight(is_prefetch)
        self._flights[content.task_id, content.manifest.chunks[index].digest] = flight
        self._prefetch_count += is_prefetch
        self._nursery.start_soon(self._fly, flight, content, index)
        return flight

    async def _fly(self, flight: _Flight, content: FileContent, index: int) -> None:
        """Lands the flight: with data, with the error for those who wait, or with neither when cancelled."""
        length_bytes, digest = content.manifest.chunks[index]
        try:
            data = await self._disk_cache.get(digest, length_bytes)
            if data is not None:
                self.counters.disk_hits += 1
                self._land(flight, digest, data)
                return
            # The slot is kept until the chunk is on disk: what waits to be written is bounded, and a chunk
            # that was read once is cached although the disk is slower than the wire. The readers have gone
            # on by then.
            async with self._fetch_slots:
                data = await self._fetch_verified(content, index)
                self._land(flight, digest, data)
                await self._disk_cache.put(digest, data)
        except Exception as error:  # not swallowed: each waiter raises it
            if flight.has_landed.is_set():
                raise
            flight.error = error
        finally:
            del self._flights[content.task_id, digest]
            self._prefetch_count -= flight.is_prefetch
            flight.has_landed.set()

    def _land(self, flight: _Flight, digest: bytes, data: bytes) -> None:
        if _memory_bytes_of(data) <= self._memory.maxsize:
            self._memory[digest] = data
        flight.data = data
        flight.has_landed.set()

    async def _fetch_verified(self, content: FileContent, index: int) -> bytes:
        length_bytes, digest = content.manifest.chunks[index]
        for _ in range(FETCH_ATTEMPTS):
            try:
                data = await self._client.read_chunk(
                    content.task_id, content.node_id, content.generation, index
                )
            except ChunkDamaged:  # the master found it out by itself
                data = b""
            self.counters.fetched_chunks += 1
            self.counters.fetched_bytes += len(data)
            # On the loop's thread: 0.6 ms for 4 MiB, of which a hop to another thread would save little.
            if len(data) == length_bytes and digest_of(data) == digest:
                return data
            self.counters.damaged_chunks += 1
        _log.error("chunk %d of %s is damaged at the master", index, content.label)
        raise ChunkDamaged(file=content.label, chunk_index=index, generation=content.generation)


async def _await_landing(flight: _Flight) -> bytes:
    await flight.has_landed.wait()
    if flight.data is not None:
        return flight.data
    raise flight.error or MasterUnavailable("the mount is stopping")


def _memory_bytes_of(data: bytes) -> int:
    return len(data) + MEMORY_ENTRY_BYTES
