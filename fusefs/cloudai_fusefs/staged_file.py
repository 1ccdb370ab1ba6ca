"""The bytes of one file that are on this machine and not yet, or not all, at the master.

A sparse file in the state directory holds what was written, at its own offset. Of a file that had content
before (its base), only the written ranges are here; an extent log beside it records which, so that both
survive the death of the daemon together. What `write` acknowledged is in the kernel's page cache of the
state disk: kill -9 does not lose it.

Blocking calls (`pwrite` but for `write_at_once`, `pread` of uncached pages) leave the loop in `StagedFile` alone.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from cloudai_fusefs.layout import Layout
from cloudai_fusefs.range_set import RangeSet
from cloudai_fusefs.spare_files import SpareFiles
from cloudai_fusefs.staged_descriptors import StagedDescriptors
from cloudai_model.chunks import Manifest, digest_of
from cloudai_model.errors import InternalError
from cloudai_model.limits import CHUNK_BYTES_MAX, INLINE_BYTES_MAX

_STAT_BLOCK_BYTES: Final = 512
"""Of stat(2), whatever the file system's own."""

RECYCLED_BYTES_MAX: Final = INLINE_BYTES_MAX
"""Of what travels in its commit, and is seldom on the disk: to empty it costs nothing."""

_ZEROS: Final = bytes(CHUNK_BYTES_MAX)
_ZEROS_DIGEST: Final = digest_of(_ZEROS)
"""Of a gap that was never written: to read and to hash 1 TiB of it took half an hour."""

_EXTENT_RECORD: Final = struct.Struct("<cQQ")
_WRITTEN: Final = b"W"
_TRUNCATED: Final = b"T"

ReadBase = Callable[[int, int], Awaitable[bytes | memoryview]]
"""Reads (offset, length) of the base; shorter only at its end."""


def mark_of(path: Path) -> Path:
    """Where a staged file leaves the mark that its content has been committed."""
    return path.with_name(path.name + ".acknowledged")


