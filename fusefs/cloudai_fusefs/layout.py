"""Which chunks a staged file will consist of, and which of them have yet to be made.

A layout is the manifest-to-be of a file that is being written: consecutive segments, each either stored
(its digest is known and the master has the chunk) or changed. Pure state, no I/O.

A new segment ends at the next multiple of 4 MiB, so that a file written from front to back is cut the same
way whoever writes it. What has been published short (a growing log) stays a segment of its own until
`merge_short_segments`.

Of a sparse file most segments are whole 4 MiB cells of which one is like the next. Such a stretch of them takes as
much memory as one segment.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator
from itertools import accumulate, chain, compress
from typing import NamedTuple

from cloudai_model.chunks import Chunk, Manifest
from cloudai_model.errors import FileTooLarge
from cloudai_model.limits import CHUNK_BYTES_MAX, FILE_BYTES_MAX


class Segment(NamedTuple):
    """A changed segment as it was when it was asked for; `version` tells whether it has changed since."""

    start_bytes: int
    length_bytes: int
    version: int


class Layout:
    """The segments of one file. Starts as the file's manifest, all stored."""

    # Invariant: an entry of the lists below is a segment, or a stretch: two or more segments of one digest and one
    # version that are whole cells. Only a stretch is longer than 4 MiB, and neighbours that could be one stretch are.

    def __init__(self, manifest: Manifest | None = None) -> None:
        self._starts: list[int] = []
        self._digests: list[bytes | None] = []
        self._versions: list[int] = []
        self._changed: set[int] = set()  # starts of entries without a digest
        self._version = 0
        self._frozen_bytes = -1
        self._written_end_bytes = 0  # of what was written here, the end; truncating is not writing
        self.size_bytes = 0
        for length_bytes, digest in manifest.chunks if manifest is not None else ():
            self._append(self.size_bytes + length_bytes, digest)

    def note_write(self, offset_bytes: int, length_bytes: int) -> None:
        """The bytes [offset, offset + length) are new; a gap before them reads as zeros.

        Raises FileTooLarge past the limit of a file's size, and changes nothing.
        """
        end_bytes = offset_bytes + length_bytes
        self.check_size(end_bytes)
        if length_bytes == 0:
            return
        self._version += 1
        self._written_end_bytes = max(self._written_end_bytes, end_bytes)
        if offset_bytes < self.size_bytes:
            self._mark(offset_bytes, min(end_bytes, self.size_bytes))
        if end_bytes > self.size_bytes:
            self._extend(end_bytes)

    def note_truncate(self, size_bytes: int) -> None:
        """The file ends at `size_bytes`; what is added reads as zeros. Raises FileTooLarge as note_write."""
        self.check_size(size_bytes)
        self._version += 1
        if size_bytes > self.size_bytes:
            self._extend(size_bytes)
            return
        self._cut(_cell_end(size_bytes - 1))
        stop = bisect_left(self._starts, size_bytes)
        last_end_bytes = self._starts[stop] if stop < len(self._starts) else self.size_bytes
        self._changed.difference_update(self._starts[stop:])
        del self._starts[stop:], self._digests[stop:], self._versions[stop:]
        self.size_bytes = last_end_bytes
        if last_end_bytes > size_bytes:
            self._mark(size_bytes - 1, size_bytes)
        self.size_bytes = size_bytes
        self._written_end_bytes = min(self._written_end_bytes, size_bytes)

    def note_stored(self, segment: Segment, digest: bytes) -> bool:
        """The segment's bytes are stored under this digest. False: it has changed since, nothing done."""
        start_bytes = segment.start_bytes
        index = self._find(start_bytes)
        if index < 0 or self._segment(index, start_bytes) != segment:
            return False
        self._cut(start_bytes)
        self._cut(start_bytes + segment.length_bytes)
        index = self._find(start_bytes)
        self._digests[index] = digest
        self._changed.discard(start_bytes)
        self._join(index, index + 1)
        return True

    def note_lost(self, digests: Collection[bytes]) -> int:
        """The master lacks these chunks after all: they are to be made again. Returns how many segments."""
        count = 0
        for index, digest in enumerate(self._digests):
            if digest is not None and digest in digests:
                self._forget(index)
                count += len(self._segment_starts(index))
        self._join(0, len(self._starts))
        return count

    def changed_segments(self) -> Iterator[Segment]:
        """The segments that have yet to be made, in order of the file.

        The layout may change between two steps: what is no changed segment by then is passed over.
        """
        entries = [bisect_right(self._starts, start_bytes) - 1 for start_bytes in sorted(self._changed)]
        for start_bytes in chain.from_iterable([self._segment_starts(index) for index in entries]):
            index = self._find(start_bytes)
            if index >= 0 and self._digests[index] is None:
                yield self._segment(index, start_bytes)

    def full_changed_segments(self) -> Iterator[Segment]:
        """Those among them that end on a multiple of 4 MiB with bytes written after them: a writer going forward
        has left them behind, also where it has set the size of the file before (as safetensors does).
        """
        for segment in self.changed_segments():
            if segment.start_bytes >= self._written_end_bytes:
                return  # a size that was set before may be a quarter of a million segments beyond
            end_bytes = segment.start_bytes + segment.length_bytes
            if end_bytes % CHUNK_BYTES_MAX == 0 and end_bytes < self._written_end_bytes:
                yield segment

    @property
    def changed_bytes(self) -> int:
        """The length of all segments that have yet to be made."""
        return sum(self._changed_lengths())

    def has_changed_more_than(self, size_bytes: int) -> bool:
        """Whether the segments that have yet to be made are longer together."""
        # Not all of them are looked at: a file that was written here and there has up to a quarter of a million.
        return any(sum_bytes > size_bytes for sum_bytes in accumulate(self._changed_lengths()))

    @property
    def is_stored(self) -> bool:
        return not self._changed

    def manifest(self) -> Manifest:
        """The content as it stands. Only a stored layout has one."""
        assert self.is_stored, "a layout with changed segments has no manifest"
        return self.manifest_up_to(self.size_bytes)

    def freeze_tail(self) -> None:
        """What is appended from now on starts a segment of its own."""
        self._frozen_bytes = self.size_bytes

    def manifest_up_to(self, size_bytes: int) -> Manifest:
        """The content of the segments that end at or before `size_bytes`, which must all be stored."""
        chunks: list[Chunk] = []
        for index, (start_bytes, digest) in enumerate(zip(self._starts, self._digests, strict=True)):
            end_bytes = self._end_of(index)
            length_bytes = min(end_bytes - start_bytes, CHUNK_BYTES_MAX)
            count = (min(end_bytes, size_bytes) - start_bytes) // length_bytes
            if count > 0:
                assert digest is not None, "a changed segment has no digest"
                chunks += [Chunk(length_bytes, digest)] * count
            if end_bytes > size_bytes:
                break
        return Manifest(chunks)

    def merge_short_segments(self, segments_max: int) -> bool:
        """Makes one changed segment of all those that lie within one 4 MiB cell, where they are more than
        `segments_max`. Their bytes will be sent once more. Returns whether there were any.
        """
        has_merged = False
        starts, digests, versions = self._starts, self._digests, self._versions
        self._starts, self._digests, self._versions = [], [], []
        self._version += 1
        index = 0
        while index < len(starts):
            # (A stretch is the only one that begins in its first cell.)
            cell = starts[index] // CHUNK_BYTES_MAX
            stop = index
            while stop < len(starts) and starts[stop] // CHUNK_BYTES_MAX == cell:
                stop += 1
            end_bytes = starts[stop] if stop < len(starts) else self.size_bytes
            if stop - index > segments_max and end_bytes - starts[index] <= CHUNK_BYTES_MAX:
                has_merged = True
                self._changed.difference_update(starts[index + 1 : stop])
                self._changed.add(starts[index])
                self._starts.append(starts[index])
                self._digests.append(None)
                self._versions.append(self._version)
            else:
                self._starts += starts[index:stop]
                self._digests += digests[index:stop]
                self._versions += versions[index:stop]
            index = stop
        self._join(0, len(self._starts))
        return has_merged

    @staticmethod
    def check_size(size_bytes: int) -> None:
        """Raises FileTooLarge past the limit of a file's size."""
        if size_bytes > FILE_BYTES_MAX:
            raise FileTooLarge(size_bytes=size_bytes, limit_bytes=FILE_BYTES_MAX)

    def _end_of(self, index: int) -> int:
        return self._starts[index + 1] if index + 1 < len(self._starts) else self.size_bytes

    def _changed_lengths(self) -> Iterator[int]:
        for start_bytes in self._changed:
            yield self._end_of(bisect_right(self._starts, start_bytes) - 1) - start_bytes

    def _segment_starts(self, index: int) -> range:
        """Where the entry's segments begin."""
        return range(self._starts[index], self._end_of(index), CHUNK_BYTES_MAX)

    def _find(self, start_bytes: int) -> int:
        """The index of the entry of the segment that begins there; -1: none does."""
        index = bisect_right(self._starts, start_bytes) - 1
        return index if index >= 0 and start_bytes in self._segment_starts(index) else -1

    def _segment(self, index: int, start_bytes: int) -> Segment:
        length_bytes = min(self._end_of(index) - start_bytes, CHUNK_BYTES_MAX)
        return Segment(start_bytes, length_bytes, self._versions[index])

    def _forget(self, index: int) -> None:
        self._digests[index] = None
        self._versions[index] = self._version
        self._changed.add(self._starts[index])

    def _mark(self, start_bytes: int, end_bytes: int) -> None:
        """What lies in [start, end), which is not empty, is to be made again."""
        self._cut(_cell_start(start_bytes))
        self._cut(_cell_end(end_bytes - 1))
        first = bisect_right(self._starts, start_bytes) - 1
        stop = bisect_left(self._starts, end_bytes)
        for index in range(first, stop):
            self._forget(index)
        self._join(first, stop)

    def _append(self, end_bytes: int, digest: bytes | None) -> None:
        """One more entry, from the end of the file to this one, or the last one goes on."""
        # As _join would have it, which takes three seconds of 1 TiB.
        is_alike = self._digests[-1:] == [digest] and self._versions[-1] == self._version
        is_aligned = self.size_bytes % CHUNK_BYTES_MAX == 0 and end_bytes % CHUNK_BYTES_MAX == 0
        if is_alike and is_aligned and self._starts[-1] % CHUNK_BYTES_MAX == 0:
            self.size_bytes = end_bytes
            return
        self._starts.append(self.size_bytes)
        self._digests.append(digest)
        self._versions.append(self._version)
        if digest is None:
            self._changed.add(self.size_bytes)
        self.size_bytes = end_bytes

    def _cut(self, cell_start_bytes: int) -> None:
        """A stretch with a cell that begins there, and others before it, is two entries from now on."""
        index = bisect_right(self._starts, cell_start_bytes) - 1
        if index < 0 or cell_start_bytes not in self._segment_starts(index)[1:]:
            return
        self._starts.insert(index + 1, cell_start_bytes)
        self._digests.insert(index + 1, self._digests[index])
        self._versions.insert(index + 1, self._versions[index])
        if self._digests[index] is None:
            self._changed.add(cell_start_bytes)

    def _join(self, first: int, stop: int) -> None:
        """The entries [first, stop) have changed: neighbours that can be one stretch are, from now on."""
        first = max(first - 1, 0)
        stop = min(stop + 1, len(self._starts))
        begins = [True, *(not self._goes_on(index) for index in range(first + 1, stop))]
        if all(begins):
            return
        starts = self._starts[first:stop]
        self._starts[first:stop] = compress(starts, begins)
        self._digests[first:stop] = compress(self._digests[first:stop], begins)
        self._versions[first:stop] = compress(self._versions[first:stop], begins)
        self._changed.difference_update(set(starts).difference(self._starts[first : first + sum(begins)]))

    def _goes_on(self, index: int) -> bool:
        """Whether the entry and the one before it are one stretch."""
        return (
            self._digests[index - 1] == self._digests[index]
            and self._versions[index - 1] == self._versions[index]
            and self._is_of_whole_cells(index - 1)
            and self._is_of_whole_cells(index)
        )

    def _is_of_whole_cells(self, index: int) -> bool:
        return self._starts[index] % CHUNK_BYTES_MAX == 0 and self._end_of(index) % CHUNK_BYTES_MAX == 0

    def _extend(self, end_bytes: int) -> None:
        # The last segment grows up to its cell's end if it is to be made anyway; a stored one stays.
        if self._starts and self._digests[-1] is None and self.size_bytes != self._frozen_bytes:
            cell_end_bytes = _cell_end(self._starts[-1])
            if self.size_bytes < cell_end_bytes:
                self._forget(len(self._starts) - 1)
                self.size_bytes = min(end_bytes, cell_end_bytes)
                if self.size_bytes == cell_end_bytes:
                    self._join(len(self._starts) - 1, len(self._starts))
        # To the next cell, the whole cells as one stretch, and what is left.
        for stop_bytes in (min(_cell_end(self.size_bytes), end_bytes), _cell_start(end_bytes), end_bytes):
            if self.size_bytes < stop_bytes:
                self._append(stop_bytes, None)


def _cell_start(offset_bytes: int) -> int:
    """The last multiple of 4 MiB up to the byte at `offset_bytes`."""
    return offset_bytes // CHUNK_BYTES_MAX * CHUNK_BYTES_MAX


def _cell_end(start_bytes: int) -> int:
    """The next multiple of 4 MiB after the byte at `start_bytes`."""
    return (start_bytes // CHUNK_BYTES_MAX + 1) * CHUNK_BYTES_MAX
