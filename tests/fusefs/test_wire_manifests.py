"""Manifests written by hand: what the generated class makes of the same chunks, to the byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudai_fusefs.wire_manifests import encode_manifest, manifest_from_wire
from cloudai_model.chunks import Chunk, Manifest
from cloudai_model.limits import CHUNK_BYTES_MAX, DIGEST_BYTES, MIB
from cloudai_proto.storage.v1 import types_pb2 as types
from support.resident_memory import numbers_printed_by

# Around the lengths at which a length takes one byte more, and some beside each other that are equal.
LENGTHS = st.one_of(
    st.integers(1, CHUNK_BYTES_MAX), st.sampled_from([1, 127, 128, 16_383, 16_384, CHUNK_BYTES_MAX])
)
DIGESTS = st.one_of(st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES), st.just(bytes(DIGEST_BYTES)))


@given(chunks=st.lists(st.builds(Chunk, LENGTHS, DIGESTS), max_size=20))
def test_manifest_is_written_as_its_message_is(chunks: list[Chunk]) -> None:
    """A journal's row tells by these bytes whether a content has been committed, over versions of this program."""
    message = types.Manifest(
        chunks=[types.Chunk(length_bytes=length_bytes, digest=digest) for length_bytes, digest in chunks]
    )

    encoded = encode_manifest(Manifest(chunks))

    assert encoded == message.SerializeToString()
    assert manifest_from_wire(types.Manifest.FromString(encoded).chunks) == Manifest(chunks)


ENCODE_A_TEBIBYTE = """
import os
from cloudai_fusefs.wire_manifests import encode_manifest
from cloudai_model.chunks import Chunk, Manifest
from cloudai_model.limits import CHUNK_BYTES_MAX, DIGEST_BYTES, FILE_CHUNKS_MAX
from support.resident_memory import ResidentMemory

manifest = Manifest([Chunk(CHUNK_BYTES_MAX, bytes(DIGEST_BYTES))] * FILE_CHUNKS_MAX)
memory = ResidentMemory(os.getpid())
print(len(encode_manifest(manifest)), memory.grown_bytes())
"""


def test_manifest_of_a_tebibyte_is_written_in_little_more_memory_than_it_takes() -> None:
    """It is written for each commit, and the daemon's memory is bounded."""
    encoded_bytes, grown_bytes = numbers_printed_by(ENCODE_A_TEBIBYTE)

    assert 10 * MIB < encoded_bytes < 11 * MIB
    assert grown_bytes < 30 * MIB
