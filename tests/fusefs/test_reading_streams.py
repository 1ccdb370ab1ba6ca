from __future__ import annotations

from cloudai_fusefs.reading_streams import REST_SECONDS, ReadingStreams


def test_streams_that_read_lately_are_counted() -> None:
    streams = ReadingStreams()
    assert [streams.note_read(name, 0.0) for name in ("a", "b", "a", "c")] == [1, 2, 2, 3]


def test_stream_that_rests_counts_no_more_until_it_reads_again() -> None:
    streams = ReadingStreams()
    streams.note_read("a", 0.0)
    streams.note_read("b", 0.5)
    assert streams.note_read("b", REST_SECONDS) == 1
    assert streams.note_read("a", REST_SECONDS) == 2


def test_closed_stream_does_not_count() -> None:
    streams = ReadingStreams()
    streams.note_read("a", 0.0)
    streams.forget("a")
    streams.forget("a")
    assert streams.note_read("b", 0.0) == 1
