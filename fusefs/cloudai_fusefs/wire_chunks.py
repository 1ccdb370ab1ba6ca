"""The messages that chunks are asked for with, and their bytes out of the answers without a copy.

The generated class copies 4 MiB when it parses and again when its field is read; both are a few percent of a
cold read. The layout is the message's own (chunks.proto, ReadChunkResponse): a tag, the length, the bytes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cloudai_model.chunks import digest_of
from cloudai_proto.storage.v1 import chunks_pb2 as chunks

_DATA_TAG: Final = 1 << 3 | 2  # field 1, length-delimited
_BLOCK_DIGESTS_TAG: Final = 2 << 3 | 2
_VARINT_BYTES_MAX: Final = 5  # lengths below 2**35


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


def whole_chunk_from_wire(encoded: bytes) -> ChunkAnswer:
    """As chunk_data_from_wire, of a whole chunk. gRPC's thread calls it: hashing holds up no loop there."""
    data, block_digests = chunk_data_from_wire(encoded)
    return ChunkAnswer(data, digest_of(data), block_digests)


def chunk_data_from_wire(encoded: bytes) -> ChunkData:
    """The fields of an encoded ReadChunkResponse; `data` is a view of the argument.

    What is not laid out as this project's masters do it is left to the generated class. Raises DecodeError
    as that does.
    """
    data, place = _field(encoded, 0, _DATA_TAG)
    if data is not None and place < len(encoded):
        block_digests, place = _field(encoded, place, _BLOCK_DIGESTS_TAG)
        if block_digests is not None and place == len(encoded):
            return ChunkData(data, bytes(block_digests))
    elif data is not None:
        return ChunkData(data)
    response = chunks.ReadChunkResponse.FromString(encoded)
    return ChunkData(memoryview(response.data), response.block_digests)


def _field(encoded: bytes, place: int, tag: int) -> tuple[memoryview | None, int]:
    """The bytes of the field that begins at the place, and where it ends; no bytes: it is not this field, whole."""
    if place >= len(encoded) or encoded[place] != tag:
        return None, place
    length_bytes = shift = 0
    for index in range(place + 1, min(place + 1 + _VARINT_BYTES_MAX, len(encoded))):
        length_bytes |= (encoded[index] & 0x7F) << shift
        shift += 7
        if encoded[index] < 0x80:
            end = index + 1 + length_bytes
            if end > len(encoded):
                return None, place
            return memoryview(encoded)[index + 1 : end], end
    return None, place
