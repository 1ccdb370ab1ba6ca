"""The messages that chunks are asked for and sent with: their bytes out of an answer without a copy, and into a
message with one.

The generated classes copy 4 MiB twice, a few percent of a cold read or of an upload. The layout is that of the
messages (chunks.proto), by wire_fields.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cloudai_model.chunks import digest_of
from cloudai_model.wire_fields import field_head, take_field
from cloudai_proto.storage.v1 import chunks_pb2 as chunks

# The fields' numbers: of ReadChunkResponse, and of PutChunkRequest the long one, which comes last.
_DATA_FIELD: Final = 1
_BLOCK_DIGESTS_FIELD: Final = 2
_PUT_DATA_FIELD: Final = 3


class ChunkData(NamedTuple):
    """An answer to ReadChunk: not yet verified."""

    data: memoryview
    block_digests: bytes = b""


class ChunkAnswer(NamedTuple):
    """A whole chunk as it came: the digest is that of the data, the blocks' digests are what the master says."""

    data: memoryview
    digest: bytes
    block_digests: bytes = b""


def whole_chunk_request(
    task_id: str, node_id: int, generation: int, chunk_index: int, *, verify: bool
) -> chunks.ReadChunkRequest:
    """Asks for a whole chunk, and for its blocks' digests: made there once, made here at each read."""
    return chunks.ReadChunkRequest(
        task_id=task_id,
        node_id=node_id,
        generation=generation,
        chunk_index=chunk_index,
        with_block_digests=True,
        verify=verify,
    )


def range_request(
    task_id: str,
    node_id: int,
    generation: int,
    chunk_index: int,
    offset_bytes: int,
    length_bytes: int,
    *,
    with_block_digests: bool,
) -> chunks.ReadChunkRequest:
    """Asks for a part of a chunk."""
    return chunks.ReadChunkRequest(
        task_id=task_id,
        node_id=node_id,
        generation=generation,
        chunk_index=chunk_index,
        offset_bytes=offset_bytes,
        length_bytes=length_bytes,
        with_block_digests=with_block_digests,
    )


def put_chunk_message(task_id: str, digest: bytes, data: bytes | memoryview) -> bytes:
    """A PutChunkRequest, encoded."""
    head = chunks.PutChunkRequest(task_id=task_id, digest=digest).SerializeToString()
    return b"".join((head, field_head(_PUT_DATA_FIELD, len(data)), data))


def whole_chunk_from_wire(encoded: bytes) -> ChunkAnswer:
    """As chunk_data_from_wire, of a whole chunk. gRPC's thread calls it: hashing holds up no loop there."""
    data, block_digests = chunk_data_from_wire(encoded)
    return ChunkAnswer(data, digest_of(data), block_digests)


def chunk_data_from_wire(encoded: bytes) -> ChunkData:
    """The fields of an encoded ReadChunkResponse; `data` is a view of the argument.

    What is not laid out as this project's masters do it is left to the generated class. Raises DecodeError
    as that does.
    """
    data, place = take_field(encoded, 0, _DATA_FIELD)
    if data is not None and place < len(encoded):
        block_digests, place = take_field(encoded, place, _BLOCK_DIGESTS_FIELD)
        if block_digests is not None and place == len(encoded):
            return ChunkData(data, bytes(block_digests))
    elif data is not None:
        return ChunkData(data)
    response = chunks.ReadChunkResponse.FromString(encoded)
    return ChunkData(memoryview(response.data), response.block_digests)
