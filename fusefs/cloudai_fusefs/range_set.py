"""Which bytes of a file are there: a set of disjoint half-open ranges [start, end).

Pure, no I/O. Sorted lists and bisection: an add at the end, the way a file is usually written, is O(1)
amortised; any other change is O(log n) and a move of the list's tail.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class RangeSet:
    """Byte ranges, kept merged: ranges that overlap or touch are one."""

    __slots__ = ("_ends", "_size_bytes", "_starts")

    def __init__(self) -> None:
        # Invariant: starts[0] < ends[0] < starts[1] < ends[1] < ...; size_bytes is the sum of the lengths.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """How many bytes are in the set."""
        return self._size_bytes

    def add(self, start_bytes: int, end_bytes: int) -> None:
        """Puts [start, end) into the set; an empty range changes nothing.

        Raises ValueError for a negative start or an end before it, here and in the other methods.
        """
        _check_range(start_bytes, end_bytes)
        if start_bytes == end_bytes:
            return
        if self._ends and self._starts[-1] <= start_bytes <= self._ends[-1]:  # a sequential write
            grown_bytes = max(0, end_bytes - self._ends[-1])
            self._ends[-1] += grown_bytes
            self._size_bytes += grown_bytes
            return
        # What it overlaps or touches: all that end at or after its start and start at or before its end.
        first = bisect_left(self._ends, start_bytes)
        after = bisect_right(self._starts, end_bytes)
        if first < after:
            start_bytes = min(start_bytes, self._starts[first])
            end_bytes = max(end_bytes, self._ends[after - 1])
        self._size_bytes += end_bytes - start_bytes - self._length_of(first, after)
        self._starts[first:after] = [start_bytes]
        self._ends[first:after] = [end_bytes]

    def remove_from(self, start_bytes: int) -> None:
        """Takes every byte at or after start out of the set, as a truncation does."""
        _check_range(start_bytes, start_bytes)
        first = bisect_right(self._ends, start_bytes)
        if first == len(self._ends):
            return
        self._size_bytes -= self._length_of(first, len(self._ends))
        kept_start_bytes = self._starts[first]
        del self._starts[first:], self._ends[first:]
        if kept_start_bytes < start_bytes:
            self._starts.append(kept_start_bytes)
            self._ends.append(start_bytes)
            self._size_bytes += start_bytes - kept_start_bytes

    def covers(self, start_bytes: int, end_bytes: int) -> bool:
        """Whether each byte of [start, end) is in the set; true for an empty range."""
        _check_range(start_bytes, end_bytes)
        if start_bytes == end_bytes:
            return True
        index = bisect_right(self._ends, start_bytes)
        return (
            index < len(self._ends) and self._starts[index] <= start_bytes and end_bytes <= self._ends[index]
        )

    def has_any_of(self, start_bytes: int, end_bytes: int) -> bool:
        """Whether a byte of [start, end) is in the set; false for an empty range."""
        _check_range(start_bytes, end_bytes)
        index = bisect_right(self._ends, start_bytes)
        return index < len(self._ends) and max(start_bytes, self._starts[index]) < end_bytes

    def split(self, start_bytes: int, end_bytes: int) -> list[tuple[int, int, bool]]:
        """[start, end) cut where the set begins and ends: (start, end, whether in the set), in order.

        The parts are not empty, present and absent ones alternate, and together they are the whole range.
        """
        _check_range(start_bytes, end_bytes)
        parts: list[tuple[int, int, bool]] = []
        index = bisect_right(self._ends, start_bytes)
        while start_bytes < end_bytes:
            if index == len(self._ends) or self._starts[index] >= end_bytes:
                parts.append((start_bytes, end_bytes, False))
                break
            if start_bytes < self._starts[index]:
                parts.append((start_bytes, self._starts[index], False))
                start_bytes = self._starts[index]
            stop_bytes = min(end_bytes, self._ends[index])
            parts.append((start_bytes, stop_bytes, True))
            start_bytes = stop_bytes
            index += 1
        return parts

    def _length_of(self, first: int, after: int) -> int:
        return sum(self._ends[first:after]) - sum(self._starts[first:after])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The ranges as (start, end), in order."""
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        """The number of ranges."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"


def _check_range(start_bytes: int, end_bytes: int) -> None:
    if not 0 <= start_bytes <= end_bytes:
        raise ValueError(f"not a range: [{start_bytes}, {end_bytes})")
