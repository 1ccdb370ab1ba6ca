"""Where chunks are kept: the port. Every implementation passes the same test suite.

All calls block and are safe from any thread. Owners are user names (model.names.check_managed_name), digests
32 bytes. A store keeps bytes; who may read which is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol


class StoreSpace(NamedTuple):
    free_bytes: int
    size_bytes: int


class StoredChunk(NamedTuple):
    digest: bytes
    length_bytes: int


class ChunkStore(Protocol):
    def put(self, owner: str, chunks: Mapping[bytes, bytes]) -> None:
        """Stores these chunks, by digest. When it returns they survive the loss of power.

        A chunk that is there already is written again, which changes nothing but heals a damaged one. Raises
        NoSpace: what was stored before is untouched, of these chunks any may be there or not.
        """
        ...

    def read(self, owner: str, digest: bytes, offset_bytes: int, length_bytes: int) -> bytes:
        """Exactly these bytes of the chunk; raises ChunkDamaged when it is gone or shorter. Not verified."""
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
