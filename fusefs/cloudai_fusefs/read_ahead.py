"""Which chunks a handle's reader is going to want: a pure state machine, no I/O and no clock.

Sequential reading is rewarded with a window that doubles with every chunk it reaches, so that what is
asked for in vain stays in proportion to what was used. Anything else asks for nothing.
"""

from __future__ import annotations

from typing import Final

from cloudai_model.chunks import Manifest

WINDOW_CHUNKS_MAX: Final = 4
"""16 MiB ahead: with four messages of 1-8 MiB in flight gRPC moved 0.5-0.85 GB/s."""

REORDER_BYTES_MAX: Final = 1024 * 1024
"""The kernel sends its own read-ahead as several requests at once, and they arrive in any order. A read
this near to the end of the last one goes on with it."""


class ReadAhead:
    """The reading of one open file."""

    __slots__ = ("_asked_chunks", "_chunk_index", "_end_bytes", "_window_chunks", "_window_chunks_max")

    def __init__(self, window_chunks_max: int = WINDOW_CHUNKS_MAX) -> None:
        """window_chunks_max 0: never asks for anything."""
        self._window_chunks_max = window_chunks_max
        self._end_bytes: int | None = None  # of the reads that follow each other; None before the first
        self._chunk_index = 0  # where that end is
        self._window_chunks = 0
        self._asked_chunks = 0  # all below this index have been asked for or read

    def note_read(self, manifest: Manifest, offset_bytes: int, length_bytes: int) -> range:
        """The indices of the chunks to prefetch now, in the order of need, each named once per sequence.

        The manifest is the one that the read is answered from; it may grow between reads.
        """
        last_bytes = min(offset_bytes + length_bytes, manifest.size_bytes) - 1
        if last_bytes < offset_bytes:
            return range(0)
        # What holds the last byte read: the reader goes on from there.
        chunk_index = next(manifest.cover(last_bytes, 1)).chunk_index
        end_bytes = self._end_bytes
        if end_bytes is None or abs(offset_bytes - end_bytes) > REORDER_BYTES_MAX:
            self._end_bytes = last_bytes + 1
            self._chunk_index = chunk_index
            self._window_chunks = 0
            self._asked_chunks = chunk_index + 1
            return range(0)
        self._end_bytes = max(end_bytes, last_bytes + 1)
        if self._window_chunks == 0:
            self._window_chunks = min(1, self._window_chunks_max)
        elif chunk_index > self._chunk_index:
            self._window_chunks = min(self._window_chunks * 2, self._window_chunks_max)
        self._chunk_index = max(self._chunk_index, chunk_index)
        return self._ask(len(manifest.chunks))

    def _ask(self, chunk_count: int) -> range:
        first = max(self._asked_chunks, self._chunk_index + 1)
        after = min(self._chunk_index + 1 + self._window_chunks, chunk_count)
        if first >= after:
            return range(0)
        self._asked_chunks = after
        return range(first, after)
