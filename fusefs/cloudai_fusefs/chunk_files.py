"""The files of the chunk cache: `<aa>/<digest>` holds a chunk, `<digest>.<scope>.blocks` some blocks of one.

A chunk is verified by its name, so that it may have come from anybody. Blocks are verified by a table that a master
has sent, and are only believed by mounts that would ask the same master in the same user's name: their scope.

Behind the bytes of a long chunk is the table of its blocks' digests, so that a few of them can be read alone.

Blocking; callers run it in a thread. Raises OSError where the disk fails; what is not there, or not what its
name says, is None.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloudai_fusefs.block_file import (
    BlockSpan,
    blocks_mask,
    present_blocks,
    read_blocks,
    table_bytes,
    table_of,
    write_blocks,
)
from cloudai_fusefs.cache_file import (
    RareWarning,
    make_private_directory,
    note_used,
    scope_name,
    write_cache_file,
)
from cloudai_fusefs.cache_sweep import BLOCKS_SUFFIX, free_bytes, stored_bytes_of
from cloudai_fusefs.chunk_memory import Data
from cloudai_fusefs.regular_file import NotRegular, is_regular, open_regular
from cloudai_model.chunks import block_digests_of, digest_of
from cloudai_model.limits import BLOCK_BYTES

log = logging.getLogger(__name__)

ALL_BLOCKS: Final = -1
"""Every bit: the chunk is there as a whole."""


class ChunkFiles:
    """The files below one directory, which other processes write and delete as well."""

    def __init__(self, cache_dir: Path, *, scope: str) -> None:
        """`scope` names who is asked for what is not here: whose blocks are believed."""
        self.directory = cache_dir / "chunks"
        self._blocks_suffix = f".{scope_name(scope)}{BLOCKS_SUFFIX}"
        self._cache_dir = cache_dir
        self._damaged = RareWarning(log, "a damaged file was dropped from the chunk cache: %s")

    def read_chunk(self, digest: bytes, length_bytes: int) -> bytes | None:
        """The chunk, verified. A file that is not the chunk is deleted and logged."""
        path = self._path_of(digest)
        try:
            with open_regular(path) as descriptor:
                data = os.read(descriptor, length_bytes)
                is_complete = _has_length(descriptor, length_bytes)
                if is_complete and len(data) == length_bytes and digest_of(data) == digest:
                    note_used(descriptor)
                    return data
        except FileNotFoundError:
            return None
        except NotRegular:
            pass  # whatever it is, it is not the chunk
        self._drop(path)
        return None

    def free_bytes(self) -> int:
        """What is free on the cache's disk. Makes the directory."""
        make_private_directory(self._cache_dir, self.directory)
        return free_bytes(self.directory)

    def note_wanted(self, digest: bytes, length_bytes: int) -> bool:
        """Whether the chunk is there by its length, unread; if so it counts as used now."""
        path = self._path_of(digest)
        try:
            with open_regular(path) as descriptor:
                if _has_length(descriptor, length_bytes):
                    note_used(descriptor)
                    return True
        except FileNotFoundError:
            return False
        except NotRegular:
            pass
        self._drop(path)
        return False

    def read_blocks(
        self, digest: bytes, chunk_bytes: int, first_block: int, length_bytes: int, known_blocks: int = 0
    ) -> tuple[tuple[Data, bytes] | None, int]:
        """The bytes from the block on, verified, with the digests of all blocks; and, as bits, which may be there.

        Those are `known_blocks`, without a search of the file, where it holds what they say.
        """
        path = self._path_of(digest)
        found: tuple[Data, bytes] | None
        with contextlib.suppress(FileNotFoundError):
            try:
                found = read_blocks(path, digest, chunk_bytes, first_block, length_bytes)
            except NotRegular:
                found = None
            if found is None:
                # Damaged, or its table is: the digest of the whole decides.
                data = self.read_chunk(digest, chunk_bytes)
                if data is not None:
                    start = first_block * BLOCK_BYTES
                    found = memoryview(data)[start : start + length_bytes], block_digests_of(data)
                    with contextlib.suppress(OSError):
                        write_cache_file(path, data, table_of(digest, found[1]))
            if found is not None:
                note_used(path)
                return found, ALL_BLOCKS
        path = self._blocks_path_of(digest)
        try:
            found = read_blocks(path, digest, chunk_bytes, first_block, length_bytes)
            wanted = blocks_mask(first_block, length_bytes)
            if found is not None:
                note_used(path)
                if known_blocks & wanted == wanted:
                    return found, known_blocks
            return found, present_blocks(path, chunk_bytes)
        except FileNotFoundError:
            return None, 0
        except NotRegular:
            self._drop(path)
            return None, 0

    def write_chunk(self, digest: bytes, data: Data, block_digests: bytes = b"") -> int:
        """Adds the chunk; returns by how many bytes the cache grew, 0 when it was there.

        The digests of its blocks are made here when they are not as many as the blocks; wrong ones do no harm,
        see `read_blocks`.
        """
        path = self._path_of(digest)
        if is_regular(path):
            return 0
        table = b""
        if wanted_bytes := table_bytes(len(data)):
            table = table_of(digest, block_digests)
            if len(table) != wanted_bytes:
                table = table_of(digest, block_digests_of(data))
        try:
            write_cache_file(path, data, table)
        except FileNotFoundError:
            make_private_directory(self._cache_dir, path.parent)
            write_cache_file(path, data, table)
        with contextlib.suppress(FileNotFoundError):
            self._blocks_path_of(digest).unlink()
        return _stored_bytes_at(path)

    def write_blocks(self, spans: Sequence[BlockSpan]) -> int:
        """Adds blocks of one chunk; returns as write_chunk."""
        digest = spans[0].digest
        if is_regular(self._path_of(digest)):
            return 0
        path = self._blocks_path_of(digest)
        make_private_directory(self._cache_dir, path.parent)
        before_bytes = _stored_bytes_at(path)
        try:
            write_blocks(path, spans)
        except NotRegular:
            self._drop(path)
            write_blocks(path, spans)
        return max(0, _stored_bytes_at(path) - before_bytes)

    def _drop(self, path: Path) -> None:
        """Takes away what is not what its name says. Raises IsADirectoryError: a directory is somebody's."""
        path.unlink(missing_ok=True)
        self._damaged.log(path)

    def _path_of(self, digest: bytes) -> Path:
        name = digest.hex()
        return self.directory / name[:2] / name

    def _blocks_path_of(self, digest: bytes) -> Path:
        path = self._path_of(digest)
        return path.with_name(path.name + self._blocks_suffix)


def _has_length(descriptor: int, length_bytes: int) -> bool:
    """Whether the file is as long as that of a chunk of this length."""
    return os.fstat(descriptor).st_size == length_bytes + table_bytes(length_bytes)


def _stored_bytes_at(path: Path) -> int:
    """0 where a neighbour's sweep was faster."""
    try:
        return stored_bytes_of(path.lstat())
    except FileNotFoundError:
        return 0