class StagedFile:
    """One file being written. Used from the mount's loop only."""

    def __init__(
        self,
        path: Path,
        base: Manifest,
        base_generation: int,
        read_base: ReadBase,
        descriptors: StagedDescriptors | None = None,
    ) -> None:
        """Opens what is staged at the path, or starts with nothing; an extent log found there is replayed.

        Its descriptors are `descriptors`' to close while nobody uses them; without, they stay open.

        Raises OSError when the state disk refuses. An extent record that a crash cut short is dropped: its
        write was never acknowledged.
        """
        self._path = path
        self._read_base = read_base
        self._descriptors = descriptors
        self._close_descriptor: Callable[[int], None] = os.close
        self._users = 0
        self._can_read_cached = True
        self._dropped = False
        self._may_be_on_disk = False  # and its row may have said so
        self._base = base
        self.base_generation = base_generation
        self.view_generation = base_generation  # what reads show: the base, later what was committed of it
        self._base_limit_bytes = base.size_bytes  # what lies beyond has been cut off once
        self._local: RangeSet | None = RangeSet() if base.chunks else None  # None: everything is
        # Without a base, the 4 MiB cells that bytes may have been written into: nothing but zeros is in any other. What
        # has been cut off stays among them, as a write that is under way, or failed, may have left something there.
        self._written_cells = RangeSet()
        self.layout = Layout(base)
        self.has_only_grown = True  # since it was last published, and from its end
        self.size_seen_bytes = 0  # when it was last thought of publishing it
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._extents_fd = -1
        self._extent_count = 0
        self._extents_lock = threading.Lock()  # pages of a mapping come as several writes at once, in threads
        try:
            if self._local is not None:
                self._open_extents()
            else:
                left_bytes = os.fstat(self._fd).st_size
                self._note_left(left_bytes)
                self.layout.note_truncate(left_bytes)
                self._may_be_on_disk = left_bytes > 0
        except BaseException:
            self._close()
            raise
        if descriptors is not None:
            descriptors.note_opened(self)

    @property
    def size_bytes(self) -> int:
        return self.layout.size_bytes

    @property
    def used_bytes(self) -> int:
        """What it takes of its disk: holes take nothing."""
        return os.stat(self._place).st_blocks * _STAT_BLOCK_BYTES  # noqa: PTH116 - a descriptor, mostly

    @property
    def base(self) -> Manifest:
        return self._base

    @property
    def written_at_ns(self) -> int:
        """When its bytes last changed, as told to `note_written`."""
        return os.stat(self._place).st_mtime_ns  # noqa: PTH116

    def note_written(self, moment_ns: int) -> None:
        """Its bytes changed at this moment: what is shown now, a crash must not move by the disk's clock."""
        os.utime(self._place, ns=(moment_ns, moment_ns))

    async def write(self, offset_bytes: int, data: bytes) -> None:
        """Stages the bytes. Raises FileTooLarge, or OSError (ENOSPC...) and then none or a part is written.

        Cancelled: the write is carried out all the same.
        """
        self.layout.check_size(offset_bytes + len(data))
        self._note_writing(offset_bytes, len(data))
        with self._in_use():
            await trio.to_thread.run_sync(self._pwrite, offset_bytes, data)
            self._note_written(offset_bytes, len(data))

    def write_at_once(self, offset_bytes: int, data: bytes) -> None:
        """The same on the loop's thread, for a disk that takes it into its page cache (WritePace)."""
        self.layout.check_size(offset_bytes + len(data))
        if self._fd < 0:
            self._reopen()
        self._note_writing(offset_bytes, len(data))
        self._pwrite(offset_bytes, data)
        self._note_written(offset_bytes, len(data))

    def _note_writing(self, offset_bytes: int, length_bytes: int) -> None:
        """Before the write: one that fails may have written a part."""
        if self._local is None:
            end_bytes = offset_bytes + length_bytes
            self._written_cells.add(
                offset_bytes - offset_bytes % CHUNK_BYTES_MAX, end_bytes + -end_bytes % CHUNK_BYTES_MAX
            )

    def _note_left(self, left_bytes: int) -> None:
        """Where an earlier mount may have written: whatever the file system does not call a hole."""
        offset_bytes = 0
        try:
            while offset_bytes < left_bytes:
                offset_bytes = os.lseek(self._fd, offset_bytes, os.SEEK_DATA)
                end_bytes = os.lseek(self._fd, offset_bytes, os.SEEK_HOLE)
                self._note_writing(offset_bytes, end_bytes - offset_bytes)
                offset_bytes = end_bytes + -end_bytes % CHUNK_BYTES_MAX  # of a cell it is all the same
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data from there on
                self._note_writing(offset_bytes, left_bytes - offset_bytes)

    def _was_never_written(self, start_bytes: int, end_bytes: int) -> bool:
        """Whether [start, end) lies in a gap: all of it is zeros."""
        if self._local is None:
            return not self._written_cells.has_any_of(start_bytes, end_bytes)
        return start_bytes >= self._base_limit_bytes and not self._local.has_any_of(start_bytes, end_bytes)

    def _note_written(self, offset_bytes: int, length_bytes: int) -> None:
        if offset_bytes != self.layout.size_bytes:
            self.has_only_grown = False
        # Only now: a chunk hashed while its bytes were changing must not count as stored.
        self.layout.note_write(offset_bytes, length_bytes)
        if self._local is not None:
            self._local.add(offset_bytes, offset_bytes + length_bytes)

    def truncate(self, size_bytes: int) -> None:
        """Cuts or extends with zeros. Raises FileTooLarge or OSError, and then nothing has changed."""
        self.layout.check_size(size_bytes)
        old_size_bytes = self.layout.size_bytes
        if self._fd < 0:
            self._reopen()
        if self._local is None:
            os.ftruncate(self._fd, size_bytes)
        else:
            # The log first: what it says is cut off is not read, whether it is still there or not. The other way
            # round, bytes that the log has and the file has not would be zeros after a death in between.
            self._log_extent(_TRUNCATED, size_bytes, 0)
            try:
                os.ftruncate(self._fd, size_bytes)
            except OSError:
                self._extent_count -= 1  # written over, or cut off
                os.ftruncate(self._extents_fd, self._extent_count * _EXTENT_RECORD.size)
                raise
            self._cut_local(size_bytes, old_size_bytes)
        self.layout.note_truncate(size_bytes)
        self.has_only_grown = False

    async def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """The bytes [offset, offset + length), shorter only at the end. Raises what `read_base` does."""
        end_bytes = min(offset_bytes + length_bytes, self.layout.size_bytes)
        if offset_bytes >= end_bytes:
            return b""
        with self._in_use():
            if self._local is None:
                return await self._pread(offset_bytes, end_bytes - offset_bytes)
            parts: list[bytes | memoryview] = []
            for start, stop, is_local in self._local.split(offset_bytes, end_bytes):
                if is_local:
                    parts.append(await self._pread(start, stop - start))
                    continue
                base_stop = min(stop, self._base_limit_bytes)
                if start < base_stop:
                    parts.append(await self._read_base(start, base_stop - start))
                if stop > max(start, base_stop):
                    parts.append(bytes(stop - max(start, base_stop)))
            return b"".join(parts)

    async def read_with_digest(
        self, offset_bytes: int, length_bytes: int, threads: trio.CapacityLimiter
    ) -> tuple[bytes, bytes]:
        """The bytes [offset, offset + length) with their digest, made in one of the threads; nothing where the file
        has become shorter. Raises what `read_base` does, and OSError. Cancelled: nothing changed.
        """
        end_bytes = offset_bytes + length_bytes
        if length_bytes == CHUNK_BYTES_MAX and self._was_never_written(offset_bytes, end_bytes):
            return (_ZEROS, _ZEROS_DIGEST) if end_bytes <= self.layout.size_bytes else (b"", b"")
        if self._local is None or self._local.covers(offset_bytes, end_bytes):
            if end_bytes > self.layout.size_bytes:
                return b"", b""
            with self._in_use():
                return await trio.to_thread.run_sync(
                    self._pread_with_digest, offset_bytes, length_bytes, limiter=threads
                )
        data = await self.read(offset_bytes, length_bytes)
        if len(data) != length_bytes:
            return b"", b""
        return data, await trio.to_thread.run_sync(digest_of, data, limiter=threads)

    async def sync(self) -> None:
        """What was written before is on the disk afterwards, and so is its name. Raises OSError."""

        def run() -> None:
            for descriptor in (self._fd, self._extents_fd):
                if descriptor >= 0:
                    os.fsync(descriptor)

        self._may_be_on_disk = True
        with self._in_use():
            await trio.to_thread.run_sync(run)

    def drop(self, *, leave_mark: bool = False) -> None:
        """Removes the staged bytes; a read under way still gets them. Idempotent.

        With `leave_mark` an empty file stays at `mark_of` the path: the journal's row could not be removed,
        and must not be taken for a promise by the next mount.
        """
        if self._dropped:
            return
        if self._descriptors is not None:
            closer = self._descriptors.closer
            if self._fd < 0 and closer.has_room:
                with suppress(OSError):
                    self._reopen()
            # The last close of a removed file frees its blocks, which takes time.
            self._close_descriptor = closer.close
        self._dropped = True
        if leave_mark:
            self._path.rename(mark_of(self._path))
            os.truncate(mark_of(self._path), 0)
        else:
            self._path.unlink(missing_ok=True)
        if self._local is not None:
            self._extents_path.unlink(missing_ok=True)
        if self._users == 0:
            self._close()

    def recycle(self, spares: SpareFiles) -> None:
        """As drop, but for a small file that nobody reads any more: it is kept, empty, for another node.

        One that was synced, or that another mount left, is not: after a loss of power a row that says it is on the
        disk may be back.
        """
        is_small = self.layout.size_bytes <= RECYCLED_BYTES_MAX
        is_idle = not self._dropped and not self._users
        if is_small and is_idle and self._local is None and not self._may_be_on_disk:
            with suppress(OSError):  # no descriptor is left: to remove it takes none
                if self._fd < 0:
                    self._reopen()
                self._dropped = spares.put(self._path, self._fd)
            if self._dropped:
                self._close()
                return
        self.drop()

    def rest(self) -> bool:
        """Closes the descriptors until they are needed again. False: somebody uses them."""
        if self._users:
            return False
        self._close()
        return True

    def close(self) -> None:
        """Lets go of the files and leaves them where they are, for the next mount."""
        self._dropped = True
        if self._users == 0:
            self._close()

    @property
    def _extents_path(self) -> Path:
        return self._path.with_name(self._path.name + ".extents")

    @property
    def _place(self) -> int | Path:
        """Of its bytes: the descriptor, or while that is closed their name."""
        return self._fd if self._fd >= 0 else self._path

    def _reopen(self) -> None:
        """After a rest. What is gone meanwhile is not made anew: it would read as zeros."""
        if self._dropped:
            # By now the name may be that of another content of the node.
            raise OSError(errno.EBADF, "the staged file was dropped", str(self._path))
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if self._local is not None:
                self._extents_fd = os.open(self._extents_path, os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            self._close()
            raise
        if self._descriptors is not None:
            self._descriptors.note_opened(self)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        if self._fd < 0:
            self._reopen()
        # A descriptor that is closed under a thread's read may by then be another file's.
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0 and self._dropped:
                self._close()

    def _close(self) -> None:
        for descriptor in (self._fd, self._extents_fd):
            if descriptor >= 0:
                self._close_descriptor(descriptor)
        self._fd = self._extents_fd = -1
        if self._descriptors is not None:
            self._descriptors.note_closed(self)

    def _pwrite(self, offset_bytes: int, data: bytes) -> None:
        view = memoryview(data)
        written_bytes = 0
        while written_bytes < len(view):
            written_bytes += os.pwrite(self._fd, view[written_bytes:], offset_bytes + written_bytes)
        if self._local is not None:
            self._log_extent(_WRITTEN, offset_bytes, len(data))

    async def _pread(self, offset_bytes: int, length_bytes: int) -> bytes:
        buffer = bytearray(length_bytes)
        done_bytes = self._pread_cached(buffer, offset_bytes)
        if done_bytes < length_bytes:
            await trio.to_thread.run_sync(self._pread_rest, buffer, done_bytes, offset_bytes)
        return bytes(buffer)

    def _pread_cached(self, buffer: bytearray, offset_bytes: int) -> int:
        """Reads what is in the page cache and needs no disk; how much that was."""
        if not self._can_read_cached:
            return 0
        try:
            return os.preadv(self._fd, [buffer], offset_bytes, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._can_read_cached = False  # tmpfs, for one, does not offer it
            return 0

    def _pread_with_digest(self, offset_bytes: int, length_bytes: int) -> tuple[bytes, bytes]:
        data = os.pread(self._fd, length_bytes, offset_bytes)
        if len(data) < length_bytes:  # a hole at the staged file's end, or a part of it
            rest = bytearray(length_bytes)
            rest[: len(data)] = data
            self._pread_rest(rest, len(data), offset_bytes)
            data = bytes(rest)
        return data, digest_of(data)

    def _pread_rest(self, buffer: bytearray, done_bytes: int, offset_bytes: int) -> None:
        # Past the staged file's own end there is a hole that was never written: it stays zeros.
        view = memoryview(buffer)
        while done_bytes < len(view):
            count = os.preadv(self._fd, [view[done_bytes:]], offset_bytes + done_bytes)
            if count == 0:
                return
            done_bytes += count

    def _log_extent(self, kind: bytes, first: int, second: int) -> None:
        # At its own place, and counted only when it is whole: what a full disk cut short is written over.
        record = _EXTENT_RECORD.pack(kind, first, second)
        with self._extents_lock:
            place_bytes = self._extent_count * _EXTENT_RECORD.size
            if os.pwrite(self._extents_fd, record, place_bytes) != len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._extent_count += 1

    def _open_extents(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._extents_fd = os.open(self._extents_path, flags, 0o600)
        recorded = self._extents_path.read_bytes()
        self._extent_count = len(recorded) // _EXTENT_RECORD.size
        assert self._local is not None
        whole_bytes = self._extent_count * _EXTENT_RECORD.size
        for kind, first, second in _EXTENT_RECORD.iter_unpack(recorded[:whole_bytes]):
            if kind == _WRITTEN:
                self.layout.note_write(first, second)
                self._local.add(first, first + second)
            elif kind == _TRUNCATED:
                old_size_bytes = self.layout.size_bytes
                self.layout.note_truncate(first)
                self._cut_local(first, old_size_bytes)
            else:
                raise InternalError("the extent log is damaged", path=str(self._extents_path))

    def _cut_local(self, size_bytes: int, old_size_bytes: int) -> None:
        assert self._local is not None
        if size_bytes < old_size_bytes:
            self._local.remove_from(size_bytes)
            self._base_limit_bytes = min(self._base_limit_bytes, size_bytes)
