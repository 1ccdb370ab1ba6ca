"""What never changes beside the chunks: trees of sealed runs and manifests of generations, on disk.

With it a sealed run can be read with the master away. `<cache_dir>/sealed/<scope>/<task id>/tree` and
`.../manifest-<node id>-<generation>`, each file led by the BLAKE3 digest of the rest; shared by processes
like the chunk cache, by the same means. A task id is unique at its master only, so each source has a
scope of its own.

A failure of the disk is logged and costs a call to the master later, never the caller's operation. Kept
until the run is removed, within a size limit: about 150 bytes for a tree's entry and 40 for a manifest's chunk.
What is over it goes by whole runs, those first that were used longest ago; a tree that is looked into is in memory.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio
from google.protobuf.message import DecodeError
from google.protobuf.proto import parse_length_prefixed, serialize_length_prefixed

from cloudai_fusefs.cache_file import (
    RareWarning,
    make_private_directory,
    note_used,
    scope_name,
    write_cache_file,
)
from cloudai_fusefs.cache_sweep import evict_oldest_runs, stored_bytes_of
from cloudai_fusefs.cache_sweeper import CacheSweeper
from cloudai_fusefs.patient_disk import PatientDisk
from cloudai_fusefs.regular_file import NotRegular, is_regular, open_regular
from cloudai_fusefs.wire_manifests import encode_manifest, manifest_from_wire
from cloudai_model.chunks import Manifest, digest_of
from cloudai_model.errors import CloudAIError
from cloudai_model.limits import DIGEST_BYTES
from cloudai_model.names import check_task_id
from cloudai_proto.storage.v1 import names_pb2, types_pb2

log = logging.getLogger(__name__)

DISK_THREADS_MAX: Final = 2
"""Small files, read once per mount or open file."""

CACHE_SHARE: Final = 1 / 32
"""Of the disk cache's limit, beside it: 4 million names where that is 20 GiB."""

_T = TypeVar("_T")


