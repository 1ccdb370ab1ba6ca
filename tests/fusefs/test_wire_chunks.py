"""ReadChunkResponse read by hand: what the generated class says of the same bytes, whatever they are."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from cloudai_fusefs.wire_chunks import ChunkData, chunk_data_from_wire
from cloudai_model.limits import CHUNK_BYTES_MAX
from cloudai_proto.storage.v1 import chunks_pb2 as chunks

# Around the lengths at which a length takes one byte more.
LENGTHS = st.one_of(st.integers(0, 300), st.sampled_from([127, 128, 16_383, 16_384, 70_000]))
DATA = LENGTHS.map(lambda length: (b"\x0a\x12\x80" * length)[:length])  # tags and lengths, if read as such
DIGESTS = st.one_of(
    st.just(b""), st.binary(max_size=70), st.integers(1, 64).map(lambda n: b"\x12\x20" * 16 * n)
)


def varint(value: int, *, length_bytes: int = 1) -> bytes:
    """The value in at least so many bytes: longer than it need be is allowed."""
    parts: list[int] = []
    while value > 0x7F or len(parts) + 1 < length_bytes:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


@st.composite
def fields(draw: st.DrawFn) -> bytes:
    """A field as any encoder may write it, of this message or unknown."""
    tag = draw(st.sampled_from([b"\x0a", b"\x12", b"\x1a", b"\x82\x01", b"\x8a\x00"]))
    payload = draw(st.binary(max_size=40))
    return tag + varint(len(payload), length_bytes=draw(st.integers(1, 6))) + payload


def generated(encoded: bytes) -> ChunkData | None:
    """None: it is no such message."""
    try:
        response = chunks.ReadChunkResponse.FromString(encoded)
    except DecodeError:
        return None
    return ChunkData(memoryview(response.data), response.block_digests)


def ours(encoded: bytes) -> ChunkData | None:
    try:
        return chunk_data_from_wire(encoded)
    except DecodeError:
        return None


@given(data=DATA, block_digests=DIGESTS)
def test_response_is_read_as_it_was_written(data: bytes, block_digests: bytes) -> None:
    encoded = chunks.ReadChunkResponse(data=data, block_digests=block_digests).SerializeToString()
    assert chunk_data_from_wire(encoded) == ChunkData(memoryview(data), block_digests)


@given(data=DATA, block_digests=DIGESTS, share=st.floats(0, 1))
def test_truncated_response_is_what_the_generated_class_says(
    data: bytes, block_digests: bytes, share: float
) -> None:
    encoded = chunks.ReadChunkResponse(data=data, block_digests=block_digests).SerializeToString()
    cut = encoded[: int(len(encoded) * share)]
    assert ours(cut) == generated(cut)


def test_no_truncation_of_a_response_is_read_otherwise() -> None:
    encoded = chunks.ReadChunkResponse(data=b"d" * 130, block_digests=b"b" * 64).SerializeToString()
    for length in range(len(encoded) + 1):
        assert ours(encoded[:length]) == generated(encoded[:length]), length


@given(encoded=st.one_of(st.binary(max_size=60), st.lists(fields(), max_size=4).map(b"".join)))
@example(encoded=b"\x0a\x80\x80\x80\x80\x00")  # no bytes, by a length of five
@example(encoded=b"\x0a\x80\x80\x80\x80\x80\x00")  # by one of six
@example(encoded=b"\x0a\xff\xff\xff\xff\x0f")  # a length of 2**32 - 1
@example(encoded=b"\x0a\xff\xff\xff\xff\x7f")  # of 2**35 - 1
@example(encoded=b"\x0a\x01a\x0a\x01b")  # twice: the last counts
@example(encoded=b"\x0a\x01a\x12\x01b\x12\x01c")
@example(encoded=b"\x12\x01b\x0a\x01a")  # the other way round
@example(encoded=b"\x0a\x01a\x18\x05")  # a field of a later version
@example(encoded=b"\x0a\x01a\x00")
def test_any_bytes_are_what_the_generated_class_says(encoded: bytes) -> None:
    assert ours(encoded) == generated(encoded)


@pytest.mark.parametrize("block_digests", [b"", bytes(range(32)) * 64])
def test_data_of_a_full_chunk_is_a_view_of_the_message(block_digests: bytes) -> None:
    data = bytes(range(256)) * (CHUNK_BYTES_MAX // 256)
    encoded = chunks.ReadChunkResponse(data=data, block_digests=block_digests).SerializeToString()
    found = chunk_data_from_wire(encoded)
    assert found.data.obj is encoded
    assert found == ChunkData(memoryview(data), block_digests)
