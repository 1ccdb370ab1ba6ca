"""Chunks on the local disk: what was read once is local, for every mount and after every restart.

`<cache_dir>/chunks/<aa>/<digest>`, shared by any number of processes without a lock: a file is written
under a temporary name and renamed, its name is its digest, and it is verified on every read. So a kill -9,
a power cut or a neighbour's eviction can lose a chunk, never make it wrong. It is a cache: a failure of
its disk costs speed and a line in the log, and is never the reader's.

`<digest>.<scope>.blocks` beside it holds the blocks of a chunk of which only ranges were read (block_file), for the
mounts of one user of one master alone: it was the master that said what those blocks should be.

Least recently used goes first, by mtime, which a read moves on. No index is kept: a sweep reads the
directory (about 5,000 files in 20 GiB of full chunks), deletes what is over the limits, and counts anew. What
is known of single chunks (`_known_blocks`) only saves looks at the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import trio
from cachetools import LRUCache

from cloudai_fusefs.block_file import BlockSpan, blocks_mask
from cloudai_fusefs.cache_file import RareWarning
from cloudai_fusefs.cache_sweep import KEPT_SHARE, CacheLimits, evict_oldest
from cloudai_fusefs.cache_sweeper import CacheSweeper
from cloudai_fusefs.chunk_files import ChunkFiles
from cloudai_fusefs.chunk_memory import Data
from cloudai_fusefs.mount_control import CACHE_FREE_BYTES_MIN
from cloudai_fusefs.patient_disk import PatientDisk
from cloudai_model.chunks import Chunk
from cloudai_model.full_disks import is_lack_of_room

log = logging.getLogger(__name__)

DISK_THREADS_MAX: Final = 4
"""Enough to keep a local disk busy; separate from other threads, so that neither starves the other. Each that
reads holds a chunk."""

KNOWN_CHUNKS_MAX: Final = 16_384
KNOWN_CHUNK_BYTES: Final = 384
"""What one of them costs in memory, at most: the entry, the digest, the bits and the time."""

ABSENCE_SECONDS_MAX: Final = 1.0
"""How long blocks that were not there are taken to be absent: a look costs a random read a thread's turn."""

LOOKS_TOGETHER_MAX: Final = 1000
"""Files looked at in one turn of a thread: some 10 ms."""

READS_TOGETHER_MAX: Final = 8
"""Files read in one: as much, if they are full chunks and the disk is fast."""


class _Written(NamedTuple):
    """What a turn of a thread came to."""

    size_bytes: int
    failure: OSError | None = None
    lacks_space: bool = False


class _Look(NamedTuple):
    blocks: int
    looked_at_seconds: float


