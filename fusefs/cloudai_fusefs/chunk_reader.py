"""File bytes from the nearest place that has their chunks: memory, disk cache, master.

One per mount: one memory budget, and one request in flight for a chunk however many wait for it. Every
chunk that comes from disk or wire is verified against its digest before a byte of it is answered.
Prefetching only asks for more; it never answers.

Fetches are tasks of the nursery that was passed in, not of the reader: a reader that is cancelled leaves
the fetch to the others, or to the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import trio

from cloudai_fusefs.chunk_memory import ChunkMemory, Data
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.flights import Flight
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.wire_chunks import ChunkAnswer
from cloudai_fusefs.write_behind import ROOM_SECONDS_MAX, WriteBehind
from cloudai_model.chunks import ChunkRange, Manifest, digest_of
from cloudai_model.errors import ChunkDamaged, CloudAIError, MasterUnavailable
from cloudai_model.limits import CHUNK_BYTES_MAX

_log = logging.getLogger(__name__)

FETCHES_IN_FLIGHT_MAX: Final = 8
"""Four transfers moved 1.1 GB/s, more of them no more."""


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
    memory_misses: int = 0
    memory_bytes: int = 0
    """Answered from memory."""
    disk_hits: int = 0
    disk_misses: int = 0
    disk_bytes: int = 0
    """Read from the disk cache."""
    fetched_chunks: int = 0
    """Answers of the master, damaged ones included."""
    fetched_ranges: int = 0
    fetched_batches: int = 0
    """Calls that brought several small files."""
    fetched_bytes: int = 0
    damaged_chunks: int = 0
    """Answers of the master that were not the chunk."""


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

        A memory of 0 bytes: chunks are not kept in memory, and nothing is prefetched. At most `fetches_max`
        answers are in flight, each of a chunk's size, and half as many chunks wait for the disk.
        """
        self.counters = ReadCounters()
        self._client = client
        self._memory = memory
        self._disk_cache = disk_cache
        self._write_behind = write_behind
        self._nursery = nursery
        # By run as well: what one run's reader is refused must not be the answer to another's.
        self._flights: dict[tuple[str, bytes], Flight] = {}
        self._fetch_slots = trio.Semaphore(fetches_max)
        self._disk_slots = trio.Semaphore(fetches_max // 2)
        # Half the slots are left to those who wait. And at most a quarter of the memory is on its way unasked,
        # else prefetched chunks push each other out before they are read.
        self._prefetches_max = min(fetches_max // 2, memory.bytes_max // (4 * CHUNK_BYTES_MAX))
        self._prefetch_count = 0

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
        digest = content.manifest.chunks[index].digest
        return digest in self._memory or (content.task_id, digest) in self._flights

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
        if self._prefetch_count >= self._prefetches_max:
            return False
        self._take_off(content, index, is_prefetch=True)
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
        flights: dict[bytes, tuple[Flight, FileContent]] = {}
        for content in contents:
            ((_, digest),) = content.manifest.chunks
            if not self.is_near(content, 0):
                flight = self._flights[content.task_id, digest] = Flight()
                flights[digest] = flight, content
        if flights:
            self._nursery.start_soon(self._fly_together, flights)

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
        return [
            memoryview(await source.wait() if isinstance(source, Flight) else source)[
                part.offset_bytes : part.offset_bytes + part.length_bytes
            ]
            for part, source in zip(batch, found, strict=True)
        ]

    def _find_or_ask(self, content: FileContent, part: ChunkRange) -> Data | Flight:
        """The part's chunk from memory, or the flight that brings it, which begins here if there is none."""
        digest = content.manifest.chunks[part.chunk_index].digest
        data = self._memory.get(digest)
        if data is not None:
            self.counters.memory_hits += 1
            self.counters.memory_bytes += part.length_bytes
            return data
        self.counters.memory_misses += 1
        flight = self._flights.get((content.task_id, digest))
        flight = flight or self._take_off(content, part.chunk_index, is_prefetch=False)
        flight.is_awaited = True  # from now on: its reader may first wait for another
        return flight

    def _take_off(self, content: FileContent, index: int, *, is_prefetch: bool) -> Flight:
        flight = Flight(is_prefetch)
        self._flights[content.task_id, content.manifest.chunks[index].digest] = flight
        self._prefetch_count += is_prefetch
        self._nursery.start_soon(self._fly, flight, content, index)
        return flight

    async def _fly(self, flight: Flight, content: FileContent, index: int) -> None:
        """Lands the flight: with data, with the error for those who wait, or with neither when cancelled."""
        length_bytes, digest = content.manifest.chunks[index]
        try:
            data = await self._disk_cache.get(digest, length_bytes)
            if data is not None:
                self.counters.disk_hits += 1
                self.counters.disk_bytes += length_bytes
                self._land(flight, digest, data)
                return
            self.counters.disk_misses += 1
            async with self._fetch_slots:
                fetched = await self.fetch_verified(content, index)
                self._land(flight, digest, fetched.data)
                self._note_arrived(flight)
                # Nothing more is fetched while too much waits for a disk that is slower than the wire: a chunk
                # that was read once is cached. The readers have gone on by then. A disk that hangs is no cache.
                with trio.move_on_after(ROOM_SECONDS_MAX) as patience:
                    await self._disk_slots.acquire()
            if patience.cancelled_caught:
                return
            try:
                await self._disk_cache.put(digest, fetched.data, fetched.block_digests)
            except Exception:  # noqa: BLE001 - logged, and not worth the mount's end
                _log.exception("chunk %d of %s is not kept", index, content.label)
            finally:
                self._disk_slots.release()
        except Exception as error:  # not swallowed: each waiter raises it
            if flight.has_landed.is_set():
                raise
            flight.end(error)
        finally:
            del self._flights[content.task_id, digest]
            self._note_arrived(flight)
            flight.end()

    def _note_arrived(self, flight: Flight) -> None:
        """Makes room for the next prefetch, once."""
        self._prefetch_count -= flight.is_prefetch
        flight.is_prefetch = False

    async def _fly_together(self, flights: dict[bytes, tuple[Flight, FileContent]]) -> None:
        """Lands what one look at the disk and one call to the master bring; the others fly alone."""
        waiting = dict(flights)
        outage: MasterUnavailable | None = None
        try:
            chunks = [content.manifest.chunks[0] for _, content in flights.values()]
            for digest, data in (await self._disk_cache.get_many(chunks)).items():
                flight, content = waiting.pop(digest)
                self.counters.disk_hits += 1
                self.counters.disk_bytes += len(data)
                self._land(flight, digest, data)
                del self._flights[content.task_id, digest]
            self.counters.disk_misses += len(waiting)
            if waiting:
                async with self._fetch_slots:
                    await self._fetch_together(waiting)
                    await self._write_behind.wait_for_room()
        except MasterUnavailable as error:
            outage = error  # waited out once, and not once for each file
        except CloudAIError as error:
            _log.debug("files are fetched one by one: %s", error)
        except Exception:  # noqa: BLE001 - logged, and not worth the mount's end
            _log.exception("files are fetched one by one")
        finally:
            for digest, (flight, content) in waiting.items():
                if flight.is_awaited and outage is None:
                    # Whatever was wrong, a fetch of its own says it, or brings the bytes.
                    self._nursery.start_soon(self._fly, flight, content, 0)
                else:
                    del self._flights[content.task_id, digest]
                    flight.end(outage)

    async def _fetch_together(self, waiting: dict[bytes, tuple[Flight, FileContent]]) -> None:
        """Takes what has arrived whole out of `waiting`. Raises the client's errors."""
        asked = list(waiting.items())
        task_id = asked[0][1][1].task_id
        answers = await self._client.read_files(
            task_id, [(content.node_id, content.generation) for _, (_, content) in asked]
        )
        self.counters.fetched_batches += 1
        for (digest, (flight, content)), data in zip(asked, answers, strict=False):
            if data is None or digest_of(data) != digest:
                continue
            self.counters.fetched_chunks += 1
            self.counters.fetched_bytes += len(data)
            self._land(flight, digest, data)
            if self._write_behind.has_room:
                self._write_behind.add_chunk(digest, data)
            del waiting[digest], self._flights[content.task_id, digest]

    def _land(self, flight: Flight, digest: bytes, data: Data) -> None:
        self._memory.put(digest, data)
        flight.land(data)

    async def fetch_verified(self, content: FileContent, index: int) -> ChunkAnswer:
        """The chunk from the master, past memory and disk cache; its blocks' digests are what the master says.

        Raises as `read`.
        """
        length_bytes, digest = content.manifest.chunks[index]
        # Asked for once more when it arrives damaged: the wire may have done it, and if it was the disk, the
        # master finds that out and says so in its log.
        for verify in (False, True):
            try:
                answer = await self._client.read_chunk(
                    content.task_id, content.node_id, content.generation, index, verify=verify
                )
            except ChunkDamaged:
                answer = ChunkAnswer(memoryview(b""), b"")
            self.counters.fetched_chunks += 1
            self.counters.fetched_bytes += len(answer.data)
            if len(answer.data) == length_bytes and answer.digest == digest:
                return answer
            self.counters.damaged_chunks += 1
        _log.error("chunk %d of %s is damaged at the master", index, content.label)
        raise ChunkDamaged(file=content.label, chunk_index=index, generation=content.generation)
