"""The readers of one mount over any master's reading calls, without its trees and handles."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from cloudai_fusefs.chunk_memory import ChunkMemory, Data
from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.range_reader import RangeReader
from cloudai_fusefs.write_behind import WriteBehind
from cloudai_model.limits import MIB


class ContentReaders(NamedTuple):
    """What reads published content in a mount, and what it reads by way of."""

    chunks: ChunkReader
    ranges: RangeReader
    memory: ChunkMemory
    disk_cache: DiskChunkCache
    write_behind: WriteBehind


@asynccontextmanager
async def open_readers(
    client: MasterClient, cache_dir: Path, *, memory_bytes_max: int = 64 * MIB, scope: str = "test"
) -> AsyncIterator[ContentReaders]:
    """Leaving waits for fetches and for what goes to the disk cache."""
    async with trio.open_nursery() as nursery:
        disk_cache = DiskChunkCache(
            cache_dir, scope=scope, bytes_max=1 << 30, nursery=nursery, free_bytes_min=0
        )
        memory = ChunkMemory(memory_bytes_max)
        write_behind = WriteBehind(disk_cache, nursery)
        chunks = ChunkReader(client, memory, disk_cache, write_behind, nursery)
        ranges = RangeReader(client, chunks, memory, disk_cache, write_behind, nursery)
        yield ContentReaders(chunks, ranges, memory, disk_cache, write_behind)


def held_bytes(data: Data) -> int:
    """What the bytes keep in memory: of a view, all that it is a view of."""
    return memoryview(data.obj if isinstance(data, memoryview) else data).nbytes
