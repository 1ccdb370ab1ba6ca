"""Chunks as files of a local disk: `chunks/<user>/<aa>/<digest in hex>`, a temporary file renamed when whole.

Promises: a file under its final name that was acknowledged is whole on disk. Temporary files live in
`incoming/` of the same file system and are cleared at the start, when the lock on the data directory says
that nobody else writes there.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from mmap import mmap
from pathlib import Path
from typing import Final

from cloudai_master.cached_open import open_cached
from cloudai_master.chunk_store import READ_BYTES, ChunkUnreachable, StoredChunk, StoreSpace
from cloudai_model.direct_write import write_file
from cloudai_model.errors import ChunkDamaged, CloudAIError, InternalError, NoSpace
from cloudai_model.full_disks import is_lack_of_room
from cloudai_model.names import check_managed_name

# From here on one sync of the file system is cheaper than one of each file: 0.25 ms for a file of 16 KiB,
# 40 ms for two thousand of them with one syncfs.
SYNC_EACH_MAX: Final = 8

OWNERS_KNOWN_MAX: Final = 4096

# What a file system answers when the disk cannot read, or what it read makes no sense. Anything else is a matter
# of the process or of the machine, and says nothing about the chunk.
_BAD_DISK: Final = {errno.EIO, errno.EUCLEAN}
# What it answers where a directory, a symlink, a socket or the like stands.
_NO_FILE: Final = {errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV}
_libc = ctypes.CDLL(None, use_errno=True)


class DiskChunkStore:
    """A ChunkStore in two folders of a directory."""

    def __init__(self, directory: Path) -> None:
        """Makes the folders and drops what a crash left half-written. Raises OSError."""
        self._chunks = directory / "chunks"
        self._incoming = directory / "incoming"
        for folder in (self._chunks, self._incoming):
            folder.mkdir(mode=0o700, exist_ok=True)
        for left_over in self._incoming.iterdir():
            left_over.unlink()
        _sync_directory(directory)

    @classmethod
    def beside(cls, directory: Path) -> DiskChunkStore:
        """That of a master that may be running: nothing is made or dropped here."""
        store = cls.__new__(cls)
        store._chunks = directory / "chunks"
        store._incoming = directory / "incoming"
        return store

    def put(self, owner: str, chunks: Mapping[bytes, bytes | memoryview]) -> None:
        with _our_errors():
            for digest in chunks:
                self._make_folder(Path(self._path(owner, digest)).parent)
            if len(chunks) <= SYNC_EACH_MAX:
                for digest, data in chunks.items():
                    path = Path(self._path(owner, digest))
                    with self._written(data) as (temporary, descriptor):
                        os.fsync(descriptor)
                        temporary.rename(path)
                    _sync_directory(path.parent)
                return
            # A crash before the sync may leave a file that is not whole under its final name. It was not
            # acknowledged, so nothing refers to it, and the next put writes it again.
            for digest, data in chunks.items():
                with self._written(data) as (temporary, _):
                    temporary.rename(self._path(owner, digest))
            _sync_file_system(self._chunks)

    def read(self, owner: str, digest: bytes, offset_bytes: int, length_bytes: int) -> bytes:
        try:
            descriptor = _open_file(self._path(owner, digest))
            try:
                data = os.pread(descriptor, length_bytes, offset_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._error_of_read(owner, error) from error
        if len(data) != length_bytes:
            raise ChunkDamaged("the chunk's file is too short")
        return data

    def read_at_once(
        self, owner: str, digest: bytes, offset_bytes: int, length_bytes: int
    ) -> bytes | bytearray | None:
        descriptor = open_cached(os.fsencode(self._path(owner, digest)))
        if descriptor is None:
            return None
        data = bytearray(length_bytes)
        try:
            if not _is_regular(descriptor):
                return None
            read_bytes = os.preadv(descriptor, [data], offset_bytes, os.RWF_NOWAIT)
        except OSError:
            # It is not in memory, or this file system cannot tell; what is really wrong, a read finds out.
            return None
        finally:
            os.close(descriptor)
        return data if read_bytes == length_bytes else None

    def read_past_cache(self, owner: str, digest: bytes) -> Iterator[bytes]:
        path = self._path(owner, digest)
        try:
            with _opened_direct(path) as descriptor, mmap(-1, READ_BYTES) as buffer:
                # The memory that the disk writes to has to begin with a page.
                length_bytes = READ_BYTES
                while length_bytes == READ_BYTES:
                    length_bytes = _read_part(descriptor, buffer)
                    yield buffer[:length_bytes]
        except OSError as error:
            raise self._error_of_read(owner, error) from error

    def has(self, owner: str, digest: bytes, length_bytes: int) -> bool:
        try:
            return Path(self._path(owner, digest)).stat().st_size == length_bytes
        except FileNotFoundError:
            return False

    def delete(self, owner: str, digest: bytes) -> None:
        Path(self._path(owner, digest)).unlink(missing_ok=True)

    def list(self, owner: str) -> Iterator[StoredChunk]:
        check_managed_name(owner)
        for path in (self._chunks / owner).glob("??/*"):
            with suppress(FileNotFoundError):
                yield StoredChunk(bytes.fromhex(path.name), path.stat().st_size)

    def space(self) -> StoreSpace:
        about = os.statvfs(self._chunks)
        return StoreSpace(about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize)

    def _path(self, owner: str, digest: bytes) -> str:
        # Text: to put a Path together costs more than to read 4 KiB from it.
        name = digest.hex()
        return f"{self._chunks}/{_folder_of(owner)}/{name[:2]}/{name}"

    def _error_of_read(self, owner: str, error: OSError) -> CloudAIError:
        if error.errno in _BAD_DISK:
            return ChunkUnreachable("the chunk's file cannot be read", errno=error.errno)
        if error.errno in _NO_FILE:
            return ChunkDamaged("what stands in the place of the chunk's file is none")
        if not isinstance(error, FileNotFoundError):
            return InternalError("the chunk store failed", errno=error.errno)
        # An empty folder in its place is what a disk leaves behind that is not mounted.
        if not (self._chunks / _folder_of(owner)).is_dir():
            return InternalError("the user's folder of chunks is not there", user=owner)
        return ChunkUnreachable("the chunk's file is gone")

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        for path in (folder.parent, folder):
            path.mkdir(mode=0o700, exist_ok=True)
            _sync_directory(path.parent)

    @contextmanager
    def _written(self, data: bytes | memoryview) -> Iterator[tuple[Path, int]]:
        """A new temporary file that holds the data, open; gone afterwards unless it was renamed."""
        temporary = self._incoming / secrets.token_hex(8)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_file(descriptor, data)
            yield temporary, descriptor
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


@lru_cache(OWNERS_KNOWN_MAX)
def _folder_of(owner: str) -> str:
    """A valid user name is a valid name of a folder: no '/', no leading dot, at most 255 bytes."""
    check_managed_name(owner)
    return owner


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _open_file(path: str, flags: int = 0) -> int:
    """A descriptor of a regular file, for reading. Raises OSError, of _NO_FILE for anything else; never waits for a
    writer, as the open of a fifo does.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | flags)
    if not _is_regular(descriptor):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, "no regular file", path)
    return descriptor


@contextmanager
def _opened_direct(path: str) -> Iterator[int]:
    """A descriptor that reads from the disk itself, if the file system can do that. Raises OSError."""
    try:
        descriptor = _open_file(path, os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = _open_file(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_part(descriptor: int, buffer: mmap) -> int:
    try:
        return os.readv(descriptor, [buffer])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Some file systems can open a file so and then not read it.
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_RDONLY)
        return os.readv(descriptor, [buffer])


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file_system(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_lack_of_room(error):
            raise NoSpace("the disk of the chunk store is full") from error
        raise InternalError("the chunk store failed", errno=error.errno) from error
