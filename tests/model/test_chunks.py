"""Chunk arithmetic: places in a file of chunks of any lengths."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai_model.chunks import Chunk, ChunkRange, Manifest, digest_of
from cloudai_model.errors import FileTooLarge, SizeMismatch
from cloudai_model.limits import CHUNK_BYTES_MAX, FILE_CHUNKS_MAX

DIGEST = digest_of(b"")

LENGTHS = st.lists(st.one_of(st.integers(1, 20), st.integers(1, CHUNK_BYTES_MAX)), max_size=12)
SHORT_LENGTHS = st.lists(st.integers(1, 9), max_size=12)
OFFSETS = st.integers(0, 120)


def manifest_of(lengths: list[int]) -> Manifest:
    return Manifest(Chunk(length, DIGEST) for length in lengths)


@given(SHORT_LENGTHS, OFFSETS, OFFSETS)
def test_cover_is_exactly_the_range_cut_at_the_end(lengths: list[int], offset: int, length: int) -> None:
    manifest = manifest_of(lengths)
    places = [(index, place) for index, count in enumerate(lengths) for place in range(count)]

    covered = [
        (part.chunk_index, part.offset_bytes + place)
        for part in manifest.cover(offset, length)
        for place in range(part.length_bytes)
    ]

    assert covered == places[offset : offset + length]


@given(LENGTHS, st.data())
def test_cover_names_each_chunk_once_in_order_and_never_an_empty_part(
    lengths: list[int], data: st.DataObject
) -> None:
    manifest = manifest_of(lengths)
    offset = data.draw(st.integers(0, manifest.size_bytes + 1))
    length = data.draw(st.integers(0, manifest.size_bytes + 1))

    parts = list(manifest.cover(offset, length))

    assert all(part.length_bytes > 0 for part in parts)
    assert all(second.chunk_index == first.chunk_index + 1 for first, second in pairwise(parts))
    assert sum(part.length_bytes for part in parts) == max(
        0, min(offset + length, manifest.size_bytes) - offset
    )


@given(LENGTHS)
def test_each_chunk_starts_where_those_before_it_end(lengths: list[int]) -> None:
    manifest = manifest_of(lengths)

    assert [manifest.start_of(index) for index in range(len(lengths))] == [
        sum(lengths[:index]) for index in range(len(lengths))
    ]
    assert manifest.size_bytes == sum(lengths)


def test_cover_of_a_range_over_three_chunks() -> None:
    manifest = manifest_of([4, 2, 5])

    assert list(manifest.cover(3, 5)) == [ChunkRange(0, 3, 1), ChunkRange(1, 0, 2), ChunkRange(2, 0, 2)]


def test_empty_file_has_nothing_to_cover() -> None:
    assert Manifest().size_bytes == 0
    assert list(Manifest().cover(0, 10)) == []


@pytest.mark.parametrize(
    "chunk", [Chunk(0, DIGEST), Chunk(-1, DIGEST), Chunk(CHUNK_BYTES_MAX + 1, DIGEST), Chunk(1, DIGEST[1:])]
)
def test_what_is_no_chunk_makes_no_manifest(chunk: Chunk) -> None:
    with pytest.raises(SizeMismatch) as refusal:
        Manifest([Chunk(1, DIGEST), chunk])

    assert refusal.value.fields["index"] == 1


def test_full_chunk_is_a_chunk() -> None:
    assert Manifest([Chunk(CHUNK_BYTES_MAX, DIGEST)]).size_bytes == 4_194_304


def test_manifest_over_the_limit_of_chunks_is_refused() -> None:
    chunk = Chunk(1, DIGEST)
    assert Manifest([chunk] * FILE_CHUNKS_MAX).size_bytes == 262_144
    with pytest.raises(FileTooLarge):
        Manifest([chunk] * (FILE_CHUNKS_MAX + 1))


@given(LENGTHS, LENGTHS)
def test_manifests_are_equal_when_their_chunks_are(first: list[int], second: list[int]) -> None:
    assert (manifest_of(first) == manifest_of(second)) == (first == second)
    assert hash(manifest_of(first)) == hash(manifest_of(list(first)))


def test_digest_is_blake3() -> None:
    # The test vector of the empty input in BLAKE3's reference implementation.
    assert digest_of(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


@given(st.binary(max_size=100))
def test_digest_is_the_same_for_every_kind_of_buffer(data: bytes) -> None:
    assert digest_of(data) == digest_of(bytearray(data)) == digest_of(memoryview(data))