class SealedCache:
    """The sealed metadata of one master, within a limit for that of all masters below one cache_dir."""

    def __init__(self, cache_dir: Path, *, scope: str, bytes_max: int, nursery: trio.Nursery) -> None:
        """`scope` names the master: the mount's source. Sweeps run in the nursery, the first one from now on."""
        self._cache_dir = cache_dir
        self._bytes_max = bytes_max
        self._scope_dir = cache_dir / "sealed" / scope_name(scope)
        self._disk = PatientDisk(DISK_THREADS_MAX)
        self._damaged = RareWarning(log, "a damaged file was dropped from the metadata cache: %s")
        self._failed = RareWarning(log, "the metadata cache in %s cannot be used: %s")
        self._sweeper = CacheSweeper(
            partial(evict_oldest_runs, self._scope_dir.parent, bytes_max),
            bytes_max=bytes_max,
            nursery=nursery,
            note_failure=partial(self._failed.log, self._scope_dir),
        )

    async def load_tree(self, task_id: str) -> list[names_pb2.ListTreeResponse] | None:
        """All pages of a sealed run's tree, or None when they are not cached. Raises nothing of the disk's.

        Raises InvalidRequest for a task id that is none, here and in the other methods. Cancelled: nothing
        changed.
        """
        return await self._load(self._tree_path(task_id), _parse_pages)

    async def has_tree(self, task_id: str) -> bool:
        """Whether a sealed run's tree is cached, unread. It counts as used: somebody relies on it."""
        return bool(await self._in_thread(_has, self._tree_path(task_id)))

    async def store_tree(self, task_id: str, pages: Sequence[names_pb2.ListTreeResponse]) -> None:
        """Keeps all pages of a tree. Raises ValueError unless each says that the run was sealed by then.

        Cancelled: returns at once; the file is still written, or was not begun.
        """
        if not pages or not all(page.sealed for page in pages):
            raise ValueError("only a sealed run's tree may be kept: it never changes")
        await self._store(self._tree_path(task_id), _serialize_pages(pages))

    async def load_manifest(self, task_id: str, node_id: int, generation: int) -> Manifest | None:
        """The manifest of a file's generation, or None when it is not cached."""
        return await self._load(self._manifest_path(task_id, node_id, generation), _parse_manifest)

    async def store_manifest(self, task_id: str, node_id: int, generation: int, manifest: Manifest) -> None:
        """Keeps the manifest of a generation, of an open run's file too: it never changes either."""
        await self._store(self._manifest_path(task_id, node_id, generation), encode_manifest(manifest))

    async def forget_run(self, task_id: str) -> None:
        """Deletes what is kept of a run that was removed. Raises nothing of the disk's."""
        await self._in_thread(self._remove_directory, self._run_dir(task_id))

    def _run_dir(self, task_id: str) -> Path:
        check_task_id(task_id)  # it becomes a name below our directory, and came over the wire
        return self._scope_dir / task_id

    def _tree_path(self, task_id: str) -> Path:
        return self._run_dir(task_id) / "tree"

    def _manifest_path(self, task_id: str, node_id: int, generation: int) -> Path:
        return self._run_dir(task_id) / f"manifest-{node_id}-{generation}"

    async def _load(self, path: Path, parse: Callable[[bytes], _T]) -> _T | None:
        content = await self._in_thread(self._read_verified, path)
        if content is None:
            return None
        try:
            return parse(content)
        except (DecodeError, CloudAIError):  # intact, but not written by this version
            await self._in_thread(self._drop_damaged, path)
            return None

    async def _store(self, path: Path, content: bytes) -> None:
        if len(content) <= self._bytes_max:
            self._sweeper.note_written(await self._in_thread(self._write, path, content) or 0)

    async def _in_thread(self, call: Callable[..., _T], *arguments: object) -> _T | None:
        try:
            return await self._disk.look(call, *arguments)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._failed.log(self._scope_dir, error)
            return None

    # In a thread.

    def _read_verified(self, path: Path) -> bytes | None:
        with suppress(NotRegular), open_regular(path) as descriptor:
            stored = os.read(descriptor, os.fstat(descriptor).st_size)
            content = stored[DIGEST_BYTES:]
            if stored[:DIGEST_BYTES] == self._seal_of(path, content):
                note_used(path.parent)
                return content
        self._drop_damaged(path)
        return None

    def _drop_damaged(self, path: Path) -> None:
        self._damaged.log(path)
        path.unlink(missing_ok=True)

    def _write(self, path: Path, content: bytes) -> int:
        """Returns how much the file takes of the disk."""
        make_private_directory(self._cache_dir, path.parent)
        write_cache_file(path, self._seal_of(path, content) + content)
        return stored_bytes_of(path.stat())

    def _seal_of(self, path: Path, content: bytes) -> bytes:
        """A digest that binds the content to its name: after a power cut a file may hold another's."""
        return digest_of(os.fsencode(path.relative_to(self._cache_dir)) + b"\0" + content)

    def _remove_directory(self, directory: Path) -> None:
        shutil.rmtree(directory)


def _serialize_pages(pages: Sequence[names_pb2.ListTreeResponse]) -> bytes:
    stream = io.BytesIO()
    for page in pages:
        serialize_length_prefixed(page, stream)
    return stream.getvalue()


def _parse_pages(content: bytes) -> list[names_pb2.ListTreeResponse]:
    stream = io.BytesIO(content)
    pages = []
    while stream.tell() < len(content):
        page = parse_length_prefixed(names_pb2.ListTreeResponse, stream)
        pages.append(page)
    return pages


def _parse_manifest(content: bytes) -> Manifest:
    return manifest_from_wire(types_pb2.Manifest.FromString(content).chunks)


def _has(path: Path) -> bool:
    is_there = is_regular(path)
    if is_there:
        note_used(path.parent)
    return is_there
