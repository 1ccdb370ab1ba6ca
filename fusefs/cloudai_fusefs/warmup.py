"""Brings the content of files into the disk cache before somebody reads it.

What is fetched goes to disk and not into memory, a few answers at a time and in slots of its own: a warm-up
takes from readers neither what they have in memory nor their turn. What is cached already is not fetched again,
so that the next warm-up goes on where one was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple, TypeVar

import trio

from cloudai_fusefs.cache_sweep import KEPT_SHARE
from cloudai_fusefs.disk_cache import DISK_THREADS_MAX, DiskChunkCache
from cloudai_fusefs.managed_tree import LatestLink, ManagedTree
from cloudai_fusefs.mount_control import CachedIf, UncachedFile, WarmupProgress, WarmupReport
from cloudai_fusefs.namespace import Inode, Namespace
from cloudai_fusefs.node import Node
from cloudai_fusefs.open_files import OpenFiles
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.slots import Slots
from cloudai_fusefs.small_files import is_small_file
from cloudai_fusefs.tree_sync import TreeSync
from cloudai_fusefs.verifying_fetcher import VerifyingFetcher, WantedFile
from cloudai_model.chunks import Chunk
from cloudai_model.errors import CloudAIError, MasterUnavailable, NoSpace
from cloudai_model.limits import KIB, MIB, READ_FILES_BYTES_MAX, READ_FILES_MAX

T = TypeVar("T")
NoteProgress = Callable[[WarmupProgress], None]

FETCHES_IN_FLIGHT_MAX: Final = DISK_THREADS_MAX - 1
"""Of all warm-ups of a mount: each holds at most 4 MiB, and one thread of the disk cache is left to readers."""

MANIFESTS_IN_FLIGHT_MAX: Final = 8

ROUNDS_MAX: Final = 3
"""Files of an open run may change while they are fetched; what changes on and on is left."""

FAILURES_NAMED_MAX: Final = 100

ITEMS_AT_ONCE: Final = 1000
"""Looked at between two chances for others to run: about a millisecond."""

_DISK_BLOCK_BYTES: Final = 4 * KIB  # what a file takes of the usual file systems is a multiple of it


class _ChunkOfFile(NamedTuple):
    """Where a chunk is asked for."""

    node: Node
    chunk_index: int


@dataclass(slots=True)
class _Listing:
    """What a set of files consists of now: each distinct chunk once, in the order of the files."""

    places: dict[Chunk, _ChunkOfFile] = field(default_factory=dict)
    size_bytes: int = 0
    disk_bytes: int = 0

    def add(self, chunk: Chunk, place: _ChunkOfFile) -> None:
        if chunk not in self.places:
            self.places[chunk] = place
            self.size_bytes += chunk.length_bytes
            self.disk_bytes += chunk.length_bytes + -chunk.length_bytes % _DISK_BLOCK_BYTES


class Warmup:
    """The warm-ups of one mount."""

    def __init__(
        self,
        fetcher: VerifyingFetcher,
        disk_cache: DiskChunkCache,
        managed: ManagedTree,
        namespace: Namespace,
        sync: TreeSync,
        files: OpenFiles,
    ) -> None:
        self.fetcher = fetcher
        self.disk_cache = disk_cache
        self.files = files
        self.fetch_slots = Slots(FETCHES_IN_FLIGHT_MAX)
        self._managed = managed
        self._namespace = namespace
        self._sync = sync

    async def run(
        self, paths: Sequence[str], note_progress: NoteProgress, cached_if: CachedIf
    ) -> WarmupReport:
        """See MountControl.warmup."""
        nodes: dict[Node, None] = {}
        with ExitStack() as holding:
            for path in paths:
                await self._collect(await self._namespace.find(path), nodes, holding)
            return await _FileSet(self, nodes, note_progress).bring(cached_if)

    async def _collect(self, inode: Inode, nodes: dict[Node, None], holding: ExitStack) -> None:
        """Adds the files at and below the inode, which stay known until the end."""
        if isinstance(inode, Node):
            await self._namespace.load(inode)
            holding.enter_context(inode.tree.held())
            await self._sync.keep_sealed(inode.tree)
            for some in _in_turns(inode.tree.walk(inode)):
                await trio.lowlevel.checkpoint()
                nodes.update((node, None) for node in some if node.is_file)
        elif not isinstance(inode, LatestLink):  # its run has a name of its own
            for _, child in await self._namespace.list(inode):
                await self._collect(child, nodes, holding)


class _FileSet:
    """One warm-up: what it is about, how far it is, and what went wrong."""

    def __init__(self, warmup: Warmup, nodes: Iterable[Node], note_progress: NoteProgress) -> None:
        self._warmup = warmup
        self._nodes = list(nodes)
        self._note_progress = note_progress
        self._asked: set[Chunk] = set()
        self._failures: dict[Chunk, str] = {}
        self._unlisted: dict[Node, str] = {}  # files whose manifest was refused
        self._master_failure: MasterUnavailable | None = None  # then nothing more is asked for
        self._missing_counts: dict[Node, int] = {}
        self._done_files = 0
        self._total_bytes = 0
        self._done_bytes = 0
        self._fetched_bytes = 0

    async def bring(self, cached_if: CachedIf) -> WarmupReport:
        """Raises NoSpace, MasterUnavailable as long as nothing is known; what fails later is reported."""
        listing = await self._list()
        if self._master_failure is not None:
            raise self._master_failure
        if cached_if is CachedIf.DIGEST_MATCHES:
            missing = await self._warmup.disk_cache.find_missing_or_damaged(listing.places)
        else:
            missing = await self._warmup.disk_cache.find_missing(listing.places)
        await self._begin_progress(listing, missing)
        for _ in range(ROUNDS_MAX):
            wanted = [chunk for chunk in missing if chunk not in self._asked]
            if not wanted or self._master_failure is not None:
                break
            await self._fetch(listing, wanted)
            # Anew: files may have changed, and what was fetched may not have been kept.
            listing = await self._list()
            missing = await self._warmup.disk_cache.find_missing(listing.places)
        return await self._report(listing, missing)

    # --- what there is -----------------------------------------------------------------------------------

    async def _list(self) -> _Listing:
        """Raises NoSpace as soon as it is more than the cache keeps."""
        await self._load_manifests()
        room_bytes = await self._warmup.disk_cache.room_bytes()
        listing = _Listing()
        for some in _in_turns(self._nodes):
            await trio.lowlevel.checkpoint()
            for node in some:
                for index, chunk in enumerate(_known_chunks(node)):
                    listing.add(chunk, _ChunkOfFile(node, index))
            if listing.disk_bytes > room_bytes:
                raise self._too_much(room_bytes)
        return listing

    def _too_much(self, room_bytes: int) -> NoSpace:
        size_bytes = sum(node.size_bytes for node in self._nodes)
        limit_bytes = self._warmup.disk_cache.bytes_max
        if room_bytes < int(limit_bytes * KEPT_SHARE):
            why = f"the cache's disk has room for {_in_mib(room_bytes)}"
        else:
            why = f"the cache keeps at most {_in_mib(room_bytes)} of its cache_size of {_in_mib(limit_bytes)}"
        return NoSpace(f"these are {len(self._nodes)} files of {_in_mib(size_bytes)}, and {why}")

    async def _load_manifests(self) -> None:
        """Those of files of several chunks, a few calls at once."""
        found: list[Node] = []
        for some in _in_turns(self._nodes):
            await trio.lowlevel.checkpoint()
            found += [node for node in some if _is_unknown(node) and node not in self._unlisted]
        unknown = iter(found)

        async def load_some() -> None:
            for node in unknown:
                if self._master_failure is not None:
                    return
                try:
                    await self._warmup.files.load_content(node)
                except MasterUnavailable as error:
                    self._master_failure = error
                except CloudAIError as error:
                    self._unlisted[node] = str(error)

        async with trio.open_nursery() as nursery:
            for _ in range(MANIFESTS_IN_FLIGHT_MAX):
                nursery.start_soon(load_some)

    # --- bringing it -------------------------------------------------------------------------------------

    async def _fetch(self, listing: _Listing, wanted: Sequence[Chunk]) -> None:
        self._asked.update(wanted)
        jobs = _divide(listing, wanted)

        async def carry_out() -> None:
            for job in jobs:
                if self._master_failure is not None:
                    return
                async with self._warmup.fetch_slots:
                    await self._fetch_job(job)

        async with trio.open_nursery() as nursery:
            for _ in range(FETCHES_IN_FLIGHT_MAX):
                nursery.start_soon(carry_out)

    async def _fetch_job(self, job: dict[Chunk, _ChunkOfFile]) -> None:
        """One chunk, or several small files in one call and those of them alone that did not come so."""
        if len(job) > 1:
            job = await self._fetch_together(job)
        for chunk, place in job.items():
            if self._master_failure is None:
                await self._fetch_one(chunk, place)

    async def _fetch_together(self, job: dict[Chunk, _ChunkOfFile]) -> dict[Chunk, _ChunkOfFile]:
        """What is left of the job. An answer may end early: then what follows is asked for again."""
        left: dict[Chunk, _ChunkOfFile] = {}
        asked = list(job.items())
        task_id = asked[0][1].node.tree.task_id
        while asked:
            wanted = [
                WantedFile(place.node.node_id, place.node.generation, chunk.digest) for chunk, place in asked
            ]
            try:
                found = await self._warmup.fetcher.fetch_files(task_id, wanted)
            except CloudAIError:
                found = []  # asked for alone each is brought, or says what is wrong
            if not found:
                return left | dict(asked)
            came = {
                chunk.digest: data for (chunk, _), data in zip(asked, found, strict=False) if data is not None
            }
            await self._warmup.disk_cache.put_many(came)
            for chunk, place in asked[: len(found)]:
                if chunk.digest in came:
                    self._note_brought(chunk, place)
                else:
                    left[chunk] = place
            asked = asked[len(found) :]
        return left

    async def _fetch_one(self, chunk: Chunk, place: _ChunkOfFile) -> None:
        try:
            content = await self._warmup.files.load_content(place.node)
            if content.manifest.chunks[place.chunk_index : place.chunk_index + 1] != (chunk,):
                # The file has changed: the next round knows what it is now, and who else has the chunk.
                self._asked.discard(chunk)
                return
            answer = await self._warmup.fetcher.fetch_chunk(content, place.chunk_index)
        except MasterUnavailable as error:
            self._master_failure = error
        except CloudAIError as error:
            self._failures[chunk] = str(error)
        else:
            await self._warmup.disk_cache.put(chunk.digest, answer.data, answer.block_digests)
            self._note_brought(chunk, place)

    # --- how far it is -----------------------------------------------------------------------------------

    async def _begin_progress(self, listing: _Listing, missing: Sequence[Chunk]) -> None:
        self._total_bytes = self._done_bytes = listing.size_bytes
        for some in _in_turns(missing):
            await trio.lowlevel.checkpoint()
            for chunk in some:
                node = listing.places[chunk].node
                self._missing_counts[node] = self._missing_counts.get(node, 0) + 1
                self._done_bytes -= chunk.length_bytes
        self._done_files = len(self._nodes) - len(self._missing_counts)
        self._tell()

    def _note_brought(self, chunk: Chunk, place: _ChunkOfFile) -> None:
        self._fetched_bytes += chunk.length_bytes
        if self._missing_counts.get(place.node):
            self._missing_counts[place.node] -= 1
            self._done_files += self._missing_counts[place.node] == 0
            self._done_bytes += chunk.length_bytes
        self._tell()

    def _tell(self) -> None:
        self._note_progress(
            WarmupProgress(
                files=len(self._nodes),
                size_bytes=self._total_bytes,
                done_files=self._done_files,
                done_bytes=self._done_bytes,
                fetched_bytes=self._fetched_bytes,
            )
        )

    async def _report(self, listing: _Listing, missing: Iterable[Chunk]) -> WarmupReport:
        lacking = set(missing)
        failed: list[UncachedFile] = []
        failed_files = skipped_files = 0
        for some in _in_turns(self._nodes):
            await trio.lowlevel.checkpoint()
            for node in some:
                reason = self._why_not_cached(node, lacking)
                skipped_files += reason == ""
                failed_files += bool(reason)
                if reason and len(failed) < FAILURES_NAMED_MAX:
                    failed.append(UncachedFile(path=node.tree.label_of(node), reason=reason))
        return WarmupReport(
            files=len(self._nodes),
            size_bytes=listing.size_bytes,
            fetched_bytes=self._fetched_bytes,
            skipped_files=skipped_files,
            failed_files=failed_files,
            failed=failed,
        )

    def _why_not_cached(self, node: Node, lacking: set[Chunk]) -> str | None:
        """A sentence; "": it is being written; None: it is cached, or gone."""
        if not node.is_attached:
            return None
        if node.staged is not None:
            return ""
        away = str(self._master_failure) if self._master_failure is not None else ""
        if _is_unknown(node):
            return self._unlisted.get(node, away)
        for chunk in _known_chunks(node):
            if chunk in lacking:
                if chunk in self._asked and not away:
                    away = "the disk cache did not keep it; the mount's log may say why"
                return self._failures.get(chunk, away)
        return None


def _is_unknown(node: Node) -> bool:
    """Whether the file's manifest has to be asked for."""
    return (
        node.content is None
        and not node.digest
        and node.size_bytes > 0
        and node.staged is None
        and node.is_attached
    )


