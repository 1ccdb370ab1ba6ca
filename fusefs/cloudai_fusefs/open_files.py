"""The operations on contents: open, read, write, truncate, flush, fsync, release.

A file with staged bytes is read from them and, for what is not staged, from its base; any other file is read
by its generation's manifest. A handle belongs to a node, not to a generation: a reader of a growing file
sees it grow.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

import trio

from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.file_content import FileContent, content_of, is_large
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.node import DIRECTORY, NO_GENERATION, Node
from cloudai_fusefs.range_reader import RANGE_BYTES_MAX, RangeReader
from cloudai_fusefs.read_ahead import ReadAhead
from cloudai_fusefs.reading_streams import ReadingStreams
from cloudai_fusefs.run_nodes import Invalidation
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.sealed_cache import SealedCache
from cloudai_fusefs.small_files import SmallFileReadAhead, is_small_file
from cloudai_fusefs.staged_file import StagedFile
from cloudai_fusefs.staging import Staging
from cloudai_fusefs.uploader import Uploader
from cloudai_fusefs.wire_manifests import manifest_from_wire
from cloudai_model.chunks import Manifest
from cloudai_model.errors import (
    CloudAIError,
    InternalError,
    InvalidRequest,
    IsADirectory,
    MasterUnavailable,
    NotFound,
    ReadOnlyMount,
)
from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX

_STALE_GENERATION_ATTEMPTS: Final = 3
"""A generation can be superseded between its news and the question for its manifest."""


_GRACE_SECONDS: Final = 0.5
"""Less than the handler has beyond timeo (operations): of three bounds the innermost says best what was waited for."""


class LostName(CloudAIError):
    """Between the kernel's look at a file's last name and its opening, another file took the name, or nobody did."""

    reason = ""
    sentence = "the file has no name any more"


class Opened(NamedTuple):
    """What the kernel is told of a new handle."""

    handle: int
    keeps_pages: bool
    """It may keep the pages that it has of the file."""
    passes_pages: bool
    """What is written goes past its pages (docs/decisions/0009)."""


class OpenFile:
    """One open handle."""

    __slots__ = ("appends", "can_write", "has_read_ahead", "node", "passes_pages", "read_ahead")

    def __init__(self, node: Node, *, can_write: bool, appends: bool, passes_pages: bool) -> None:
        self.node = node
        self.can_write = can_write
        self.appends = appends
        self.passes_pages = passes_pages
        self.read_ahead = ReadAhead()
        self.has_read_ahead = False  # of a file of one chunk: the files after it have been thought of


class OpenFiles:
    """The open handles of a mount, by the number the kernel has."""

    def __init__(
        self,
        client: MasterClient,
        reader: ChunkReader,
        range_reader: RangeReader,
        sealed_cache: SealedCache,
        staging: Staging,
        uploader: Uploader,
        *,
        read_only: bool,
        writes_pass_pages: bool,
        timeo_seconds: float,
    ) -> None:
        self._client = client
        self._reader = reader
        self._range_reader = range_reader
        self._small_files = SmallFileReadAhead()
        self._streams = ReadingStreams()
        self._sealed_cache = sealed_cache
        self._staging = staging
        self._uploader = uploader
        self._read_only = read_only
        self._writes_pass_pages = writes_pass_pages
        self._timeo_seconds = timeo_seconds
        self._handles: dict[int, OpenFile] = {}
        self._next_handle = 1

    @property
    def count(self) -> int:
        return len(self._handles)

    def node_of(self, handle: int) -> Node:
        return self._handles[handle].node

    async def open(self, node: Node, flags: int) -> Opened:
        """A handle of the file. O_TRUNC arrives here and truncates (libfuse turns ATOMIC_O_TRUNC on).

        Raises LostName, IsADirectory, RunSealed, ReadOnlyMount, and the client's errors where the manifest has to be
        asked for.
        """
        if node.is_directory:
            raise IsADirectory
        if not node.is_file:
            raise InvalidRequest("not a file")
        if not node.is_attached and node.staged is None and not node.open_count:
            raise LostName(node_id=node.node_id)  # the master need not have it any more
        can_write = flags & os.O_ACCMODE != os.O_RDONLY
        if can_write or flags & os.O_TRUNC:
            self._check_writable(node)
        if flags & os.O_TRUNC:
            await self._staging.settling.unsettle(node)
            self._truncate_to_nothing(node)
        elif can_write and node.staged is None and not (node.pending is not None and node.pending.content):
            # Known now, so that no write has to wait for it; staged by the first write alone, over what is
            # there by then.
            try:
                await self.load_content(node)
            except NotFound:
                if not node.is_attached:
                    raise LostName(node_id=node.node_id) from None
                raise
        # Of what was never open the kernel has no pages to drop, and would wait for those that others, who opened it a
        # moment later, are already reading: without a bound, and not to be killed.
        keep_pages = node.kernel_generation in (NO_GENERATION, node.view_generation)
        node.kernel_generation = node.view_generation
        node.tree.looked_at_seconds = trio.current_time()
        return self._add(node, flags, keeps_pages=keep_pages)

    def open_new(self, node: Node, flags: int) -> Opened:
        """A handle of a file that was made here just now."""
        opened = self._add(node, flags, keeps_pages=True)
        node.kernel_generation = node.view_generation
        if node.writer_count:
            self._uploader.note_opened(node)
        return opened

    async def read(self, handle: int, offset_bytes: int, length_bytes: int) -> bytes | memoryview:
        """The bytes [offset, offset + length), shorter only at the file's end. Short reads follow read(2).

        Raises ChunkDamaged, MasterUnavailable when no answer came within timeo. Cancelled: nothing changed.
        """
        file = self._handles[handle]
        content = file.node.content
        # What is in memory is answered without a bound, a task or a wait: most reads are.
        if content is not None and file.node.staged is None:
            data = self._reader.find(content, offset_bytes, length_bytes)
            if data is not None:
                self._read_ahead(file, content, offset_bytes, length_bytes)
                return data
        # A moment more than the call to the master has: that notes the silence, and is not waited for by the next
        # reader, nor once more by this one, for whom the kernel asks again.
        with trio.move_on_after(self._timeo_seconds + _GRACE_SECONDS):
            return await self._read(file, offset_bytes, length_bytes)
        raise MasterUnavailable("read", timeo_seconds=self._timeo_seconds)

    async def _read(self, file: OpenFile, offset_bytes: int, length_bytes: int) -> bytes | memoryview:
        node = file.node
        if node.staged is not None:
            return await node.staged.read(offset_bytes, length_bytes)
        content = node.content or await self.load_content(node)
        self._read_ahead(file, content, offset_bytes, length_bytes)
        # The kernel asks for so little at the beginning of a file, or where pages that it had are gone.
        is_small = length_bytes <= BLOCK_BYTES
        if is_small or (file.read_ahead.is_random and length_bytes <= RANGE_BYTES_MAX):
            return await self._range_reader.read(content, offset_bytes, length_bytes)
        return await self._reader.read(content, offset_bytes, length_bytes)

    def _read_ahead(self, file: OpenFile, content: FileContent, offset_bytes: int, length_bytes: int) -> None:
        """Asks for what is likely to be read next."""
        if is_small_file(file.node):
            if not file.has_read_ahead:
                file.has_read_ahead = True
                for group in self._small_files.note_read(file.node):
                    contents = [self._known_content(node) for node in group]
                    self._reader.fetch_together([content for content in contents if content is not None])
            return
        stream_count = self._streams.note_read(file, trio.current_time())
        for index in file.read_ahead.note_read(
            content.manifest, offset_bytes, length_bytes, stream_count=stream_count
        ):
            if not self._reader.prefetch(content, index):
                file.read_ahead.note_declined(content.manifest, index)
                break
        if file.read_ahead.passed_chunk is not None:
            self._reader.note_passed(content, file.read_ahead.passed_chunk)

    def write_at_once(self, handle: int, offset_bytes: int, data: bytes) -> bool:
        """Stages the bytes where nothing has to be waited for, as most writes; False: it is for `write`.

        Promises and raises what that does.
        """
        file = self._handles[handle]
        node = file.node
        self._check_writable(node)
        staging = self._staging
        if not (
            node.pending is not None
            and node.pending.content
            and staging.settling.may_change_at_once(node)
            and staging.space.has_room(len(data))
            and staging.pace.is_quick(len(data))
        ):
            return False
        # Without a staged file it was made here, and is still empty.
        staged = node.staged or staging.stage(node, Manifest())
        offset_bytes = _place_of_write(file, offset_bytes)
        staging.pace.write(staged.write_at_once, offset_bytes, data)
        self._note_written(file, staged, offset_bytes, len(data))
        return True

    async def write(self, handle: int, offset_bytes: int, data: bytes) -> None:
        """Stages the bytes; they survive the death of the daemon once this has returned.

        Raises FileTooLarge, RunSealed, OSError (ENOSPC) of the state disk, or of staging after timeo.
        """
        file = self._handles[handle]
        node = file.node
        self._check_writable(node)
        await self._staging.settling.unsettle(node)
        space = self._staging.space
        if not space.has_room(len(data)):
            await space.wait_for_room(len(data), self._uploader.can_make_room, self._timeo_seconds)
        staged = node.staged or await self._stage(node)
        if node.pending is None or not node.pending.content:
            # The row first: bytes without one would be taken for a leftover by the next mount.
            self._staging.note_content(node)
        offset_bytes = _place_of_write(file, offset_bytes)
        with space.claimed(len(data)):
            await staged.write(offset_bytes, data)
        self._note_written(file, staged, offset_bytes, len(data))

    def _note_written(self, file: OpenFile, staged: StagedFile, offset_bytes: int, length_bytes: int) -> None:
        node = file.node
        self._staging.space.note_written(staged)
        node.set_size(staged.size_bytes)
        node.touch()
        staged.note_written(node.mtime_ns)
        self._staging.note_content(node)
        end_bytes = offset_bytes + length_bytes
        if offset_bytes // CHUNK_BYTES_MAX != end_bytes // CHUNK_BYTES_MAX:
            self._uploader.note_full_chunk(node)
        if file.appends and node.size_moved_elsewhere and not file.passes_pages:
            # The kernel has the bytes in its pages as well, where it thought the end to be.
            node.hide_growth(node.size_bytes)
            self._uploader.tell_kernel([Invalidation(node.ino, grown=node)])

    async def truncate(self, node: Node, size_bytes: int) -> None:
        """Cuts the file or extends it with zeros. Raises as write."""
        self._check_writable(node)
        if node.is_directory:
            raise IsADirectory
        await self._staging.settling.unsettle(node)
        if size_bytes == 0:
            self._truncate_to_nothing(node)
            return
        staged = node.staged or await self._stage(node)
        if staged.size_bytes == size_bytes:
            node.touch()
            self._staging.note_content(node)
            return
        self._staging.note_content(node)
        staged.truncate(size_bytes)
        self._staging.space.note_written(staged)
        node.set_size(size_bytes)
        node.touch()
        staged.note_written(node.mtime_ns)
        self._staging.note_content(node)
        if node.writer_count == 0:
            self._uploader.note_closed(node)

    async def fsync(self, node: Node) -> None:
        """Returns when what was written before is at the master, by name and content, on its disk.

        Raises the refusal (ENOSPC, EDQUOT...) or MasterUnavailable after timeo; the bytes stay staged, and
        go on uploading. Of a directory also, once, that of a removal from it that was acknowledged before.
        Cancelled: the same.
        """
        nodes = [node]
        if node.kind == DIRECTORY:
            nodes += (node.children or {}).values()
        with trio.move_on_after(self._timeo_seconds) as scope:
            await self._uploader.make_durable(nodes)
            if node.kind == DIRECTORY:
                try:
                    await self._uploader.wait_removals([node.tree])
                finally:
                    refusal = node.tree.removals.take_refusal(node.node_id)
                if refusal is not None:
                    raise refusal
        if scope.cancelled_caught:
            raise MasterUnavailable("fsync", timeo_seconds=self._timeo_seconds)

    def release(self, handle: int) -> Node:
        """The last descriptor of the handle is closed; returns its node, which may now be unused."""
        file = self._handles.pop(handle)
        self._streams.forget(file)
        node = file.node
        node.open_count -= 1
        if (
            not (node.open_count or node.tree.holder_count)
            and node.content
            and is_large(node.content.manifest)
        ):
            node.content = None  # (a warm-up, which holds the names, needs those that it has asked for)
        if file.can_write:
            node.writer_count -= 1
            if node.writer_count == 0:
                node.size_moved_elsewhere = False
                self._uploader.note_closed(node)
        self._staging.drop_staged_if_idle(node)
        return node

    def note_let_go(self, tree: RunTree) -> None:
        """What is not in use of the run is not known any more."""
        self._small_files.forget_run(tree)

    def note_forgotten(self, node: Node) -> None:
        """The kernel does not refer to the node any more."""
        self._staging.drop_staged_if_idle(node)

    def _add(self, node: Node, flags: int, *, keeps_pages: bool) -> Opened:
        access = flags & os.O_ACCMODE
        # Who only writes has no use for the pages. One who reads as well may map them, and for O_SYNC and O_DSYNC
        # (which is one bit of it) the kernel sends an fsync after each write only where that goes through its pages.
        passes_pages = self._writes_pass_pages and access == os.O_WRONLY and not flags & os.O_DSYNC
        handle = self._next_handle
        self._next_handle += 1
        can_write = access != os.O_RDONLY
        self._handles[handle] = OpenFile(
            node, can_write=can_write, appends=bool(flags & os.O_APPEND), passes_pages=passes_pages
        )
        node.open_count += 1
        node.writer_count += can_write
        return Opened(handle, keeps_pages, passes_pages)

    def _check_writable(self, node: Node) -> None:
        if self._read_only:
            raise ReadOnlyMount
        node.tree.check_writable()

    async def _stage(self, node: Node) -> StagedFile:
        if node.staged is not None:
            return node.staged
        if node.pending is not None and node.pending.content:
            return self._staging.stage(node, Manifest())  # made here, and still empty
        content = await self.load_content(node)
        # Another writer may have been faster: stage() returns what it made.
        return self._staging.stage(node, content.manifest)

    def _truncate_to_nothing(self, node: Node) -> None:
        staged = node.staged
        if staged is None:
            # The staged file before its row: a row with content and no file would stand for an empty file.
            staged = self._staging.stage(node, Manifest())
            try:
                self._staging.note_content(node)
            except OSError:
                self._staging.unstage(node)
                raise
        else:
            self._staging.note_content(node)  # first: of what a full disk refuses, nothing has changed
            staged.truncate(0)
            self._staging.space.note_written(staged)
        node.set_size(0)
        node.touch()
        staged.note_written(node.mtime_ns)
        self._staging.note_content(node)
        if node.writer_count == 0:
            self._uploader.note_closed(node)

    async def load_content(self, node: Node) -> FileContent:
        """What the master's generation of the file consists of.

        Raises NotFound for a file that is gone or changes too often, and the client's errors. Cancelled:
        nothing changed.
        """
        for _ in range(_STALE_GENERATION_ATTEMPTS):
            known = self._known_content(node)
            if known is not None:
                return known
            # (The size that is shown may be of what was written here, and taken back.)
            generation, size_bytes = node.generation, node.published_size_bytes
            manifest = await self._load_manifest(node, generation)
            if manifest is None or node.generation != generation:
                continue
            if manifest.size_bytes != size_bytes:
                raise InternalError("manifest and size do not agree", size_bytes=size_bytes)
            return self._note_content(node, manifest)
        raise NotFound("the file's content changed too often to be read", node_id=node.node_id)

    def _known_content(self, node: Node) -> FileContent | None:
        """The node's content where no call is needed to know it."""
        if node.content is None:
            manifest = node.known_manifest()
            return self._note_content(node, manifest) if manifest is not None else None
        return node.content

    @staticmethod
    def _note_content(node: Node, manifest: Manifest) -> FileContent:
        node.content = content_of(node, manifest)
        return node.content

    async def _load_manifest(self, node: Node, generation: int) -> Manifest | None:
        task_id, node_id = node.tree.task_id, node.node_id
        manifest = await self._sealed_cache.load_manifest(task_id, node_id, generation)
        if manifest is not None:
            return manifest
        try:
            chunks = await self._client.get_manifest(task_id, node_id, generation)
        except NotFound:
            # Superseded, or gone: news of it is on the way.
            await trio.sleep(0.1)
            return None
        manifest = manifest_from_wire(chunks)
        if node.tree.is_sealed:  # a growing file has one a second, and none of them for long
            await self._sealed_cache.store_manifest(task_id, node_id, generation, manifest)
        return manifest


def _place_of_write(file: OpenFile, offset_bytes: int) -> int:
    """Where the bytes go that the kernel wants at an offset.

    It appends at the end that it saw last, and learns of one that moved elsewhere when somebody looks at the file. What
    others have appended meanwhile would be written over.
    """
    node = file.node
    return node.size_bytes if file.appends and node.size_moved_elsewhere else offset_bytes
