"""Chunk arithmetic: a file is a list of consecutive, content-addressed chunks.

Pure functions and values. A chunk is at most 4 MiB; chunks need not be of equal length (a growing file is
published in short ones), so places are found by the running sum of lengths.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from blake3 import blake3

from cloudai_model.errors import FileTooLarge, SizeMismatch
from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, DIGEST_BYTES, FILE_CHUNKS_MAX


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """The 32-byte BLAKE3 digest of a chunk's bytes."""
    return blake3(data).digest()


def block_digests_of(data: bytes | bytearray | memoryview) -> bytes:
    """The digests of a chunk's blocks of 64 KiB, one after another; the last block may be shorter."""
    view = memoryview(data)
    return b"".join(
        blake3(view[start : start + BLOCK_BYTES]).digest() for start in range(0, len(view), BLOCK_BYTES)
    )


def blocks_match(data: memoryview, first_block: int, block_digests: bytes) -> bool:
    """Whether the bytes are those of the blocks from `first_block` on, by the digests of all of the chunk's."""
    start = first_block * DIGEST_BYTES
    found = block_digests_of(data)
    return block_digests[start : start + len(found)] == found


class Chunk(NamedTuple):
    """One entry of a manifest."""

    length_bytes: int
    digest: bytes


class ChunkRange(NamedTuple):
    """The part of one chunk that a byte range of the file covers."""

    chunk_index: int
    offset_bytes: int  # within the chunk
    length_bytes: int


class Manifest:
    """A file's content as the ordered list of its chunks. Immutable; the empty one is the empty file."""

    __slots__ = ("_ends", "chunks")

    def __init__(self, chunks: Iterable[Chunk] = ()) -> None:
        """Raises SizeMismatch for a chunk of no or too many bytes or a digest of another length than 32,
        FileTooLarge past the limit of chunks.
        """
        self.chunks: tuple[Chunk, ...] = tuple(chunks)
        if len(self.chunks) > FILE_CHUNKS_MAX:
            raise FileTooLarge(chunk_count=len(self.chunks))
        for index, (length_bytes, digest) in enumerate(self.chunks):
            if not 0 < length_bytes <= CHUNK_BYTES_MAX or len(digest) != DIGEST_BYTES:
                raise SizeMismatch("not a chunk", index=index, length_bytes=length_bytes)
        # Not a list of numbers: of 1 TiB that takes 10 MiB and this 2, in each node whose content is known.
        self._ends = array("q", accumulate(chunk.length_bytes for chunk in self.chunks))

    @property
    def size_bytes(self) -> int:
        return self._ends[-1] if self._ends else 0

    def start_of(self, index: int) -> int:
        """The offset in the file of the chunk's first byte."""
        return self._ends[index] - self.chunks[index].length_bytes

    def cover(self, offset_bytes: int, length_bytes: int) -> Iterator[ChunkRange]:
        """The chunk ranges that make up [offset, offset + length) of the file, in order; cut at its end."""
        end_bytes = min(offset_bytes + length_bytes, self.size_bytes)
        index = bisect_right(self._ends, offset_bytes)
        while offset_bytes < end_bytes:
            stop_bytes = min(end_bytes, self._ends[index])
            yield ChunkRange(index, offset_bytes - self.start_of(index), stop_bytes - offset_bytes)
            offset_bytes = stop_bytes
            index += 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.chunks == other.chunks

    def __hash__(self) -> int:
        return hash(self.chunks)

    def __repr__(self) -> str:
        return f"Manifest({len(self.chunks)} chunks, {self.size_bytes} bytes)"
