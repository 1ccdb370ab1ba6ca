"""Chunks on their way from the disk cache or the master to memory: one flight for each, however many wait.

Flights are tasks of the nursery that was passed in, not of the reader: a reader that is cancelled leaves the
flight to the others, or to the cache.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Final

import trio

from cloudai_fusefs.chunk_memory import ChunkMemory, Data
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.file_content import FileContent
from cloudai_fusefs.flights import Flight
from cloudai_fusefs.patient_disk import HUNG_SECONDS
from cloudai_fusefs.read_counters import ReadCounters
from cloudai_fusefs.slots import Slots
from cloudai_fusefs.verifying_fetcher import VerifyingFetcher, WantedFile
from cloudai_fusefs.wire_chunks import ChunkAnswer
from cloudai_fusefs.write_behind import ROOM_SECONDS_MAX, WriteBehind
from cloudai_model.errors import CloudAIError, MasterUnavailable

log = logging.getLogger(__name__)

FETCHES_IN_FLIGHT_MAX: Final = 8
"""Four transfers moved 1.1 GB/s, more of them no more."""

FAST_FETCH_SECONDS: Final = 1.0
SLOW_FETCH_SECONDS: Final = 5.0
"""A chunk that takes longer comes by a line of less than 7 Mbit/s, or shares one with others: nothing is brought
ahead of readers until one is faster than the first. All that is in flight at once has the same deadline."""

_Waiting = dict[bytes, tuple[Flight, FileContent]]  # by digest


class ChunkFlights:
    """All flights of whole chunks in one mount."""

    def __init__(
        self,
        fetcher: VerifyingFetcher,
        memory: ChunkMemory,
        disk_cache: DiskChunkCache,
        write_behind: WriteBehind,
        counters: ReadCounters,
        nursery: trio.Nursery,
        *,
        fetches_max: int,
    ) -> None:
        """At most `fetches_max` answers are in flight, each of a chunk's size; half as many wait for the disk."""
        self.prefetch_count = 0
        """Flights that nobody has asked for yet."""
        self.is_slow = False
        """The last chunks took so long that what is fetched beside them may keep all from their deadline."""
        self._fetcher = fetcher
        self._memory = memory
        self._disk_cache = disk_cache
        self._write_behind = write_behind
        self._counters = counters
        self._nursery = nursery
        # By run as well: what one run's reader is refused must not be the answer to another's.
        self._flights: dict[tuple[str, bytes], Flight] = {}
        self._fetch_slots = Slots(fetches_max)
        self._disk_slots = trio.Semaphore(fetches_max // 2)
        self._hung_until_seconds = -math.inf
        self._unwritten_count = 0
        self._all_written = trio.Event()

    def find(self, content: FileContent, index: int) -> Flight | None:
        """The flight that brings the chunk, if there is one."""
        return self._flights.get((content.task_id, content.manifest.chunks[index].digest))

    def begin(self, content: FileContent, index: int, *, is_prefetch: bool) -> Flight:
        """The flight that brings the chunk from now on; there must be none yet."""
        flight = Flight(content, is_prefetch)
        self._flights[content.task_id, content.manifest.chunks[index].digest] = flight
        self.prefetch_count += is_prefetch
        self._nursery.start_soon(self._fly, flight, content, index)
        return flight

    def begin_together(self, contents: Iterable[FileContent]) -> None:
        """Asks for files of one chunk each, all of one run, in one call; those on their way are left to it."""
        waiting: _Waiting = {}
        for content in contents:
            ((_, digest),) = content.manifest.chunks
            if (content.task_id, digest) not in self._flights:
                flight = self._flights[content.task_id, digest] = Flight(content)
                waiting[digest] = flight, content
        if waiting:
            self._nursery.start_soon(self._fly_together, waiting)

    def _note_pace(self, seconds: float) -> None:
        if seconds > SLOW_FETCH_SECONDS:
            self.is_slow = True
        elif seconds < FAST_FETCH_SECONDS:
            self.is_slow = False

    async def flush(self) -> None:
        """Returns when what has arrived is in the disk cache, or given up. Cancelled: nothing changed."""
        while self._unwritten_count:
            await self._all_written.wait()

    async def _fly(self, flight: Flight, content: FileContent, index: int) -> None:
        """Lands the flight: with data, with the error for those who wait, or with neither when cancelled."""
        length_bytes, digest = content.manifest.chunks[index]
        try:
            data = await self._disk_cache.get(digest, length_bytes)
            if data is not None:
                self._counters.disk_hits += 1
                self._counters.disk_bytes += length_bytes
                self._land(flight, digest, data)
                return
            self._counters.disk_misses += 1
            async with self._fetch_slots:
                began_seconds = trio.current_time()
                fetched = await self._fetcher.fetch_chunk(content, index)
                self._note_pace(trio.current_time() - began_seconds)
                self._land(flight, digest, fetched.data)
                self._note_arrived(flight)
                self._unwritten_count += 1
                # Nothing more is fetched while too much waits for a disk that is slower than the wire: a chunk
                # that was read once is cached. The readers have gone on by then.
                has_place = await self._wait_for_disk()
            if has_place:
                await self._write(content, index, fetched)
        except Exception as error:  # not swallowed: each waiter raises it
            if flight.has_landed.is_set():
                raise
            flight.end(error)
        finally:
            del self._flights[content.task_id, digest]
            self._note_arrived(flight)
            flight.end()

    async def _wait_for_disk(self) -> bool:
        """True: there is a place to write. A disk that hangs is no cache, and is waited for once in a while only."""
        has_place = False
        try:
            self._disk_slots.acquire_nowait()
            has_place = True
        except trio.WouldBlock:
            if trio.current_time() >= self._hung_until_seconds:
                with trio.move_on_after(ROOM_SECONDS_MAX):
                    await self._disk_slots.acquire()
                    has_place = True
                if not has_place:
                    self._hung_until_seconds = trio.current_time() + HUNG_SECONDS
        finally:
            if not has_place:
                self._note_written()
        return has_place

    async def _write(self, content: FileContent, index: int, fetched: ChunkAnswer) -> None:
        try:
            await self._disk_cache.put(
                content.manifest.chunks[index].digest, fetched.data, fetched.block_digests
            )
        except Exception:
            log.exception("chunk %d of %s is not kept", index, content.label)
        finally:
            self._disk_slots.release()
            self._note_written()

    def _note_written(self) -> None:
        self._unwritten_count -= 1
        if not self._unwritten_count:
            self._all_written.set()
            self._all_written = trio.Event()

    def _note_arrived(self, flight: Flight) -> None:
        """Makes room for the next prefetch, once."""
        self.prefetch_count -= flight.is_prefetch
        flight.is_prefetch = False

    async def _fly_together(self, flights: _Waiting) -> None:
        """Lands what one look at the disk and one call to the master bring; the others fly alone."""
        waiting = dict(flights)
        outage: MasterUnavailable | None = None
        try:
            chunks = [content.manifest.chunks[0] for _, content in flights.values()]
            for digest, data in (await self._disk_cache.get_many(chunks)).items():
                flight, content = waiting.pop(digest)
                self._counters.disk_hits += 1
                self._counters.disk_bytes += len(data)
                self._land(flight, digest, data)
                del self._flights[content.task_id, digest]
            self._counters.disk_misses += len(waiting)
            if waiting:
                async with self._fetch_slots:
                    await self._fetch_together(waiting)
                    await self._write_behind.wait_for_room()
        except MasterUnavailable as error:
            outage = error  # waited out once, and not once for each file
        except CloudAIError as error:
            log.debug("files are fetched one by one: %s", error)
        except Exception:
            log.exception("files are fetched one by one")
        finally:
            for digest, (flight, content) in waiting.items():
                if flight.is_awaited and outage is None:
                    # Whatever was wrong, a fetch of its own says it, or brings the bytes.
                    self._nursery.start_soon(self._fly, flight, content, 0)
                else:
                    del self._flights[content.task_id, digest]
                    flight.end(outage)

    async def _fetch_together(self, waiting: _Waiting) -> None:
        """Takes what has arrived whole out of `waiting`. Raises the client's errors."""
        asked = list(waiting.items())
        task_id = asked[0][1][1].task_id
        wanted = [WantedFile(content.node_id, content.generation, digest) for digest, (_, content) in asked]
        found = await self._fetcher.fetch_files(task_id, wanted)
        for (digest, (flight, content)), data in zip(asked, found, strict=False):
            if data is None:
                continue
            self._land(flight, digest, data)
            if self._write_behind.has_room:
                self._write_behind.add_chunk(digest, data)
            del waiting[digest], self._flights[content.task_id, digest]

    def _land(self, flight: Flight, digest: bytes, data: Data) -> None:
        self._memory.put(digest, data)
        flight.land(data)