def _known_chunks(node: Node) -> Sequence[Chunk]:
    """The chunks of the master's generation, none while there is a newer one here."""
    if node.staged is not None or not node.is_attached:
        return ()
    if node.content is not None:
        return node.content.manifest.chunks
    return (Chunk(node.size_bytes, node.digest),) if node.digest and node.size_bytes else ()


def _in_turns(items: Iterable[T]) -> Iterator[list[T]]:
    """As many at once as the loop may be held up for."""
    remaining = iter(items)
    while some := list(islice(remaining, ITEMS_AT_ONCE)):
        yield some


def _divide(listing: _Listing, wanted: Iterable[Chunk]) -> Iterator[dict[Chunk, _ChunkOfFile]]:
    """The jobs: small files of a run together, as many as one answer holds; other chunks one by one."""
    gathered: dict[RunTree, dict[Chunk, _ChunkOfFile]] = {}
    gathered_bytes: dict[RunTree, int] = {}
    for chunk in wanted:
        place = listing.places[chunk]
        if not is_small_file(place.node):
            yield {chunk: place}
            continue
        tree = place.node.tree
        some = gathered.setdefault(tree, {})
        size_bytes = gathered_bytes.get(tree, 0) + chunk.length_bytes
        if some and (size_bytes > READ_FILES_BYTES_MAX or len(some) == READ_FILES_MAX):
            yield some
            some, size_bytes = {}, chunk.length_bytes
            gathered[tree] = some
        some[chunk] = place
        gathered_bytes[tree] = size_bytes
    yield from filter(None, gathered.values())


def _in_mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.0f} MiB"
