"""A chunk of which only some blocks are cached: a sparse file, with the digests of all blocks behind it.

    [the chunk's bytes, with holes][32 bytes for each block of 64 KiB][32 bytes: the digest of the chunk's and those]

Which blocks are there is told by the bytes: a hole, a block that was being written when its process died, and a
damaged one do not match their digests, and are not there. The last digest says that the others are this chunk's:
after a power cut a file may hold another's. So any number of processes may write into one file without a lock:
they write the same bytes. Blocking; callers run it in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from cloudai_fusefs.chunk_memory import Data
from cloudai_fusefs.regular_file import open_regular
from cloudai_model.chunks import blocks_match, digest_of
from cloudai_model.limits import BLOCK_BYTES, DIGEST_BYTES, KIB

RANGED_CHUNK_BYTES_MIN: Final = 512 * KIB
"""A shorter chunk is fetched whole: a second call would cost more than its bytes."""


class BlockSpan(NamedTuple):
    """Blocks of one chunk that follow each other, verified."""

    digest: bytes  # of the chunk
    chunk_bytes: int
    block_digests: bytes  # of all blocks of the chunk
    first_block: int
    data: Data


def block_count(chunk_bytes: int) -> int:
    """How many blocks a chunk of that length has; the last may be shorter than the others."""
    return -(-chunk_bytes // BLOCK_BYTES)


def blocks_mask(first_block: int, length_bytes: int) -> int:
    """As bits, the blocks that so many bytes from the beginning of a block on are."""
    return ((1 << block_count(length_bytes)) - 1) << first_block


def read_blocks(
    path: Path, digest: bytes, chunk_bytes: int, first_block: int, length_bytes: int
) -> tuple[bytes, bytes] | None:
    """The bytes from the block's beginning on and the digests of all blocks; None: they are not there, or damaged.

    Raises OSError, FileNotFoundError where there is no file, NotRegular where something else is.
    """
    digests_bytes = block_count(chunk_bytes) * DIGEST_BYTES
    with open_regular(path) as descriptor:
        table = os.pread(descriptor, digests_bytes + DIGEST_BYTES, chunk_bytes)
        data = os.pread(descriptor, length_bytes, first_block * BLOCK_BYTES)
    block_digests = table[:digests_bytes]
    if table != table_of(digest, block_digests) or len(data) != length_bytes:
        return None
    return (data, block_digests) if blocks_match(memoryview(data), first_block, block_digests) else None


def present_blocks(path: Path, chunk_bytes: int) -> int:
    """The blocks that may be there, as bits: those without a hole in them. Raises OSError."""
    found = 0
    with open_regular(path) as descriptor:
        end = 0
        while end < chunk_bytes:
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError:
                break  # ENXIO: no data from here on
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            for block in range(-(-start // BLOCK_BYTES), block_count(min(end, chunk_bytes))):
                found |= 1 << block
    return found


def write_blocks(path: Path, spans: Iterable[BlockSpan]) -> None:
    """Adds the spans, all of one chunk, to a file that is made when it is missing. Raises as read_blocks."""
    with open_regular(path, os.O_WRONLY | os.O_CREAT) as descriptor:
        for span in spans:
            os.pwrite(descriptor, table_of(span.digest, span.block_digests), span.chunk_bytes)
            os.pwrite(descriptor, span.data, span.first_block * BLOCK_BYTES)


def table_bytes(chunk_bytes: int) -> int:
    """How long the table of a chunk is that is cached as a whole; 0: so short a chunk is not read in parts."""
    return (block_count(chunk_bytes) + 1) * DIGEST_BYTES if chunk_bytes >= RANGED_CHUNK_BYTES_MIN else 0


def table_of(digest: bytes, block_digests: bytes) -> bytes:
    """What stands behind a chunk's bytes: the digests of its blocks, and one that binds them to the chunk."""
    return block_digests + digest_of(digest + block_digests)
