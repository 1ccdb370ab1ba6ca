"""File bytes in memory: whole chunks and blocks of chunks, least recently used first to go, in one budget."""

from __future__ import annotations

from typing import Final

from cachetools import LRUCache

ENTRY_BYTES: Final = 256
"""What an entry costs beside its bytes; without it a million tiny chunks would count for nothing."""

Data = bytes | memoryview
Key = bytes | tuple[bytes, int]
"""A chunk's digest, or that and the number of a block in it."""


class ChunkMemory:
    """Bytes that have been verified, by what they are. One per mount, whatever the number of open files."""

    def __init__(self, bytes_max: int) -> None:
        """bytes_max 0: nothing is kept."""
        self._kept: LRUCache[Key, Data] = LRUCache(bytes_max, getsizeof=_cost_bytes)

    @property
    def bytes_max(self) -> int:
        return int(self._kept.maxsize)

    @property
    def used_bytes(self) -> int:
        """What the entries take of the budget."""
        return int(self._kept.currsize)

    def get(self, key: Key) -> Data | None:
        """The bytes, which count as used now."""
        return self._kept.get(key)

    def put(self, key: Key, data: Data) -> None:
        """Keeps the bytes in place of those used longest ago; what is over the whole budget is not kept."""
        if _cost_bytes(data) <= self._kept.maxsize:
            self._kept[key] = data

    def drop(self, key: Key) -> None:
        """Lets go of the bytes, if they are there."""
        self._kept.pop(key, None)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept


def _cost_bytes(data: Data) -> int:
    return len(data) + ENTRY_BYTES
