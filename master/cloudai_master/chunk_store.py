"""Where chunks are kept: the port. Every implementation passes the same test suite.

All calls but `read_at_once` block, and all are safe from any thread. Owners are user names
(model.names.check_managed_name), digests 32 bytes. A store keeps bytes; who may read which is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from cloudai_model.errors import ChunkDamaged

READ_BYTES: Final = 512 * 1024
"""So short that a read of somebody else does not wait for it noticeably."""


class ChunkUnreachable(ChunkDamaged):
    """Nothing of the chunk can be had: it is gone, or its disk fails to read it.

    The same of many chunks in a row says more about the disk than about them.
    """


class StoreSpace(NamedTuple):
    free_bytes: int
    size_bytes: int


class StoredChunk(NamedTuple):
    digest: bytes
    length_bytes: int


class ChunkStore(Protocol):
    def put(self, owner: str, chunks: Mapping[bytes, bytes | memoryview]) -> None:
        """Stores these chunks, by digest. When it returns they survive the loss of power.

        A chunk that is there already is written again, which changes nothing but heals a damaged one. Raises
        NoSpace: what was stored before is untouched, of these chunks any may be there or not.
        """
        ...

    def read(self, owner: str, digest: bytes, offset_bytes: int, length_bytes: int) -> bytes:
        """Exactly these bytes of the chunk. Not verified.

        Raises ChunkDamaged when it is shorter, ChunkUnreachable, or InternalError when it may well be whole:
        the owner has no folder here, no descriptor is free, the permission is missing.
        """
        ...

    def read_at_once(
        self, owner: str, digest: bytes, offset_bytes: int, length_bytes: int
    ) -> bytes | bytearray | None:
        """The same bytes, when they are there without waiting for a disk or a network; else None.

        May be called on an event loop. None says nothing else: the chunk may be gone or shorter.
        """
        ...

    def read_past_cache(self, owner: str, digest: bytes) -> Iterator[bytes]:
        """The whole chunk in parts of at most READ_BYTES, from where it is kept and not from a memory of it.

        What the machine has in memory stays there, and nothing else comes to it. Raises ChunkUnreachable and
        InternalError as `read`; it may be shorter or longer than it should be. Not verified.
        """
        ...

    def has(self, owner: str, digest: bytes, length_bytes: int) -> bool:
        """Whether the chunk is there with this length. Its bytes are not looked at."""
        ...

    def delete(self, owner: str, digest: bytes) -> None:
        """Afterwards it is not there, whether it was before or not."""
        ...

    def list(self, owner: str) -> Iterator[StoredChunk]:
        """The owner's chunks, in no order; those that come or go meanwhile may be missing."""
        ...

    def space(self) -> StoreSpace:
        """What is left for new chunks, and the whole."""
        ...
