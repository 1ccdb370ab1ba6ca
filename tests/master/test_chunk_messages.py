from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudai_fusefs.wire_chunks import chunk_data_from_wire
from cloudai_master.chunk_messages import encode_read_chunk_response
from cloudai_model.limits import CHUNK_BYTES_MAX
from cloudai_proto.storage.v1 import chunks_pb2 as chunks

# Lengths around those at which the length's own encoding grows.
LENGTHS = st.one_of(
    st.integers(0, 300), st.sampled_from([2**14 - 1, 2**14, 2**21 - 1, 2**21, CHUNK_BYTES_MAX])
)


@given(LENGTHS, st.integers(0, 70))
def test_encoded_by_hand_is_as_the_generated_class_does(length_bytes: int, block_count: int) -> None:
    data, block_digests = b"d" * length_bytes, b"b" * 32 * block_count
    expected = chunks.ReadChunkResponse(data=data, block_digests=block_digests)
    assert encode_read_chunk_response(data, block_digests) == expected.SerializeToString()


def test_mounts_take_it_apart_again() -> None:
    for given_data in (b"some data", bytearray(b"some data"), memoryview(b"-some data")[1:]):
        assert chunk_data_from_wire(encode_read_chunk_response(given_data, b"d" * 32)) == (
            memoryview(b"some data"),
            b"d" * 32,
        )
