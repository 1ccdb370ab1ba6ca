"""Which chunks are asked for ahead of a reader, for sequences written out by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudai_fusefs.read_ahead import WINDOW_CHUNKS_MAX, ReadAhead
from cloudai_model.chunks import Chunk, Manifest
from cloudai_model.limits import CHUNK_BYTES_MAX, KIB, MIB

DIGEST = bytes(32)
TWENTY_CHUNKS = Manifest([Chunk(CHUNK_BYTES_MAX, DIGEST)] * 20)


def read_in_steps(ahead: ReadAhead, start_bytes: int, end_bytes: int, step_bytes: int) -> list[list[int]]:
    """What was asked for, without the reads that asked for nothing."""
    asked = [
        list(ahead.note_read(TWENTY_CHUNKS, offset, step_bytes))
        for offset in range(start_bytes, end_bytes, step_bytes)
    ]
    return [indices for indices in asked if indices]


def test_one_read_asks_for_nothing() -> None:
    assert not ReadAhead().note_read(TWENTY_CHUNKS, 0, 128 * KIB)


def test_second_read_in_a_row_asks_for_the_next_chunk() -> None:
    ahead = ReadAhead()
    ahead.note_read(TWENTY_CHUNKS, 0, 128 * KIB)
    assert ahead.note_read(TWENTY_CHUNKS, 128 * KIB, 128 * KIB) == range(1, 2)


def test_sequential_window_doubles_with_each_chunk_reached_up_to_four() -> None:
    asked = read_in_steps(ReadAhead(), 0, 6 * CHUNK_BYTES_MAX, MIB)
    assert asked == [[1], [2, 3], [4, 5, 6], [7], [8], [9]]


def test_window_ends_with_the_file() -> None:
    asked = read_in_steps(ReadAhead(), 17 * CHUNK_BYTES_MAX, 20 * CHUNK_BYTES_MAX, MIB)
    assert asked == [[18], [19]]


def test_random_reads_ask_for_nothing() -> None:
    ahead = ReadAhead()
    places = [50 * MIB, 3 * MIB, 70 * MIB, 20 * MIB, 9 * MIB]
    assert [list(ahead.note_read(TWENTY_CHUNKS, place, 4 * KIB)) for place in places] == [[], [], [], [], []]


def test_seek_begins_a_new_sequence_with_a_small_window() -> None:
    ahead = ReadAhead()
    read_in_steps(ahead, 0, 4 * CHUNK_BYTES_MAX, MIB)
    asked = read_in_steps(ahead, 10 * CHUNK_BYTES_MAX, 12 * CHUNK_BYTES_MAX, MIB)
    assert asked == [[11], [12]]


def moved_chunks(manifest: Manifest, parts: list[tuple[int, int]]) -> int:
    """How many chunks are read or asked for where these parts of the file, from byte to byte, are read in turn."""
    ahead = ReadAhead()
    moved: set[int] = set()
    for start_bytes, end_bytes in parts:
        for offset in range(start_bytes, end_bytes, MIB):
            moved.update(part.chunk_index for part in manifest.cover(offset, min(MIB, end_bytes - offset)))
            moved.update(ahead.note_read(manifest, offset, MIB))
    return len(moved)


def test_tensors_of_a_file_bring_little_beside_them() -> None:
    one_gib = Manifest([Chunk(CHUNK_BYTES_MAX, DIGEST)] * 256)

    def three_of(tensor_bytes: int) -> list[tuple[int, int]]:
        return [(number * tensor_bytes, (number + 1) * tensor_bytes) for number in (3, 9, 15)]

    # A whole chunk at either end, which holds some of the tensor, and ahead one for eight that were read.
    assert moved_chunks(one_gib, three_of(6 * MIB)) == 3 * 3
    assert moved_chunks(one_gib, three_of(20 * MIB)) == 3 * (5 + 1)
    assert moved_chunks(one_gib, three_of(51 * MIB)) <= 3 * (14 + 1)


def test_who_reads_on_from_within_a_file_has_the_full_window_in_the_end() -> None:
    ahead = ReadAhead()
    one_gib = Manifest([Chunk(CHUNK_BYTES_MAX, DIGEST)] * 256)
    most = 0
    for offset in range(40 * MIB, 240 * MIB, MIB):
        asked = ahead.note_read(one_gib, offset, MIB)
        if asked:
            most = max(most, asked.stop - 1 - offset // CHUNK_BYTES_MAX)
    assert most == WINDOW_CHUNKS_MAX


def test_beginning_of_a_file_that_arrives_late_is_its_beginning() -> None:
    ahead = ReadAhead()
    assert not ahead.note_read(TWENTY_CHUNKS, 512 * KIB, 512 * KIB)
    assert ahead.note_read(TWENTY_CHUNKS, 0, 512 * KIB) == range(1, 2)
    assert read_in_steps(ahead, MIB, 3 * CHUNK_BYTES_MAX, MIB) == [[2, 3], [4, 5, 6]]


def test_kernel_requests_out_of_order_are_one_sequence() -> None:
    ahead = ReadAhead()
    offsets = [0, 256 * KIB, 128 * KIB, 512 * KIB, 384 * KIB]
    asked = [list(ahead.note_read(TWENTY_CHUNKS, offset, 128 * KIB)) for offset in offsets]
    assert asked == [[], [1], [], [], []]


def test_short_reads_that_jump_forward_are_random() -> None:
    ahead = ReadAhead()
    for number in range(20):
        assert not ahead.note_read(TWENTY_CHUNKS, number * 500 * KIB, 100)
        assert ahead.is_random


def test_short_reads_that_leave_a_little_out_are_a_sequence() -> None:
    ahead = ReadAhead()
    ahead.note_read(TWENTY_CHUNKS, 0, 4 * KIB)
    assert ahead.note_read(TWENTY_CHUNKS, 32 * KIB, 4 * KIB) == range(1, 2)


def test_short_end_of_what_the_kernel_asks_for_may_arrive_before_its_middle() -> None:
    ahead = ReadAhead()
    requests = [(0, MIB), (MIB + 512 * KIB, 12 * KIB), (MIB, 512 * KIB), (MIB + 524 * KIB, MIB)]
    asked = [list(ahead.note_read(TWENTY_CHUNKS, offset, length)) for offset, length in requests]
    assert asked == [[], [1], [], []]


def test_late_request_for_a_chunk_that_was_left_widens_no_window() -> None:
    ahead = ReadAhead()
    read_in_steps(ahead, 0, CHUNK_BYTES_MAX + 512 * KIB, 512 * KIB)
    places = [CHUNK_BYTES_MAX - 128 * KIB, CHUNK_BYTES_MAX + 512 * KIB]
    assert [list(ahead.note_read(TWENTY_CHUNKS, place, 128 * KIB)) for place in places] == [[], []]


def test_first_read_is_random_and_the_next_in_a_row_is_not() -> None:
    ahead = ReadAhead()
    found = [ahead.is_random]
    for place in (5 * MIB, 5 * MIB + 4 * KIB, 50 * MIB):
        ahead.note_read(TWENTY_CHUNKS, place, 4 * KIB)
        found.append(ahead.is_random)
    assert found == [True, True, False, True]


def test_read_of_nothing_says_nothing_of_the_pattern() -> None:
    ahead = ReadAhead()
    read_in_steps(ahead, 0, 3 * MIB, MIB)
    ahead.note_read(TWENTY_CHUNKS, 80 * MIB, 4 * KIB)
    ahead.note_read(TWENTY_CHUNKS, MIB, 0)
    assert not ahead.is_random


def test_sequential_reader_has_passed_the_chunk_before_the_last() -> None:
    ahead = ReadAhead()
    passed = []
    for offset in range(0, 4 * CHUNK_BYTES_MAX, CHUNK_BYTES_MAX // 2):
        ahead.note_read(TWENTY_CHUNKS, offset, CHUNK_BYTES_MAX // 2)
        passed.append(ahead.passed_chunk)
    assert passed == [None, None, None, None, 0, 0, 1, 1]


def test_random_reader_has_passed_nothing() -> None:
    ahead = ReadAhead()
    for place in (50 * MIB, 3 * MIB, 70 * MIB):
        ahead.note_read(TWENTY_CHUNKS, place, 4 * KIB)
        assert ahead.passed_chunk is None


def test_log_whose_short_chunks_were_merged_is_read_on() -> None:
    # What `tail -f` does: the same handle, another generation.
    growing = Manifest([Chunk(100 * KIB, DIGEST)] * 100)
    merged = Manifest([Chunk(CHUNK_BYTES_MAX, DIGEST)] * 2 + [Chunk(2000 * KIB, DIGEST)])
    ahead = ReadAhead()
    for offset in range(0, 100 * 100 * KIB, 100 * KIB):
        ahead.note_read(growing, offset, 100 * KIB)
    assert ahead.passed_chunk == 97

    assert list(ahead.note_read(merged, 100 * 100 * KIB, 4 * KIB)) == []
    assert ahead.passed_chunk == 0


def test_file_that_grew_again_after_a_merge_is_asked_for_ahead() -> None:
    growing = Manifest([Chunk(100 * KIB, DIGEST)] * 20)
    ahead = ReadAhead()
    for offset in range(0, 20 * 100 * KIB, 100 * KIB):
        ahead.note_read(growing, offset, 100 * KIB)
    assert ahead.note_read(TWENTY_CHUNKS, 2000 * KIB, 100 * KIB) == range(1, 5)


def test_window_of_nothing_never_asks() -> None:
    assert read_in_steps(ReadAhead(window_chunks_max=0), 0, 20 * CHUNK_BYTES_MAX, MIB) == []


def test_read_past_end_asks_for_nothing() -> None:
    assert not ReadAhead().note_read(Manifest(), 0, 4 * KIB)
    assert not ReadAhead().note_read(TWENTY_CHUNKS, 100 * MIB, 4 * KIB)


@given(
    reads=st.lists(
        st.tuples(st.integers(min_value=0, max_value=90 * MIB), st.integers(min_value=0, max_value=8 * MIB))
    )
)
def test_what_is_asked_for_lies_ahead_and_within_the_file(reads: list[tuple[int, int]]) -> None:
    ahead = ReadAhead()
    for offset, length in reads:
        asked = ahead.note_read(TWENTY_CHUNKS, offset, length)
        assert len(asked) <= 4
        assert all(offset // CHUNK_BYTES_MAX < index < 20 for index in asked)


MANIFESTS = st.lists(st.integers(1, CHUNK_BYTES_MAX), max_size=30).map(
    lambda lengths: Manifest(Chunk(length, DIGEST) for length in lengths)
)


@given(
    generations=st.lists(
        st.tuples(
            MANIFESTS,
            st.lists(
                st.tuples(st.sampled_from(["on", "back", "end", "any"]), st.integers(1, MIB)), max_size=12
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_becomes_of_the_file_only_its_chunks_are_named(
    generations: list[tuple[Manifest, list[tuple[str, int]]]],
) -> None:
    ahead = ReadAhead()
    end = 0
    for manifest, reads in generations:
        for what, length in reads:
            start = {"on": end, "back": max(0, end - length), "end": max(0, manifest.size_bytes - length)}
            offset = start.get(what, length * 37 % (manifest.size_bytes + 1))
            asked = ahead.note_read(manifest, offset, length)
            passed = ahead.passed_chunk
            assert passed is None or 0 <= passed < len(manifest.chunks)
            if offset >= manifest.size_bytes:
                assert not asked
                continue
            end = min(offset + length, manifest.size_bytes)
            last_chunk = next(manifest.cover(end - 1, 1)).chunk_index
            assert all(last_chunk < index < len(manifest.chunks) for index in asked)
            assert not (asked and ahead.is_random)


def test_window_is_shared_with_other_streams_down_to_a_chunk() -> None:
    manifest = Manifest(Chunk(CHUNK_BYTES_MAX, b"%032d" % index) for index in range(40))

    def asked_ahead(stream_count: int) -> int:
        """How many chunks beyond the one being read have been asked for, at most."""
        ahead, most, asked = ReadAhead(), 0, 0
        for place in range(0, 20 * CHUNK_BYTES_MAX, MIB):
            for index in ahead.note_read(manifest, place, MIB, stream_count=stream_count):
                asked = max(asked, index)
            most = max(most, asked - place // CHUNK_BYTES_MAX)
        return most

    assert [asked_ahead(count) for count in (1, 2, 4, 8, 100)] == [4, 2, 1, 1, 1]
