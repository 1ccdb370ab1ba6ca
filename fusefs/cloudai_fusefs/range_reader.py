"""Random reads: the blocks around a read, verified, without paying for the whole chunk.

A range is verified by the digests of its blocks of 64 KiB, which the master made when it verified the chunk
and which come with a chunk's first range. Once a chunk has been asked for in WHOLE_AFTER_RANGES ranges, each
larger than the one before, the rest of it comes as a whole.
"""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Final

import trio
from cachetools import LRUCache

from cloudai_fusefs.block_file import RANGED_CHUNK_BYTES_MIN, BlockSpan, block_count
from cloudai_fusefs.chunk_memory import ChunkMemory, Data
from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.file_content import FileContent
from cloudai_fusefs.flights import Flight, wait_for_bytes_of
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.slots import Slots
from cloudai_fusefs.wire_chunks import ChunkData
from cloudai_fusefs.write_behind import WriteBehind
from cloudai_model.chunks import ChunkRange, blocks_match
from cloudai_model.errors import ChunkDamaged
from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, DIGEST_BYTES, KIB

RANGE_BYTES_MAX: Final = 256 * KIB
"""A longer read is no random one: whole chunks are cheaper."""

SINGLE_BLOCK_RANGES: Final = 4
WHOLE_AFTER_RANGES: Final = 7
"""Ranges of 1, 1, 1, 1, 2, 4 and 8 blocks, then the whole chunk. A call costs what 512 KiB do: who reads four
times in a chunk pays for little that he does not want, who reads forty times pays for each chunk twice."""

RANGE_FETCH_BYTES_MAX: Final = BLOCK_BYTES << (WHOLE_AFTER_RANGES - SINGLE_BLOCK_RANGES)

RANGES_IN_FLIGHT_MAX: Final = 16

CHUNKS_KNOWN_MAX: Final = 4096
"""Digests of blocks for 16 GiB of chunks."""

CHUNK_KNOWN_BYTES: Final = CHUNK_BYTES_MAX // BLOCK_BYTES * DIGEST_BYTES + 512
"""What one of them costs in memory: the digests, and the entries in both tables."""


