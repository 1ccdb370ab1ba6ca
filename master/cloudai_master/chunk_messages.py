"""The messages with a chunk in them by hand: it is copied once into one that is sent, and not out of one that came.

The generated classes copy 4 MiB twice each. The layout is that of the messages (chunks.proto), by wire_fields.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, DIGEST_BYTES
from cloudai_model.wire_fields import field_head, take_field
from cloudai_proto.storage.v1 import chunks_pb2 as chunks

BLOCK_DIGESTS_BYTES_MAX: Final = CHUNK_BYTES_MAX // BLOCK_BYTES * DIGEST_BYTES

ENVELOPE_BYTES_MAX: Final = 10
"""Two tags, and two lengths of at most four bytes."""

assert CHUNK_BYTES_MAX < 1 << 28

# The fields' numbers: of ReadChunkResponse, then of PutChunkRequest.
_DATA_FIELD: Final = 1
_BLOCK_DIGESTS_FIELD: Final = 2
_PUT_TASK_ID_FIELD: Final = 1
_PUT_DIGEST_FIELD: Final = 2
_PUT_DATA_FIELD: Final = 3


class SentChunk(NamedTuple):
    """A PutChunkRequest; `data` is a view of the message."""

    task_id: str
    digest: bytes
    data: memoryview


def encode_read_chunk_response(data: bytes | bytearray | memoryview, block_digests: bytes = b"") -> bytes:
    """The same bytes as the generated class gives; an empty field is left out."""
    parts: list[bytes | bytearray | memoryview] = []
    if data:
        parts += (field_head(_DATA_FIELD, len(data)), data)
    if block_digests:
        parts += (field_head(_BLOCK_DIGESTS_FIELD, len(block_digests)), block_digests)
    return b"".join(parts)


def decode_put_chunk_request(encoded: bytes) -> SentChunk:
    """What is not laid out as this project's mounts do it is left to the generated class. Raises DecodeError."""
    task_id, place = take_field(encoded, 0, _PUT_TASK_ID_FIELD)
    digest, place = take_field(encoded, place, _PUT_DIGEST_FIELD)
    data, place = take_field(encoded, place, _PUT_DATA_FIELD)
    if task_id is not None and digest is not None and data is not None and place == len(encoded):
        try:
            return SentChunk(str(task_id, "utf-8"), bytes(digest), data)
        except UnicodeDecodeError:
            pass  # the generated class has its own words for it
    request = chunks.PutChunkRequest.FromString(encoded)
    return SentChunk(request.task_id, request.digest, memoryview(request.data))
