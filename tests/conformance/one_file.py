"""Random calls on one file, each compared with an array of bytes: what was written is what is read, whichever way.

The seed decides everything; a failure says what was done before it.
"""

from __future__ import annotations

import mmap
import os
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX

LENGTH_BYTES_MAX: Final = 200_000
DESCRIPTORS_MAX: Final = 3
LOOK_CALLS: Final = 100
"""After so many calls the whole file is read."""
STORY_CALLS: Final = 40
"""So many calls before a failure are told."""

_EDGES: Final = (0, mmap.PAGESIZE, BLOCK_BYTES, CHUNK_BYTES_MAX, 2 * CHUNK_BYTES_MAX)
_READING: Final = (os.O_RDONLY, os.O_RDWR)
_WRITING: Final = (os.O_WRONLY, os.O_RDWR)
_MAPPED_WRITING: Final = (os.O_RDWR,)
_OTHER_FLAGS: Final = (0, 0, 0, os.O_APPEND, os.O_DIRECT)


class OneFile:
    """The file and what must be in it."""

    def __init__(self, path: Path, seed: int, *, size_bytes_max: int) -> None:
        self.path = path
        self._random = random.Random(seed)
        self._size_bytes_max = size_bytes_max
        self._expected = bytearray()
        self._descriptors: list[tuple[int, int]] = []
        self._story: deque[str] = deque([f"seed {seed}"], maxlen=STORY_CALLS)
        self._calls: tuple[tuple[Callable[[], object], int], ...] = (
            (self._read, 20),
            (self._write, 20),
            (self._read_mapped, 8),
            (self._write_mapped, 8),
            (self._truncate, 6),
            (self._truncate_path, 2),
            (self._empty, 1),
            (self._open, 5),
            (self._close, 4),
            (self._fsync, 2),
        )
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    def run(self, call_count: int) -> None:
        """Makes the calls. Raises AssertionError with the last of them where the file is not as it must be."""
        calls, weights = zip(*self._calls, strict=True)
        for number, call in enumerate(self._random.choices(calls, weights, k=call_count)):
            call()
            self._require(os.stat(self.path).st_size, len(self._expected), "its size")
            if number % LOOK_CALLS == LOOK_CALLS - 1:
                self.look()

    def look(self) -> None:
        """Reads all of it, through a descriptor of its own."""
        self._note("look")
        self._require_bytes(self.path.read_bytes(), 0, len(self._expected))

    def let_go(self) -> None:
        """Closes every descriptor."""
        self._note("let go")
        for descriptor, _ in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def forget_descriptors(self) -> None:
        """Closes them after the death of the mount, which they answer as they like."""
        self._note("death")
        for descriptor, _ in self._descriptors:
            with suppress(OSError):
                os.close(descriptor)
        self._descriptors.clear()

    def evict(self) -> None:
        """Closes it, waits until the master has it, and takes its pages from the kernel."""
        self.let_go()
        descriptor = os.open(self.path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        self._note("evicted")

    # --- calls -------------------------------------------------------------------------------------------

    def _open(self, accesses: Sequence[int] = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)) -> tuple[int, int]:
        if len(self._descriptors) == DESCRIPTORS_MAX:
            self._close()
        flags = self._random.choice(accesses) | self._random.choice(_OTHER_FLAGS)
        descriptor = os.open(self.path, flags)
        self._note("open", descriptor, oct(flags))
        self._descriptors.append((descriptor, flags))
        return descriptor, flags

    def _close(self) -> None:
        if self._descriptors:
            descriptor, _ = self._descriptors.pop(self._random.randrange(len(self._descriptors)))
            self._note("close", descriptor)
            os.close(descriptor)

    def _read(self) -> None:
        descriptor, _ = self._opened(_READING)
        offset, length = self._offset(), self._length()
        self._note("read", descriptor, offset, length)
        self._require_bytes(os.pread(descriptor, length, offset), offset, length)

    def _write(self) -> None:
        descriptor, flags = self._opened(_WRITING)
        offset = len(self._expected) if flags & os.O_APPEND else self._offset()
        length = min(self._length(), self._size_bytes_max - offset)
        if length <= 0:
            return
        data = self._random.randbytes(length)
        self._note("write", descriptor, offset, length)
        self._require(os.pwrite(descriptor, data, offset), length, "bytes written")
        self._put(offset, data)

    def _read_mapped(self) -> None:
        if not self._expected:
            return
        descriptor, _ = self._opened(_READING)
        start, stop = self._mapped_range()
        self._note("read mapped", descriptor, start, stop)
        with self._mapping(descriptor, start, stop, mmap.PROT_READ) as memory:
            self._require_bytes(memory[start % mmap.ALLOCATIONGRANULARITY :], start, stop - start)

    def _write_mapped(self) -> None:
        if not self._expected:
            return
        descriptor, _ = self._opened(_MAPPED_WRITING)
        start, stop = self._mapped_range()
        data = self._random.randbytes(stop - start)
        self._note("write mapped", descriptor, start, stop)
        with self._mapping(descriptor, start, stop, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
            memory[start % mmap.ALLOCATIONGRANULARITY :] = data
            memory.flush()
        self._put(start, data)

    def _truncate(self) -> None:
        descriptor, _ = self._opened(_WRITING)
        size = min(self._offset(), self._size_bytes_max)
        self._note("ftruncate", descriptor, size)
        os.ftruncate(descriptor, size)
        self._cut(size)

    def _truncate_path(self) -> None:
        size = min(self._offset(), self._size_bytes_max)
        self._note("truncate", size)
        os.truncate(self.path, size)
        self._cut(size)

    def _empty(self) -> None:
        self._note("open with O_TRUNC")
        os.close(os.open(self.path, os.O_WRONLY | os.O_TRUNC))
        self._cut(0)

    def _fsync(self) -> None:
        descriptor, _ = self._opened((*_READING, *_WRITING))
        self._note("fsync", descriptor)
        os.fsync(descriptor)

    # --- choices -----------------------------------------------------------------------------------------

    def _opened(self, accesses: Sequence[int]) -> tuple[int, int]:
        """A descriptor with one of these accesses, and its flags."""
        found = [opened for opened in self._descriptors if opened[1] & os.O_ACCMODE in accesses]
        return self._random.choice(found) if found else self._open(accesses)

    def _offset(self) -> int:
        """A place in the file, or a little past its end; often one where pages, blocks or chunks meet."""
        if self._random.random() < 0.4:
            near = self._random.choice([edge for edge in _EDGES if edge <= self._size_bytes_max])
            return max(0, near + self._random.randint(-5, 5))
        return self._random.randrange(min(len(self._expected) + LENGTH_BYTES_MAX, self._size_bytes_max))

    def _length(self) -> int:
        return self._random.choice((1, 10, mmap.PAGESIZE, self._random.randrange(1, LENGTH_BYTES_MAX)))

    def _mapped_range(self) -> tuple[int, int]:
        start = min(self._offset(), len(self._expected) - 1)
        return start, min(start + self._length(), len(self._expected))

    @staticmethod
    def _mapping(descriptor: int, start: int, stop: int, protection: int) -> mmap.mmap:
        begin = start - start % mmap.ALLOCATIONGRANULARITY
        return mmap.mmap(descriptor, stop - begin, mmap.MAP_SHARED, protection, offset=begin)

    # --- what must be ------------------------------------------------------------------------------------

    def _put(self, offset: int, data: bytes) -> None:
        self._expected.extend(bytes(max(0, offset - len(self._expected))))
        self._expected[offset : offset + len(data)] = data

    def _cut(self, size: int) -> None:
        del self._expected[size:]
        self._expected.extend(bytes(size - len(self._expected)))

    def _note(self, *words: object) -> None:
        self._story.append(" ".join(map(str, words)))

    def _require(self, found: object, expected: object, what: str) -> None:
        assert found == expected, f"{what}: {found} instead of {expected}, after:\n" + "\n".join(self._story)

    def _require_bytes(self, found: bytes, offset: int, length: int) -> None:
        expected = self._expected[offset : offset + length]
        if found == expected:
            return
        self._require(len(found), len(expected), "bytes read")
        first = next(index for index, byte in enumerate(found) if byte != expected[index])
        self._require(
            found[first : first + 16].hex(), expected[first : first + 16].hex(), f"at {offset + first}"
        )
