"""A ChunkStore in a dictionary: the fake of a disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cloudai_master.chunk_store import ChunkUnreachable, StoredChunk, StoreSpace
from cloudai_model.errors import ChunkDamaged, NoSpace

SIZE_BYTES = 1 << 40


class MemoryChunkStore:
    """`free_bytes` is what may still be put; tests lower it to fill the disk."""

    def __init__(self) -> None:
        self.free_bytes = SIZE_BYTES
        self.chunks: dict[tuple[str, bytes], bytes] = {}

    def put(self, owner: str, chunks: Mapping[bytes, bytes | memoryview]) -> None:
        for digest, data in chunks.items():
            if len(data) > self.free_bytes:
                raise NoSpace
            self.chunks[owner, digest] = bytes(data)
            self.free_bytes -= len(data)

    def read(self, owner: str, digest: bytes, offset_bytes: int, length_bytes: int) -> bytes:
        if (owner, digest) not in self.chunks:
            raise ChunkUnreachable
        data = self.chunks[owner, digest][offset_bytes : offset_bytes + length_bytes]
        if len(data) != length_bytes:
            raise ChunkDamaged
        return data

    def read_at_once(
        self, owner: str, digest: bytes, offset_bytes: int, length_bytes: int
    ) -> bytes | bytearray | None:
        data = self.chunks.get((owner, digest), b"")[offset_bytes : offset_bytes + length_bytes]
        return data if len(data) == length_bytes else None

    def read_past_cache(self, owner: str, digest: bytes) -> Iterator[bytes]:
        if (owner, digest) not in self.chunks:
            raise ChunkUnreachable
        yield self.chunks[owner, digest]

    def has(self, owner: str, digest: bytes, length_bytes: int) -> bool:
        return len(self.chunks.get((owner, digest), b"")) == length_bytes

    def delete(self, owner: str, digest: bytes) -> None:
        self.free_bytes += len(self.chunks.pop((owner, digest), b""))

    def list(self, owner: str) -> Iterator[StoredChunk]:
        for (of_owner, digest), data in list(self.chunks.items()):
            if of_owner == owner:
                yield StoredChunk(digest, len(data))

    def space(self) -> StoreSpace:
        return StoreSpace(self.free_bytes, SIZE_BYTES)
