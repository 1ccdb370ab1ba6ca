"""Which chunks are asked for ahead of a reader, for sequences written out by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudai_fusefs.read_ahead import ReadAhead
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
    assert asked == [[11], [12, 13]]


def test_kernel_requests_out_of_order_are_one_sequence() -> None:
    ahead = ReadAhead()
    offsets = [0, 256 * KIB, 128 * KIB, 512 * KIB, 384 * KIB]
    asked = [list(ahead.note_read(TWENTY_CHUNKS, offset, 128 * KIB)) for offset in offsets]
    assert asked == [[], [1], [], [], []]


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
