"""Which chunks a staged file will consist of, and which of them have yet to be made.

A layout is the manifest-to-be of a file that is being written: consecutive segments, each either stored
(its digest is known and the master has the chunk) or changed. Pure state, no I/O.

A new segment ends at the next multiple of 4 MiB, so that a file written from front to back is cut the same
way whoever writes it. What has been published short (a growing log) stays a segment of its own until
`merge_short_segments`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from itertools import accumulate
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

    def __init__(self, manifest: Manifest | None = None) -> None:
        chunks = manifest.chunks if manifest is not None else ()
        self._starts: list[int] = []
        self._digests: list[bytes | None] = []
        self._versions: list[int] = []
        self._changed: set[int] = set()  # starts of segments without a digest
        self._version = 0
        self._frozen_bytes = -1
        self._written_end_bytes = 0  # of what was written here, the end; truncating is not writing
        self.size_bytes = 0
        for length_bytes, digest in chunks:
            self._starts.append(self.size_bytes)
            self._digests.append(digest)
            self._versions.append(0)
            self.size_bytes += length_bytes

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
        last_end_bytes = self.size_bytes
        while self._starts and self._starts[-1] >= size_bytes:
            last_end_bytes = self._starts.pop()
            self._changed.discard(last_end_bytes)
            self._digests.pop()
            self._versions.pop()
        if self._starts and last_end_bytes > size_bytes:
            self._mark(size_bytes - 1, size_bytes)
        self.size_bytes = size_bytes
        self._written_end_bytes = min(self._written_end_bytes, size_bytes)

    def note_stored(self, segment: Segment, digest: bytes) -> bool:
        """The segment's bytes are stored under this digest. False: it has changed since, nothing done."""
        index = bisect_right(self._starts, segment.start_bytes) - 1
        if index < 0 or self._segment(index) != segment:
            return False
        self._digests[index] = digest
        self._changed.discard(segment.start_bytes)
        return True

    def note_lost(self, digests: Collection[bytes]) -> int:
        """The master lacks these chunks after all: they are to be made again. Returns how many segments."""
        count = 0
        for index, digest in enumerate(self._digests):
            if digest is not None and digest in digests:
                self._forget(index)
                count += 1
        return count

    def changed_segments(self) -> Iterator[Segment]:
        """The segments that have yet to be made, in order of the file.

        The layout may change between two steps: what is no changed segment by then is passed over.
        """
        for start_bytes in sorted(self._changed):
            if start_bytes in self._changed:
                yield self._segment(bisect_right(self._starts, start_bytes) - 1)

    def full_changed_segments(self) -> Iterator[Segment]:
        """Those among them that end on a multiple of 4 MiB with bytes written after them: a writer going forward
        has left them behind, also where it has set the size of the file before (as safetensors does).
        """
        for segment in self.changed_segments():
            end_bytes = segment.start_bytes + segment.length_bytes
            if end_bytes % CHUNK_BYTES_MAX == 0 and end_bytes < self._written_end_bytes:
                yield segment

    @property
    def changed_bytes(self) -> int:
        """The length of all segments that have yet to be made."""
        return sum(self._changed_lengths())

    def has_changed_more_than(self, size_bytes: int) -> bool:
        """Whether the segments that have yet to be made are longer together."""
        # Not all of them are looked at: `changed_bytes` of a sparse file goes through a quarter of a million.
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
        chunks = []
        for index, (start_bytes, digest) in enumerate(zip(self._starts, self._digests, strict=True)):
            end_bytes = self._end_of(index)
            if end_bytes > size_bytes:
                break
            assert digest is not None, "a changed segment has no digest"
            chunks.append(Chunk(end_bytes - start_bytes, digest))
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

    def _segment(self, index: int) -> Segment:
        start_bytes = self._starts[index]
        return Segment(start_bytes, self._end_of(index) - start_bytes, self._versions[index])

    def _forget(self, index: int) -> None:
        self._digests[index] = None
        self._versions[index] = self._version
        self._changed.add(self._starts[index])

    def _mark(self, start_bytes: int, end_bytes: int) -> None:
        index = bisect_right(self._starts, start_bytes) - 1
        while index < len(self._starts) and self._starts[index] < end_bytes:
            self._forget(index)
            index += 1

    def _extend(self, end_bytes: int) -> None:
        # The last segment grows up to its cell's end if it is to be made anyway; a stored one stays.
        if self._starts and self._digests[-1] is None and self.size_bytes != self._frozen_bytes:
            cell_end_bytes = _cell_end(self._starts[-1])
            if self.size_bytes < cell_end_bytes:
                self._forget(len(self._starts) - 1)
                self.size_bytes = min(end_bytes, cell_end_bytes)
        if self.size_bytes == end_bytes:
            return
        # At once: one write far behind the end makes 262,144 of them.
        starts = [self.size_bytes, *range(_cell_end(self.size_bytes), end_bytes, CHUNK_BYTES_MAX)]
        self._starts += starts
        self._digests += [None] * len(starts)
        self._versions += [self._version] * len(starts)
        self._changed.update(starts)
        self.size_bytes = end_bytes


def _cell_end(start_bytes: int) -> int:
    """The next multiple of 4 MiB after the byte at `start_bytes`."""
    return (start_bytes // CHUNK_BYTES_MAX + 1) * CHUNK_BYTES_MAX
