"""The digests of chunks' blocks, remembered: who reads here and there in a file asks for those of every chunk."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Final

from cachetools import LRUCache

from cloudai_master.chunk_ownership import find_block_digests
from cloudai_master.chunk_places import ChunkPlace
from cloudai_master.database import Database
from cloudai_model.limits import BLOCK_BYTES

BLOCKS_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of memory: those of chunks of 32 GiB in all."""

# An entry's key and the objects around its bytes, by sys.getsizeof.
ENTRY_BYTES: Final = 250


class KnownBlocks:
    """Finds block digests, and remembers. Safe for any thread."""

    def __init__(self, database: Database, bytes_max: int = BLOCKS_BYTES_MAX) -> None:
        self._database = database
        self._blocks: LRUCache[tuple[int, bytes], bytes] = LRUCache(
            bytes_max, getsizeof=lambda block_digests: ENTRY_BYTES + len(block_digests)
        )
        self._lock = Lock()

    def find(self, user_key: int, place: ChunkPlace, neighbours: Sequence[ChunkPlace]) -> bytes | None:
        """Those of the chunk, 32 bytes for each block in order; None when they are not recorded.

        A look at the database brings those of the neighbours too, which are likely to be asked for next.
        """
        known = self.found_lately(user_key, place)
        if known is not None:
            return known
        wanted = {place.digest} | {other.digest for other in neighbours if other.length_bytes > BLOCK_BYTES}
        with self._database.read() as connection:
            found = find_block_digests(connection, user_key, wanted)
        with self._lock:
            for digest, block_digests in found.items():
                self._blocks[user_key, digest] = block_digests
        return found.get(place.digest)

    def found_lately(self, user_key: int, place: ChunkPlace) -> bytes | None:
        """As find, without the database: None too when it would have to be asked."""
        if place.length_bytes <= BLOCK_BYTES:
            return place.digest
        with self._lock:
            return self._blocks.get((user_key, place.digest))