class DiskChunkCache:
    """The chunks below one cache_dir, within a size limit and a free-space limit."""

    def __init__(
        self,
        cache_dir: Path,
        *,
        scope: str,
        bytes_max: int,
        nursery: trio.Nursery,
        free_bytes_min: int = CACHE_FREE_BYTES_MIN,
        threads_max: int = DISK_THREADS_MAX,
    ) -> None:
        """Sweeps run in the nursery, the first one from now on; reads and writes do not wait for it.

        `scope`: the master, and the user in whose name it is asked.
        bytes_max 0: nothing is cached from now on.
        """
        self._files = ChunkFiles(cache_dir, scope=scope)
        self._limits = CacheLimits(bytes_max, free_bytes_min)
        self._disk = PatientDisk(threads_max)
        # Threads of their own: writes that hang keep no read from finding out for itself.
        self._write_threads = trio.CapacityLimiter(DISK_THREADS_MAX)
        # By digest, which blocks may be there, and when that was looked at: what others add is seen a second later,
        # what they delete is found missing.
        self._known_blocks: LRUCache[bytes, _Look] = LRUCache(KNOWN_CHUNKS_MAX)
        self._put_count = 0
        self._failed = RareWarning(log, "the chunk cache in %s cannot be used: %s")
        self._lacks_room = False
        self._sweeper = CacheSweeper(
            partial(evict_oldest, self._files.directory, self._limits),
            bytes_max=bytes_max,
            nursery=nursery,
            note_failure=partial(self._failed.log, self._files.directory),
        )

    @property
    def stored_bytes(self) -> int:
        """What the cache takes of its disk, as of the last sweep and with what this process wrote since."""
        return self._sweeper.stored_bytes

    @property
    def bytes_max(self) -> int:
        return self._limits.bytes_max

    @property
    def lacks_room(self) -> bool:
        """Whether its disk was too full for what was to be written last."""
        return self._lacks_room

    async def room_bytes(self) -> int:
        """How much the cache can hold in all and keep: what is in it now may go for it.

        Less than its limit, as a sweep that anybody's bytes bring about goes below that. 0 when its disk
        cannot be used.
        """
        try:
            free_bytes = await self._disk.look(self._files.free_bytes)
        except OSError as error:
            self._failed.log(self._files.directory, error)
            return 0
        await self._sweeper.wait_swept()
        disk_bytes = free_bytes + self.stored_bytes - self._limits.free_bytes_min
        return max(0, min(int(self._limits.bytes_max * KEPT_SHARE), disk_bytes))

    async def find_missing(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Those that are not cached, unread, in their order; the others count as used now.

        Raises nothing: what cannot be looked at is missing.
        """
        return await self._find_lacking(chunks, self._files.note_wanted, LOOKS_TOGETHER_MAX)

    async def find_missing_or_damaged(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """As `find_missing`, but each is read: one that is damaged is dropped, and missing."""

        def is_intact(digest: bytes, length_bytes: int) -> bool:
            return self._files.read_chunk(digest, length_bytes) is not None

        return await self._find_lacking(chunks, is_intact, READS_TOGETHER_MAX)

    async def _find_lacking(
        self, chunks: Iterable[Chunk], is_there: Callable[[bytes, int], bool], together_max: int
    ) -> list[Chunk]:
        def look(some: Sequence[Chunk]) -> list[Chunk]:
            return [chunk for chunk in some if not is_there(chunk.digest, chunk.length_bytes)]

        lacking: list[Chunk] = []
        remaining = iter(chunks)
        while some := list(islice(remaining, together_max)):
            try:
                lacking += await self._disk.look(look, some)
            except OSError as error:
                self._failed.log(self._files.directory, error)
                lacking += some
        return lacking

    async def get(self, digest: bytes, length_bytes: int) -> bytes | None:
        """The chunk, verified, or None when it is not cached.

        A file that is not the chunk is deleted and logged. Raises nothing. Cancelled: returns at once,
        even when the disk hangs.
        """
        try:
            return await self._disk.look(self._files.read_chunk, digest, length_bytes)
        except OSError as error:
            self._failed.log(self._files.directory, error)
            return None

    async def get_many(self, chunks: Sequence[Chunk]) -> dict[bytes, bytes]:
        """Those of the chunks that are cached, as `get` but in one turn of a thread."""

        def read_all() -> tuple[dict[bytes, bytes], OSError | None]:
            found: dict[bytes, bytes] = {}
            failure: OSError | None = None
            for length_bytes, digest in chunks:
                try:
                    data = self._files.read_chunk(digest, length_bytes)
                except OSError as error:
                    failure = error
                else:
                    if data is not None:
                        found[digest] = data
            return found, failure

        try:
            found, failure = await self._disk.look(read_all)
        except OSError as error:
            found, failure = {}, error
        if failure is not None:
            self._failed.log(self._files.directory, failure)
        return found

    async def get_blocks(
        self, digest: bytes, chunk_bytes: int, first_block: int, length_bytes: int
    ) -> tuple[Data, bytes] | None:
        """The chunk's bytes from the beginning of a block on, verified, and the digests of all its blocks.

        None when they are not cached. Raises nothing. Cancelled: as `get`.
        """
        wanted = blocks_mask(first_block, length_bytes)
        known = self._known_blocks.get(digest)
        is_absent = known is not None and known.blocks & wanted != wanted
        if known and is_absent and trio.current_time() - known.looked_at_seconds < ABSENCE_SECONDS_MAX:
            return None
        put_count = self._put_count
        try:
            found, blocks = await self._disk.look(
                self._files.read_blocks,
                digest,
                chunk_bytes,
                first_block,
                length_bytes,
                known.blocks if known is not None else 0,
            )
        except OSError as error:
            self._failed.log(self._files.directory, error)
            return None
        if known is not None and blocks == known.blocks and found is not None:
            return found  # that was no look at the others
        if put_count == self._put_count:  # else what was put meanwhile may not have been seen
            self._known_blocks[digest] = _Look(blocks, trio.current_time())
        return found

    async def put(self, digest: bytes, data: bytes | memoryview, block_digests: bytes = b"") -> None:
        """Keeps a chunk whose bytes the caller has verified.

        The digests of its blocks need not be: wrong ones cost the reader of a block a look at the whole. Without
        them they are made here.

        Raises nothing: when the disk is full or fails, the chunk is not cached. Cancelled: returns at once, and the
        file may still be written.
        """
        if len(data) <= self._limits.bytes_max:
            await self._put_chunks({digest: (data, block_digests)})

    async def put_many(self, chunks: Mapping[bytes, Data]) -> None:
        """As `put`, of several in one turn of a thread."""
        await self._put_chunks({digest: (data, b"") for digest, data in chunks.items()})

    async def _put_chunks(self, chunks: Mapping[bytes, tuple[Data, bytes]]) -> None:
        """The chunks with the digests of their blocks, or none."""
        await self._write(
            (len(data), partial(self._files.write_chunk, digest, data, block_digests))
            for digest, (data, block_digests) in chunks.items()
            if len(data) <= self._limits.bytes_max
        )
        self._put_count += 1
        for digest in chunks:
            self._known_blocks.pop(digest, None)

    async def put_blocks(self, spans: Sequence[BlockSpan]) -> None:
        """Keeps blocks that the caller has verified, in one turn of a thread. Raises nothing. Cancelled: as `put`."""
        by_chunk: dict[bytes, list[BlockSpan]] = {}
        for span in spans:
            by_chunk.setdefault(span.digest, []).append(span)
            known = self._known_blocks.get(span.digest)
            if known is not None:
                blocks = known.blocks | blocks_mask(span.first_block, len(span.data))
                self._known_blocks[span.digest] = known._replace(blocks=blocks)
        self._put_count += 1
        await self._write(
            (size_bytes, partial(self._files.write_blocks, spans_of_chunk))
            for spans_of_chunk in by_chunk.values()
            if (size_bytes := sum(len(span.data) for span in spans_of_chunk)) <= self._limits.bytes_max
        )

    async def _write(self, writes: Iterable[tuple[int, Callable[[], int]]]) -> None:
        """Carries out the writes, each with its size in bytes, in a thread, while the disk has room for them.

        One that fails takes no other with it, and what was written before is counted.
        """

        def write_all() -> _Written:
            written_bytes = 0
            failure: OSError | None = None
            try:
                room_bytes = self._files.free_bytes() - self._limits.free_bytes_min
            except OSError as error:
                return _Written(0, failure=error)
            for size_bytes, write in writes:
                if written_bytes + size_bytes > room_bytes:
                    return _Written(written_bytes, failure=failure, lacks_space=True)
                try:
                    written_bytes += write()
                except OSError as error:
                    failure = error
            return _Written(written_bytes, failure=failure)

        written = await trio.to_thread.run_sync(
            write_all, limiter=self._write_threads, abandon_on_cancel=True
        )
        lacks_room = written.lacks_space
        if written.failure is not None and is_lack_of_room(written.failure):
            lacks_room = True
        elif written.failure is not None:
            self._failed.log(self._files.directory, written.failure)
        if written.lacks_space:
            self._sweeper.note_lack_of_space()
        if lacks_room and not self._lacks_room:
            log.warning(
                "the disk of %s is full: nothing more is cached until there is room, and reads go on",
                self._files.directory,
            )
        if lacks_room or written.size_bytes:
            self._lacks_room = lacks_room
        self._sweeper.note_written(written.size_bytes)
