"""File bytes from the nearest place that has their chunks: memory, disk cache, master.

One per mount: one memory budget, and one request in flight for a chunk however many wait for it. Every
chunk that comes from disk or wire is verified against its digest before a byte of it is answered.
Prefetching only asks for more; it never answers.

What is on its way is not the reader's: one that is cancelled leaves it to the others, or to the cache
(chunk_flights).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice

import trio

from cloudai_fusefs.chunk_flights import FETCHES_IN_FLIGHT_MAX, ChunkFlights
from cloudai_fusefs.chunk_memory import ChunkMemory, Data
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.file_content import FileContent
from cloudai_fusefs.flights import Flight, wait_for_bytes_of
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.read_counters import ReadCounters
from cloudai_fusefs.verifying_fetcher import VerifyingFetcher
from cloudai_fusefs.write_behind import WriteBehind
from cloudai_model.chunks import ChunkRange
from cloudai_model.limits import CHUNK_BYTES_MAX


class ChunkReader:
    """All reading of published content in one mount."""

    def __init__(
        self,
        client: MasterClient,
        memory: ChunkMemory,
        disk_cache: DiskChunkCache,
        write_behind: WriteBehind,
        nursery: trio.Nursery,
        *,
        fetches_max: int = FETCHES_IN_FLIGHT_MAX,
    ) -> None:
        """The client is one that has its own patience: nothing is repeated here but damaged answers.

        A memory of 0 bytes: chunks are not kept in memory, and nothing is prefetched. `fetches_max`: see ChunkFlights.
        """
        self.counters = ReadCounters()
        self.fetcher = VerifyingFetcher(client, self.counters)
        self._memory = memory
        self._write_behind = write_behind
        self._flights = ChunkFlights(
            self.fetcher, memory, disk_cache, write_behind, self.counters, nursery, fetches_max=fetches_max
        )
        # Half the slots are left to those who wait. And at most a quarter of the memory is on its way unasked,
        # else prefetched chunks push each other out before they are read.
        self._prefetches_max = min(fetches_max // 2, memory.bytes_max // (4 * CHUNK_BYTES_MAX))

    @property
    def memory_bytes(self) -> int:
        """What is in memory takes of its budget."""
        return self._memory.used_bytes

    def find(self, content: FileContent, offset_bytes: int, length_bytes: int) -> memoryview | None:
        """What `read` would answer, where that is within one chunk and the chunk is in memory. Never waits."""
        ranges = list(islice(content.manifest.cover(offset_bytes, length_bytes), 2))
        if len(ranges) != 1:
            return None
        (part,) = ranges
        data = self._memory.get(content.manifest.chunks[part.chunk_index].digest)
        if data is None:
            return None
        self.counters.memory_hits += 1
        self.counters.memory_bytes += part.length_bytes
        return memoryview(data)[part.offset_bytes : part.offset_bytes + part.length_bytes]

    def is_near(self, content: FileContent, index: int) -> bool:
        """Whether the chunk is in memory or on its way."""
        if content.manifest.chunks[index].digest in self._memory:
            return True
        return self._flights.find(content, index) is not None

    async def read(self, content: FileContent, offset_bytes: int, length_bytes: int) -> Data:
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

    async def read_part(self, content: FileContent, part: ChunkRange) -> memoryview:
        """As `read`, of a range that is within one chunk."""
        (view,) = await self._read_batch(content, [part])
        return view

    def prefetch(self, content: FileContent, index: int) -> bool:
        """Asks for a chunk that is likely to be read soon, unless it is here or asked for. False: enough are.

        Never raises and never waits; a failure is the later reader's to meet.
        """
        if self.is_near(content, index):
            return True
        if self._flights.is_slow or self._flights.prefetch_count >= self._prefetches_max:
            return False
        self._flights.begin(content, index, is_prefetch=True)
        return True

    def note_passed(self, content: FileContent, index: int) -> None:
        """A sequential reader is through with the chunk: the kernel has its pages now.

        Its memory is better used for what comes next, being warm. Short chunks stay, they cost little.
        """
        length_bytes, digest = content.manifest.chunks[index]
        if length_bytes == CHUNK_BYTES_MAX:
            self._memory.drop(digest)

    def fetch_together(self, contents: Sequence[FileContent]) -> None:
        """Asks for files of one chunk each, all of one run, in one call. Never raises and never waits."""
        self._flights.begin_together(content for content in contents if not self.is_near(content, 0))

    async def flush(self) -> None:
        """Returns when whole chunks that have arrived are in the disk cache, or given up."""
        await self._flights.flush()

    def keep_written(self, digest: bytes, data: bytes) -> None:
        """Keeps a chunk that was made on this mount, so that reading it back needs no master. Never waits.

        Short ones alone: of full chunks the kernel has all pages, of a file's last bytes it has not, and
        writing every chunk a second time would take the disk from the writer.
        """
        if len(data) >= CHUNK_BYTES_MAX:
            return
        self._memory.put(digest, data)
        # A writer is not held back by a slow disk: what is too much for it is fetched when it is read.
        if self._write_behind.has_room:
            self._write_behind.add_chunk(digest, data)

    async def _read_batch(self, content: FileContent, batch: list[ChunkRange]) -> list[memoryview]:
        found = [self._find_or_ask(content, part) for part in batch]
        views: list[memoryview] = []
        for part, source in zip(batch, found, strict=True):
            if isinstance(source, Flight):
                ask_again = partial(self._ask, content, part.chunk_index)
                data = await wait_for_bytes_of(content, source, ask_again)
            else:
                data = source
            views.append(memoryview(data)[part.offset_bytes : part.offset_bytes + part.length_bytes])
        return views

    def _find_or_ask(self, content: FileContent, part: ChunkRange) -> Data | Flight:
        """The part's chunk from memory, or the flight that brings it, which begins here if there is none."""
        digest = content.manifest.chunks[part.chunk_index].digest
        data = self._memory.get(digest)
        if data is not None:
            self.counters.memory_hits += 1
            self.counters.memory_bytes += part.length_bytes
            return data
        self.counters.memory_misses += 1
        return self._ask(content, part.chunk_index)

    def _ask(self, content: FileContent, index: int) -> Flight:
        flight = self._flights.find(content, index)
        flight = flight or self._flights.begin(content, index, is_prefetch=False)
        flight.is_awaited = True  # from now on: its reader may first wait for another
        return flight
