"""The layout in stretches against one that has an entry for each segment, and how much memory it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloudai_fusefs.layout import Layout, Segment
from cloudai_model.chunks import Chunk, Manifest
from cloudai_model.limits import CHUNK_BYTES_MAX, FILE_BYTES_MAX, KIB

CELLS_MAX = 9
CHUNK_COUNT = 10_000
ZEROS, OTHER = b"0" * 32, b"1" * 32


@dataclass
class Entry:
    start_bytes: int
    length_bytes: int
    digest: bytes | None
    version: int

    @property
    def end_bytes(self) -> int:
        return self.start_bytes + self.length_bytes

    @property
    def is_whole_cell(self) -> bool:
        return self.start_bytes % CHUNK_BYTES_MAX == 0 and self.length_bytes == CHUNK_BYTES_MAX

    @property
    def segment(self) -> Segment:
        return Segment(self.start_bytes, self.length_bytes, self.version)


class PlainLayout:
    """What a Layout promises, said as plainly as can be: an entry for each segment, each looked at by each call."""

    def __init__(self, manifest: Manifest) -> None:
        self.entries: list[Entry] = []
        for length_bytes, digest in manifest.chunks:
            self.entries.append(Entry(self.size_bytes, length_bytes, digest, 0))
        self.version = 0
        self.frozen_bytes = -1
        self.written_end_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self.entries[-1].end_bytes if self.entries else 0

    def note_write(self, offset_bytes: int, length_bytes: int) -> None:
        if length_bytes == 0:
            return
        end_bytes = offset_bytes + length_bytes
        self.version += 1
        self.written_end_bytes = max(self.written_end_bytes, end_bytes)
        for entry in self.entries:
            if entry.start_bytes < end_bytes and offset_bytes < entry.end_bytes:
                self.forget(entry)
        self.extend(end_bytes)

    def note_truncate(self, size_bytes: int) -> None:
        self.version += 1
        self.extend(size_bytes)
        self.entries = [entry for entry in self.entries if entry.start_bytes < size_bytes]
        if self.size_bytes > size_bytes:
            self.entries[-1].length_bytes = size_bytes - self.entries[-1].start_bytes
            self.forget(self.entries[-1])
        self.written_end_bytes = min(self.written_end_bytes, size_bytes)

    def extend(self, end_bytes: int) -> None:
        if self.entries and self.entries[-1].digest is None and self.size_bytes != self.frozen_bytes:
            last = self.entries[-1]
            grown_end_bytes = min(end_bytes, cell_end(last.start_bytes))
            if grown_end_bytes > last.end_bytes:
                last.length_bytes = grown_end_bytes - last.start_bytes
                self.forget(last)
        while self.size_bytes < end_bytes:
            start_bytes = self.size_bytes
            stop_bytes = min(end_bytes, cell_end(start_bytes))
            self.entries.append(Entry(start_bytes, stop_bytes - start_bytes, None, self.version))

    @property
    def stretch_starts(self) -> list[int]:
        """Where a new entry begins when equal whole cells beside each other are one."""
        starts = []
        before = Entry(0, 0, None, -1)
        for entry in self.entries:
            is_alike = (entry.digest, entry.version) == (before.digest, before.version)
            if not (is_alike and entry.is_whole_cell and before.is_whole_cell):
                starts.append(entry.start_bytes)
            before = entry
        return starts

    def forget(self, entry: Entry) -> None:
        entry.digest = None
        entry.version = self.version

    def note_stored(self, segment: Segment, digest: bytes) -> bool:
        for entry in self.entries:
            if entry.segment == segment:
                entry.digest = digest
                return True
        return False

    def note_lost(self, digests: set[bytes]) -> int:
        lost = [entry for entry in self.entries if entry.digest in digests]
        for entry in lost:
            self.forget(entry)
        return len(lost)

    def changed_segments(self) -> Iterator[Segment]:
        for start_bytes in [entry.start_bytes for entry in self.entries if entry.digest is None]:
            for entry in list(self.entries):
                if entry.start_bytes == start_bytes and entry.digest is None:
                    yield entry.segment

    def full_changed_segments(self) -> Iterator[Segment]:
        for segment in self.changed_segments():
            end_bytes = segment.start_bytes + segment.length_bytes
            if end_bytes % CHUNK_BYTES_MAX == 0 and end_bytes < self.written_end_bytes:
                yield segment

    @property
    def changed_bytes(self) -> int:
        return sum(entry.length_bytes for entry in self.entries if entry.digest is None)

    def freeze_tail(self) -> None:
        self.frozen_bytes = self.size_bytes

    def manifest_up_to(self, size_bytes: int) -> list[Chunk] | None:
        """None: something has yet to be stored."""
        chunks = []
        for entry in self.entries:
            if entry.end_bytes > size_bytes:
                break
            if entry.digest is None:
                return None
            chunks.append(Chunk(entry.length_bytes, entry.digest))
        return chunks

    def merge_short_segments(self, segments_max: int) -> bool:
        self.version += 1
        merged: list[Entry] = []
        has_merged = False
        while self.entries:
            cell = self.entries[0].start_bytes // CHUNK_BYTES_MAX
            inside = [entry for entry in self.entries if entry.start_bytes // CHUNK_BYTES_MAX == cell]
            del self.entries[: len(inside)]
            length_bytes = inside[-1].end_bytes - inside[0].start_bytes
            if len(inside) > segments_max and length_bytes <= CHUNK_BYTES_MAX:
                inside = [Entry(inside[0].start_bytes, length_bytes, None, self.version)]
                has_merged = True
            merged += inside
        self.entries = merged
        return has_merged


def cell_end(start_bytes: int) -> int:
    return (start_bytes // CHUNK_BYTES_MAX + 1) * CHUNK_BYTES_MAX


def outcome_of(layout: Layout, size_bytes: int) -> list[Chunk] | None:
    try:
        return list(layout.manifest_up_to(size_bytes).chunks)
    except AssertionError:
        return None


places = st.builds(
    lambda cell, beside: max(0, cell * CHUNK_BYTES_MAX + beside),
    st.integers(0, CELLS_MAX),
    st.sampled_from((0, 0, 0, -1, 1, 100, CHUNK_BYTES_MAX // 2)),
)
lengths = st.sampled_from((CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, 1, CHUNK_BYTES_MAX // 2, 77))
digests = st.sampled_from((ZEROS, ZEROS, ZEROS, OTHER))


class LayoutAgainstSegments(RuleBasedStateMachine):
    """Anything that may happen to a layout, to one in stretches and one of single segments: both say the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layout = Layout()
        self.plain = PlainLayout(Manifest())
        self.seen: list[Segment] = []  # what was asked for once, and may have changed since
        self.going: list[tuple[Iterator[Segment], Iterator[Segment]]] = []

    @precondition(lambda self: self.plain.version == 0)
    @rule(chunks=st.lists(st.builds(Chunk, lengths, digests), max_size=CELLS_MAX))
    def begin_with(self, chunks: list[Chunk]) -> None:
        self.layout = Layout(Manifest(chunks))
        self.plain = PlainLayout(Manifest(chunks))
        self.going.clear()

    @rule(offset=places, end=places)
    def write(self, offset: int, end: int) -> None:
        self.layout.note_write(offset, max(0, end - offset))
        self.plain.note_write(offset, max(0, end - offset))

    @rule(offset=places, length=st.sampled_from((1, 100, 1024 * KIB)))
    def write_little(self, offset: int, length: int) -> None:
        self.layout.note_write(offset, length)
        self.plain.note_write(offset, length)

    @rule(size=places)
    def truncate(self, size: int) -> None:
        self.layout.note_truncate(size)
        self.plain.note_truncate(size)

    @rule(first=st.integers(0, CELLS_MAX), count=st.integers(1, CELLS_MAX), digest=digests)
    def store_in_order(self, first: int, count: int, digest: bytes) -> None:
        for segment in list(self.layout.changed_segments())[first : first + count]:
            assert self.layout.note_stored(segment, digest)
            assert self.plain.note_stored(segment, digest)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), digest=digests)
    def store_what_may_have_changed(self, data: st.DataObject, digest: bytes) -> None:
        segment = data.draw(st.sampled_from(self.seen))
        assert self.layout.note_stored(segment, digest) == self.plain.note_stored(segment, digest)

    @rule(start=places, length=lengths, version=st.integers(0, 5))
    def store_what_may_never_have_been(self, start: int, length: int, version: int) -> None:
        segment = Segment(start, length, version)
        assert self.layout.note_stored(segment, OTHER) == self.plain.note_stored(segment, OTHER)

    @rule(lost=st.sets(digests))
    def lose(self, lost: set[bytes]) -> None:
        assert self.layout.note_lost(lost) == self.plain.note_lost(lost)

    @rule(segments_max=st.integers(1, 3))
    def merge(self, segments_max: int) -> None:
        assert self.layout.merge_short_segments(segments_max) == self.plain.merge_short_segments(segments_max)

    @rule()
    def freeze(self) -> None:
        self.layout.freeze_tail()
        self.plain.freeze_tail()

    @rule(is_full=st.booleans())
    def begin_to_iterate(self, is_full: bool) -> None:
        if is_full:
            pair = self.layout.full_changed_segments(), self.plain.full_changed_segments()
        else:
            pair = self.layout.changed_segments(), self.plain.changed_segments()
        assert next(pair[0], None) == next(pair[1], None)
        self.going.append(pair)

    @rule()
    def iterate(self) -> None:
        for segments, plain_segments in self.going:
            assert next(segments, None) == next(plain_segments, None)

    @rule(size=places)
    def take_manifest_of_a_part(self, size: int) -> None:
        assert outcome_of(self.layout, size) == self.plain.manifest_up_to(size)

    @rule(digest=digests)
    def store_all(self, digest: bytes) -> None:
        self.store_in_order(0, 1000, digest)

    @invariant()
    def both_say_the_same(self) -> None:
        segments = list(self.layout.changed_segments())
        self.seen = (self.seen + segments)[-100:]
        assert segments == list(self.plain.changed_segments())
        assert list(self.layout.full_changed_segments()) == list(self.plain.full_changed_segments())
        size_bytes, changed_bytes = self.plain.size_bytes, self.plain.changed_bytes
        assert (self.layout.size_bytes, self.layout.changed_bytes) == (size_bytes, changed_bytes)
        assert self.layout.has_changed_more_than(changed_bytes - 1) == bool(segments)
        assert not self.layout.has_changed_more_than(changed_bytes)
        assert self.layout.is_stored == (not segments)
        assert outcome_of(self.layout, size_bytes) == self.plain.manifest_up_to(size_bytes)
        assert self.layout._starts == self.plain.stretch_starts