class RangeReader:
    """Reads of a few bytes here and there, in one mount. Shares memory and disk cache with its ChunkReader."""

    def __init__(
        self,
        client: MasterClient,
        reader: ChunkReader,
        memory: ChunkMemory,
        disk_cache: DiskChunkCache,
        write_behind: WriteBehind,
        nursery: trio.Nursery,
    ) -> None:
        self._client = client
        self._reader = reader
        self._memory = memory
        self._disk_cache = disk_cache
        self._write_behind = write_behind
        self._nursery = nursery
        self._slots = Slots(RANGES_IN_FLIGHT_MAX)
        self._flights: dict[tuple[str, bytes, int, int], Flight] = {}
        self._block_digests: LRUCache[bytes, bytes] = LRUCache(CHUNKS_KNOWN_MAX)
        # By chunk, how many ranges of it the master has sent since it was last fetched whole.
        self._fetched_ranges: LRUCache[bytes, int] = LRUCache(CHUNKS_KNOWN_MAX)

    async def read(self, content: FileContent, offset_bytes: int, length_bytes: int) -> Data:
        """As ChunkReader.read, of which it is the equal in everything but what is fetched."""
        ranges = list(islice(content.manifest.cover(offset_bytes, length_bytes), 3))
        if len(ranges) > 2:  # short chunks, several of which are asked for at a time
            return await self._reader.read(content, offset_bytes, length_bytes)
        parts = [await self._read_part(content, part) for part in ranges]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_part(self, content: FileContent, part: ChunkRange) -> Data:
        length_bytes, digest = content.manifest.chunks[part.chunk_index]
        if length_bytes < RANGED_CHUNK_BYTES_MIN or self._reader.is_near(content, part.chunk_index):
            return await self._reader.read_part(content, part)
        first_block = part.offset_bytes // BLOCK_BYTES
        after_block = block_count(part.offset_bytes + part.length_bytes)
        blocks: list[Data] = []
        for block in range(first_block, after_block):
            data = self._memory.get((digest, block))
            if data is None:
                break
            blocks.append(data)
        else:
            self._reader.counters.memory_hits += 1
            self._reader.counters.memory_bytes += part.length_bytes
            return _cut(blocks, part.offset_bytes - first_block * BLOCK_BYTES, part.length_bytes)
        self._reader.counters.memory_misses += 1
        data = await self._find_on_disk(content, part.chunk_index, first_block, after_block)
        if data is None:
            first_block, after_block = self._widen(content, part.chunk_index, first_block, after_block)
            ask = partial(self._ask, content, part.chunk_index, first_block, after_block)
            data = await wait_for_bytes_of(content, ask(), ask)
        return _cut([data], part.offset_bytes - first_block * BLOCK_BYTES, part.length_bytes)

    async def _find_on_disk(
        self, content: FileContent, index: int, first_block: int, after_block: int
    ) -> Data | None:
        """These blocks and no more, of which some may not be there: what is here is not asked for again."""
        chunk_bytes, digest = content.manifest.chunks[index]
        length_bytes = _blocks_bytes(chunk_bytes, first_block, after_block)
        found = await self._disk_cache.get_blocks(digest, chunk_bytes, first_block, length_bytes)
        if found is None:
            self._reader.counters.disk_misses += 1
            return None
        self._reader.counters.disk_hits += 1
        self._reader.counters.disk_bytes += length_bytes
        data, self._block_digests[digest] = found
        self._keep(digest, first_block, after_block, data)
        return data

    def _widen(self, content: FileContent, index: int, first_block: int, after_block: int) -> tuple[int, int]:
        """The blocks to ask the master for; asks for the whole chunk as well once that has come to be cheaper."""
        length_bytes, digest = content.manifest.chunks[index]
        fetched_ranges = self._fetched_ranges.get(digest, 0)
        if fetched_ranges >= WHOLE_AFTER_RANGES and self._reader.prefetch(content, index):
            # From now on it is in the disk cache, and read in parts from there. This read waits for one block more,
            # not for all of them: a chunk takes ten times as long.
            del self._fetched_ranges[digest]
            fetched_ranges = 0
        # Aligned to its own length, so that ranges meet and do not overlap.
        window_blocks = 1 << max(0, min(fetched_ranges, WHOLE_AFTER_RANGES - 1) + 1 - SINGLE_BLOCK_RANGES)
        first_block -= first_block % window_blocks
        return first_block, min(after_block + -after_block % window_blocks, block_count(length_bytes))

    def _ask(self, content: FileContent, index: int, first_block: int, after_block: int) -> Flight:
        digest = content.manifest.chunks[index].digest
        # By run as well: what one run's reader is refused must not be the answer to another's.
        key = (content.task_id, digest, first_block, after_block)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = Flight(content)
            self._nursery.start_soon(self._fly, flight, key, content, index)
        return flight

    async def _fly(
        self, flight: Flight, key: tuple[str, bytes, int, int], content: FileContent, index: int
    ) -> None:
        _, digest, first_block, after_block = key
        try:
            async with self._slots:
                data = await self._fetch(content, index, first_block, after_block)
                self._keep(digest, first_block, after_block, data)
                flight.land(data)
                if not self._write_behind.has_room:
                    await self._write_behind.wait_for_room()
        except Exception as error:  # not swallowed: each waiter raises it
            if flight.has_landed.is_set():
                raise
            flight.end(error)
        finally:
            del self._flights[key]
            flight.end()

    def _keep(self, digest: bytes, first_block: int, after_block: int, data: Data) -> None:
        view = memoryview(data)
        for block in range(first_block, after_block):
            start = (block - first_block) * BLOCK_BYTES
            # A copy: a view would keep all that came with it, at the price of one block.
            self._memory.put((digest, block), bytes(view[start : start + BLOCK_BYTES]))

    async def _fetch(self, content: FileContent, index: int, first_block: int, after_block: int) -> Data:
        """The bytes of the blocks from the master, verified."""
        chunk_bytes, digest = content.manifest.chunks[index]
        offset_bytes = first_block * BLOCK_BYTES
        length_bytes = _blocks_bytes(chunk_bytes, first_block, after_block)
        block_digests = self._block_digests.get(digest, b"")
        try:
            answer = await self._client.read_range(
                content.task_id,
                content.node_id,
                content.generation,
                index,
                offset_bytes,
                length_bytes,
                with_block_digests=not block_digests,
            )
        except ChunkDamaged:
            answer = ChunkData(memoryview(b""))
        self._reader.counters.fetched_ranges += 1
        self._fetched_ranges[digest] = self._fetched_ranges.get(digest, 0) + 1
        self._reader.counters.fetched_bytes += len(answer.data)
        block_digests = block_digests or answer.block_digests
        is_complete = (
            len(answer.data) == length_bytes and len(block_digests) == block_count(chunk_bytes) * DIGEST_BYTES
        )
        if is_complete and blocks_match(answer.data, first_block, block_digests):
            self._block_digests[digest] = block_digests
            # A disk that hangs is no cache: what is too much for it is fetched again.
            if self._write_behind.has_room:
                self._write_behind.add_blocks(
                    BlockSpan(digest, chunk_bytes, block_digests, first_block, answer.data)
                )
            return answer.data
        # Whoever is wrong, the whole chunk and its digest decide.
        self._reader.counters.damaged_chunks += 1
        self._block_digests.pop(digest, None)
        return await self._reader.read_part(content, ChunkRange(index, offset_bytes, length_bytes))


def _blocks_bytes(chunk_bytes: int, first_block: int, after_block: int) -> int:
    """How many bytes the blocks of a chunk of that length are."""
    return min(after_block * BLOCK_BYTES, chunk_bytes) - first_block * BLOCK_BYTES


def _cut(blocks: list[Data], offset_bytes: int, length_bytes: int) -> Data:
    data = blocks[0] if len(blocks) == 1 else b"".join(blocks)
    return memoryview(data)[offset_bytes : offset_bytes + length_bytes]
