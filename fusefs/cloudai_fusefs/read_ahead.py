"""Which chunks a handle's reader is going to want: a pure state machine, no I/O and no clock.

Sequential reading is rewarded with a window that doubles with every chunk it reaches, so that what is
asked for in vain stays in proportion to what was used. Who began within the file, as who maps it and reads some of
its tensors does, is likely to end within it too, and has less ahead. Anything else asks for nothing, and is random.
"""

from __future__ import annotations

from typing import Final

from cloudai_model.chunks import Manifest
from cloudai_model.limits import CHUNK_BYTES_MAX

WINDOW_CHUNKS_MAX: Final = 4
"""16 MiB ahead: with four messages of 1-8 MiB in flight gRPC moved 0.5-0.85 GB/s."""

PART_AHEAD_SHARE: Final = 8
"""Of what has been read from a place within the file on, one part in so many is brought ahead, and a chunk at least:
the end may come at any time. Three tensors of 6 MiB in a mapped file moved 48 MiB instead of 70, of 20 MiB 116
instead of 132, of 50 MiB 200 instead of 224, with the 4 MiB that the kernel asks for around each fault in all."""

REORDER_BYTES_MAX: Final = 1024 * 1024
REORDER_READS_MAX: Final = 8
"""The kernel sends its own read-ahead as several requests at once, 128 KiB to 1 MiB each, and they arrive in any
order. A read this near to the end of the last one goes on with it; of short reads, so many of them: who reads 4 KiB
here and 4 KiB half a MiB on wants nothing in between."""


class ReadAhead:
    """The reading of one open file."""

    __slots__ = (
        "_asked_bytes",
        "_chunk_index",
        "_end_bytes",
        "_longest_bytes",
        "_start_bytes",
        "_window_chunks",
        "_window_chunks_max",
        "passed_chunk",
    )

    def __init__(self, window_chunks_max: int = WINDOW_CHUNKS_MAX) -> None:
        """window_chunks_max 0: never asks for anything."""
        self.passed_chunk: int | None = None
        """The last chunk, of the manifest last read by, that a sequential reader has certainly left behind it."""
        self._window_chunks_max = window_chunks_max
        self._end_bytes: int | None = None  # of the reads that follow each other; None before the first
        self._start_bytes = 0  # of the same
        self._longest_bytes = 0  # of those reads; the last one of the kernel's requests may be short
        self._chunk_index = 0  # where that end is
        self._window_chunks = 0
        self._asked_bytes = 0  # all chunks that begin before have been asked for or read

    @property
    def is_random(self) -> bool:
        """Whether the last read did not go on from the one before: it may be the only one around there."""
        return self._window_chunks == 0

    def note_read(
        self, manifest: Manifest, offset_bytes: int, length_bytes: int, *, stream_count: int = 1
    ) -> range:
        """The indices of the chunks to prefetch now, in the order of need, each named once per sequence.

        The window is shared with the other streams that are being read, down to a chunk for each.
        The manifest is the one that the read is answered from; it may be another with each read: a file grows,
        and when it is finished its short chunks are merged.
        """
        self.passed_chunk = None
        last_bytes = min(offset_bytes + length_bytes, manifest.size_bytes) - 1
        if last_bytes < offset_bytes:
            return range(0)
        end_bytes = self._end_bytes
        longest_bytes = max(self._longest_bytes, length_bytes)
        near_bytes = min(REORDER_BYTES_MAX, REORDER_READS_MAX * longest_bytes)
        if end_bytes is None or abs(offset_bytes - end_bytes) > near_bytes:
            self._longest_bytes = length_bytes
            self._start_bytes = offset_bytes
            self._end_bytes = last_bytes + 1
            self._chunk_index = _chunk_at(manifest, last_bytes)
            self._window_chunks = 0
            self._asked_bytes = _end_of(manifest, self._chunk_index)
            return range(0)
        self._longest_bytes = longest_bytes
        self._start_bytes = min(self._start_bytes, offset_bytes)
        self._end_bytes = max(end_bytes, last_bytes + 1)
        # What holds the last byte read: the reader goes on from there.
        chunk_index = _chunk_at(manifest, min(self._end_bytes, manifest.size_bytes) - 1)
        if self._window_chunks == 0:
            self._window_chunks = min(1, self._window_chunks_max)
        elif chunk_index > self._chunk_index:
            self._window_chunks = min(self._window_chunks * 2, self._window_most(self._end_bytes))
        self._chunk_index = chunk_index
        if chunk_index > 1 and self._window_chunks:
            self.passed_chunk = chunk_index - 2
        return self._ask(manifest, stream_count)

    def _window_most(self, end_bytes: int) -> int:
        """How many chunks may be ahead of who has read up to there."""
        if self._start_bytes == 0:
            return self._window_chunks_max
        earned_chunks = (end_bytes - self._start_bytes) // (PART_AHEAD_SHARE * CHUNK_BYTES_MAX)
        return min(max(1, earned_chunks), self._window_chunks_max)

    def note_declined(self, manifest: Manifest, index: int) -> None:
        """The chunk was not asked for after all, nor what follows it: to be named again."""
        self._asked_bytes = min(self._asked_bytes, manifest.start_of(index))

    def _ask(self, manifest: Manifest, stream_count: int) -> range:
        first = self._chunk_index + 1
        share_chunks = max(1, self._window_chunks_max // stream_count)
        after = min(first + min(self._window_chunks, share_chunks), len(manifest.chunks))
        while first < after and manifest.start_of(first) < self._asked_bytes:
            first += 1
        if first >= after:
            return range(0)
        self._asked_bytes = _end_of(manifest, after - 1)
        return range(first, after)


def _chunk_at(manifest: Manifest, offset_bytes: int) -> int:
    """The index of the chunk that holds this byte of the file."""
    return next(manifest.cover(offset_bytes, 1)).chunk_index


def _end_of(manifest: Manifest, index: int) -> int:
    return manifest.start_of(index) + manifest.chunks[index].length_bytes
