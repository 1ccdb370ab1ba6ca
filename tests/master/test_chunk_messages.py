from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai_fusefs.wire_chunks import chunk_data_from_wire, put_chunk_message
from cloudai_master.chunk_messages import decode_put_chunk_request, encode_read_chunk_response
from cloudai_model.limits import CHUNK_BYTES_MAX
from cloudai_proto.storage.v1 import chunks_pb2 as chunks

# Lengths around those at which the length's own encoding grows.
LENGTHS = st.one_of(
    st.integers(0, 300), st.sampled_from([2**14 - 1, 2**14, 2**21 - 1, 2**21, CHUNK_BYTES_MAX])
)


@settings(deadline=None)
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


TASK_IDS = st.text(max_size=40)
DIGESTS = st.binary(max_size=40)


@settings(deadline=None)
@given(TASK_IDS, DIGESTS, LENGTHS)
def test_chunk_that_a_mount_sends_is_as_the_generated_class_encodes_it(
    task_id: str, digest: bytes, length_bytes: int
) -> None:
    data = b"d" * length_bytes
    sent = put_chunk_message(task_id, digest, memoryview(data))
    assert chunks.PutChunkRequest.FromString(sent) == chunks.PutChunkRequest(
        task_id=task_id, digest=digest, data=data
    )
    assert tuple(decode_put_chunk_request(sent)) == (task_id, digest, data)


@settings(deadline=None)
@given(TASK_IDS, DIGESTS, st.integers(0, 300), st.floats(0, 1), st.binary(max_size=8))
def test_any_bytes_are_the_chunk_that_the_generated_class_says(
    task_id: str, digest: bytes, length_bytes: int, share: float, added: bytes
) -> None:
    whole = put_chunk_message(task_id, digest, b"d" * length_bytes)
    encoded = whole[: int(len(whole) * share)] + added
    try:
        expected = chunks.PutChunkRequest.FromString(encoded)
    except DecodeError:
        with pytest.raises(DecodeError):
            decode_put_chunk_request(encoded)
    else:
        assert tuple(decode_put_chunk_request(encoded)) == (expected.task_id, expected.digest, expected.data)


def test_task_id_that_is_no_text_is_refused() -> None:
    encoded = put_chunk_message("t", b"d", b"data").replace(b"\x01t", b"\x01\xff")
    with pytest.raises(DecodeError):
        decode_put_chunk_request(encoded)


def test_data_of_a_sent_chunk_is_a_view_of_the_message() -> None:
    encoded = put_chunk_message("task", b"d" * 32, bytes(CHUNK_BYTES_MAX))
    assert decode_put_chunk_request(encoded).data.obj is encoded
