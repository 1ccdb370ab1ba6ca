"""ReadChunkResponse encoded by hand: a chunk is copied once, into the message that is sent.

The generated class copies 4 MiB when its field is set and again when it is serialised. The layout is the
message's own (chunks.proto): for each field a tag, the length, the bytes.
"""

from __future__ import annotations

from typing import Final

from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, DIGEST_BYTES

BLOCK_DIGESTS_BYTES_MAX: Final = CHUNK_BYTES_MAX // BLOCK_BYTES * DIGEST_BYTES

ENVELOPE_BYTES_MAX: Final = 10
"""Two tags, and two lengths of at most four bytes."""

assert CHUNK_BYTES_MAX < 1 << 28

_DATA_TAG: Final = b"\x0a"  # field 1, length-delimited
_BLOCK_DIGESTS_TAG: Final = b"\x12"  # field 2, length-delimited


def encode_read_chunk_response(data: bytes | bytearray | memoryview, block_digests: bytes = b"") -> bytes:
    """The same bytes as the generated class gives; an empty field is left out."""
    parts: list[bytes | bytearray | memoryview] = []
    if data:
        parts += (_DATA_TAG, _varint(len(data)), data)
    if block_digests:
        parts += (_BLOCK_DIGESTS_TAG, _varint(len(block_digests)), block_digests)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