LayoutAgainstSegments.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestLayoutAgainstSegments = LayoutAgainstSegments.TestCase


def bytes_of(layout: Layout) -> int:
    return sum(sys.getsizeof(held) for held in vars(layout).values())


@pytest.mark.parametrize("is_truncated", [False, True])
def test_gap_of_a_tebibyte_takes_no_more_than_a_few_segments(is_truncated: bool) -> None:
    layout = Layout()
    if is_truncated:
        layout.note_truncate(FILE_BYTES_MAX)
    layout.note_write(FILE_BYTES_MAX - 1, 1)

    assert layout.changed_bytes == FILE_BYTES_MAX
    assert bytes_of(layout) < 4 * KIB


def test_gap_that_is_sent_a_few_segments_at_once_takes_no_more_than_they() -> None:
    layout = Layout()
    layout.note_write(CHUNK_COUNT * CHUNK_BYTES_MAX - 1, 1)
    segments = layout.changed_segments()

    while few := list(islice(segments, 16)):
        for segment in few[::-1]:
            assert layout.note_stored(segment, ZEROS)
        assert bytes_of(layout) < 4 * KIB

    assert layout.manifest() == Manifest([Chunk(CHUNK_BYTES_MAX, ZEROS)] * CHUNK_COUNT)


def test_layout_of_a_sparse_files_manifest_takes_no_more_than_a_few_segments() -> None:
    chunk = Chunk(CHUNK_BYTES_MAX, ZEROS)
    layout = Layout(Manifest([chunk] * CHUNK_COUNT))
    assert bytes_of(layout) < 4 * KIB

    layout.note_write(20 * CHUNK_BYTES_MAX + 7, 1)

    assert list(layout.changed_segments()) == [Segment(20 * CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, 1)]
    assert bytes_of(layout) < 4 * KIB


def test_cells_beside_each_other_that_are_merged_are_one_stretch() -> None:
    layout = Layout(Manifest([Chunk(CHUNK_BYTES_MAX // 2, ZEROS)] * 1000))

    assert layout.merge_short_segments(1)

    assert len(list(layout.changed_segments())) == 500
    assert layout._starts == [0]
