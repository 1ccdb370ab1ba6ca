"""The manifest-to-be of a file under writes and truncations, against a plain bytearray."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloudai_fusefs.layout import Layout
from cloudai_model.chunks import Chunk, Manifest, digest_of
from cloudai_model.errors import FileTooLarge
from cloudai_model.limits import CHUNK_BYTES_MAX, FILE_BYTES_MAX

MIB = 1024 * 1024


def store_all(layout: Layout, content: bytes) -> None:
    for segment in list(layout.changed_segments()):
        end_bytes = segment.start_bytes + segment.length_bytes
        assert layout.note_stored(segment, digest_of(content[segment.start_bytes : end_bytes]))


def test_new_file_is_cut_at_multiples_of_four_mib() -> None:
    layout = Layout()

    layout.note_write(0, 10 * MIB)

    assert [(s.start_bytes, s.length_bytes) for s in layout.changed_segments()] == [
        (0, 4 * MIB),
        (4 * MIB, 4 * MIB),
        (8 * MIB, 2 * MIB),
    ]


def test_segments_cut_away_while_they_are_gone_through_are_passed_over() -> None:
    layout = Layout()
    layout.note_write(0, 10 * MIB)
    segments = layout.changed_segments()
    assert next(segments).start_bytes == 0

    layout.note_truncate(5 * MIB)

    assert [(s.start_bytes, s.length_bytes) for s in segments] == [(4 * MIB, MIB)]


def test_only_chunks_that_a_writer_has_left_behind_are_full() -> None:
    layout = Layout()

    layout.note_write(0, 8 * MIB)

    assert [s.start_bytes for s in layout.full_changed_segments()] == [0]


def test_chunk_is_left_behind_by_what_is_written_not_by_the_size_that_was_set_before() -> None:
    layout = Layout()
    layout.note_truncate(16 * MIB)

    layout.note_write(0, 5 * MIB)

    assert [s.start_bytes for s in layout.full_changed_segments()] == [0]


def test_overwriting_in_the_middle_changes_one_chunk_alone() -> None:
    layout = Layout(Manifest([Chunk(4 * MIB, b"a" * 32), Chunk(4 * MIB, b"b" * 32), Chunk(1, b"c" * 32)]))

    layout.note_write(5 * MIB, 10)

    assert [s.start_bytes for s in layout.changed_segments()] == [4 * MIB]


def test_appending_to_a_published_short_chunk_leaves_it_as_it_is() -> None:
    layout = Layout(Manifest([Chunk(100, b"a" * 32)]))

    layout.note_write(100, 50)

    assert [(s.start_bytes, s.length_bytes) for s in layout.changed_segments()] == [(100, 50)]


def test_merging_makes_one_chunk_of_a_cells_short_ones() -> None:
    layout = Layout(Manifest([Chunk(100, b"a" * 32), Chunk(50, b"b" * 32), Chunk(7, b"c" * 32)]))

    layout.merge_short_segments(2)

    assert [(s.start_bytes, s.length_bytes) for s in layout.changed_segments()] == [(0, 157)]


def test_merging_leaves_cells_with_few_short_chunks_alone() -> None:
    manifest = Manifest([Chunk(100, b"a" * 32), Chunk(50, b"b" * 32)])
    layout = Layout(manifest)

    layout.merge_short_segments(2)

    assert layout.manifest() == manifest


def test_segment_that_changed_while_it_was_sent_is_not_stored() -> None:
    layout = Layout()
    layout.note_write(0, 100)
    (segment,) = layout.changed_segments()
    layout.note_write(50, 1)

    assert not layout.note_stored(segment, b"a" * 32)
    assert not layout.is_stored


def test_truncating_cuts_the_last_chunk_and_makes_it_again() -> None:
    layout = Layout(Manifest([Chunk(4 * MIB, b"a" * 32), Chunk(4 * MIB, b"b" * 32)]))

    layout.note_truncate(5 * MIB)

    assert [(s.start_bytes, s.length_bytes) for s in layout.changed_segments()] == [(4 * MIB, MIB)]


def test_truncating_at_a_chunks_end_keeps_it() -> None:
    layout = Layout(Manifest([Chunk(4 * MIB, b"a" * 32), Chunk(4 * MIB, b"b" * 32)]))

    layout.note_truncate(4 * MIB)

    assert layout.manifest() == Manifest([Chunk(4 * MIB, b"a" * 32)])


def test_chunk_that_the_master_lacks_is_made_again() -> None:
    layout = Layout(Manifest([Chunk(5, b"a" * 32), Chunk(5, b"b" * 32)]))

    assert layout.note_lost({b"b" * 32}) == 1
    assert [s.start_bytes for s in layout.changed_segments()] == [5]


@pytest.mark.parametrize("size_bytes", [FILE_BYTES_MAX + 1, 1 << 62])
def test_size_over_the_limit_is_refused_and_changes_nothing(size_bytes: int) -> None:
    layout = Layout()

    with pytest.raises(FileTooLarge):
        layout.note_truncate(size_bytes)
    with pytest.raises(FileTooLarge):
        layout.note_write(size_bytes - 1, 1)

    assert layout.size_bytes == 0


@given(lengths=st.lists(st.integers(1, CHUNK_BYTES_MAX), max_size=8))
@settings(deadline=None)
def test_untouched_manifest_comes_back_as_it_was(lengths: list[int]) -> None:
    manifest = Manifest(Chunk(length, bytes([index]) * 32) for index, length in enumerate(lengths))

    assert Layout(manifest).manifest() == manifest


class LayoutAgainstBytes(RuleBasedStateMachine):
    """Writes, truncations, storing and merging in any order: whatever the layout calls stored has the
    digest of the bytes that are there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.content = bytearray()
        self.layout = Layout()

    @rule(offset=st.integers(0, 9 * MIB), length=st.integers(0, 5 * MIB), fill=st.integers(0, 255))
    def write(self, offset: int, length: int, fill: int) -> None:
        if length and len(self.content) < offset + length:
            self.content.extend(bytes(offset + length - len(self.content)))
        self.content[offset : offset + length] = bytes([fill]) * length
        self.layout.note_write(offset, length)

    @rule(size=st.integers(0, 12 * MIB))
    def truncate(self, size: int) -> None:
        self.content = self.content[:size] + bytes(max(0, size - len(self.content)))
        self.layout.note_truncate(size)

    @precondition(lambda self: not self.layout.is_stored)
    @rule(data=st.data())
    def store_one(self, data: st.DataObject) -> None:
        segment = data.draw(st.sampled_from(list(self.layout.changed_segments())))
        end_bytes = segment.start_bytes + segment.length_bytes
        assert self.layout.note_stored(
            segment, digest_of(bytes(self.content[segment.start_bytes : end_bytes]))
        )

    @rule(segments_max=st.integers(1, 3))
    def merge(self, segments_max: int) -> None:
        self.layout.merge_short_segments(segments_max)

    @invariant()
    def sizes_agree(self) -> None:
        assert self.layout.size_bytes == len(self.content)

    def teardown(self) -> None:
        store_all(self.layout, bytes(self.content))
        manifest = self.layout.manifest()
        assert manifest.size_bytes == len(self.content)
        offset_bytes = 0
        for length_bytes, digest in manifest.chunks:
            assert digest == digest_of(bytes(self.content[offset_bytes : offset_bytes + length_bytes]))
            offset_bytes += length_bytes


LayoutAgainstBytes.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestLayoutAgainstBytes = LayoutAgainstBytes.TestCase


def test_whether_more_has_changed_than_a_limit() -> None:
    layout = Layout()
    layout.note_write(10 * CHUNK_BYTES_MAX, 5)
    assert layout.changed_bytes == 10 * CHUNK_BYTES_MAX + 5
    assert layout.has_changed_more_than(layout.changed_bytes - 1)
    assert not layout.has_changed_more_than(layout.changed_bytes)
