"""Which chunk is where in a file: from (run, node, generation, index) to digest and length.

The manifest of a generation never changes, so what was read of it is remembered, a slab at a time, within
SLABS_BYTES_MAX of memory. That a run is still there and the caller may see it is not asked here.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Final, NamedTuple

from cachetools import LRUCache
from sqlalchemy import Connection, and_, or_, select

from cloudai_master.authorization import Run
from cloudai_master.database import Database
from cloudai_master.listings import chunks_of_generation
from cloudai_master.schema import manifest_chunks, nodes, superseded_contents
from cloudai_model.errors import CloudAIError, InvalidRequest, IsADirectory, NotFound
from cloudai_model.limits import DIGEST_BYTES
from cloudai_proto.storage.v1 import types_pb2 as types

SLAB_CHUNKS: Final = 256
"""1 GiB of full chunks is one query."""

NEIGHBOURS: Final = 32
assert SLAB_CHUNKS % NEIGHBOURS == 0

SLABS_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of memory: the slabs of files of 1.6 TiB in all, or 25,000 files of one chunk."""

# A slab's Python objects and its key, by sys.getsizeof; its arrays come on top.
SLAB_OBJECT_BYTES: Final = 600


class ChunkPlace(NamedTuple):
    """A chunk of a file, as it is found in the chunk store."""

    digest: bytes
    length_bytes: int


class _Slab:
    """Consecutive chunks of one generation, in two arrays: a tenth of the memory of a tuple for each."""

    __slots__ = ("_digests", "_lengths")

    def __init__(self, places: Iterable[ChunkPlace]) -> None:
        held = list(places)
        self._digests = b"".join(place.digest for place in held)
        self._lengths = array("I", (place.length_bytes for place in held))

    def __len__(self) -> int:
        return len(self._lengths)

    def get(self, index: int) -> ChunkPlace | None:
        if index >= len(self._lengths):
            return None
        start = index * DIGEST_BYTES
        return ChunkPlace(self._digests[start : start + DIGEST_BYTES], self._lengths[index])

    @property
    def memory_bytes(self) -> int:
        return SLAB_OBJECT_BYTES + len(self._digests) + len(self) * self._lengths.itemsize


_SlabKey = tuple[int, int, int, int]


class ChunkPlaces:
    """Finds chunks of files, and remembers. Safe for any thread."""

    def __init__(self, database: Database, bytes_max: int = SLABS_BYTES_MAX) -> None:
        self._database = database
        self._slabs: LRUCache[_SlabKey, _Slab] = LRUCache(bytes_max, getsizeof=lambda slab: slab.memory_bytes)
        self._lock = Lock()

    def locate(self, run: Run, node_id: int, generation: int, chunk_index: int) -> ChunkPlace:
        """Raises NotFound for a node, generation or chunk that is not there, IsADirectory.

        Blocks on the database unless a chunk of the same slab was asked for lately.
        """
        slab = self._known_slab(run, node_id, generation, chunk_index)
        if slab is None:
            number = chunk_index // SLAB_CHUNKS
            with self._database.read() as connection:
                slab = _read_slab(connection, run, node_id, generation, number)
            if slab:
                with self._lock:
                    self._slabs[run.run_key, node_id, generation, number] = slab
        place = slab.get(chunk_index % SLAB_CHUNKS)
        if place is None:
            raise NotFound("chunk", node_id=node_id, generation=generation, chunk_index=chunk_index)
        return place

    def located_lately(self, run: Run, node_id: int, generation: int, chunk_index: int) -> ChunkPlace | None:
        """As locate, without the database: None when it would have to be asked, or there is no such chunk."""
        slab = self._known_slab(run, node_id, generation, chunk_index)
        return None if slab is None else slab.get(chunk_index % SLAB_CHUNKS)

    def neighbours(self, run: Run, node_id: int, generation: int, chunk_index: int) -> list[ChunkPlace]:
        """What is remembered of the chunks around this one and itself: NEIGHBOURS at most, in order."""
        slab = self._known_slab(run, node_id, generation, chunk_index)
        if slab is None:
            return []
        first = chunk_index % SLAB_CHUNKS // NEIGHBOURS * NEIGHBOURS
        places = map(slab.get, range(first, first + NEIGHBOURS))
        return [place for place in places if place is not None]

    def _known_slab(self, run: Run, node_id: int, generation: int, chunk_index: int) -> _Slab | None:
        with self._lock:
            return self._slabs.get((run.run_key, node_id, generation, chunk_index // SLAB_CHUNKS))


def _read_slab(connection: Connection, run: Run, node_id: int, generation: int, number: int) -> _Slab:
    first = number * SLAB_CHUNKS
    rows = connection.execute(
        select(manifest_chunks.c.digest, manifest_chunks.c.length_bytes)
        .where(
            chunks_of_generation(connection, run, node_id, generation),
            manifest_chunks.c.chunk_index >= first,
            manifest_chunks.c.chunk_index < first + SLAB_CHUNKS,
        )
        .order_by(manifest_chunks.c.chunk_index)
    )
    return _Slab(ChunkPlace(*row) for row in rows)


FileGeneration = tuple[int, int]
"""Node id and generation."""


def locate_only_chunks(
    connection: Connection, run: Run, versions: Sequence[FileGeneration]
) -> list[ChunkPlace | CloudAIError]:
    """The chunk of each file of one chunk, or why there is none, in the same order.

    Three queries at most, and one when all are the files' generations of now. `versions` are at most
    READ_FILES_MAX.
    """
    found: dict[FileGeneration, ChunkPlace | CloudAIError] = {}
    content_generations: dict[FileGeneration, int] = {}
    earlier: list[FileGeneration] = []
    columns = nodes.c
    rows = connection.execute(
        select(
            columns.node_id,
            columns.kind,
            columns.generation,
            columns.content_generation,
            columns.digest,
            columns.size_bytes,
        ).where(columns.run_key == run.run_key, columns.node_id.in_({node_id for node_id, _ in versions}))
    )
    node_by_id = {row.node_id: row for row in rows}
    for version in set(versions):
        node_id, generation = version
        node = node_by_id.get(node_id)
        if node is None:
            found[version] = NotFound("node", node_id=node_id)
        elif node.kind != types.NODE_KIND_FILE:
            found[version] = IsADirectory("only a file has content", node_id=node_id)
        elif node.generation == generation and node.digest:
            found[version] = ChunkPlace(node.digest, node.size_bytes)
        elif node.content_generation <= generation <= node.generation:
            content_generations[version] = node.content_generation
        else:
            earlier.append(version)
    content_generations |= _superseded(connection, run, earlier)
    found |= _only_chunks(connection, run, content_generations)
    return [
        found.get(version, NotFound("generation", node_id=version[0], generation=version[1]))
        for version in versions
    ]


def _superseded(
    connection: Connection, run: Run, versions: Sequence[FileGeneration]
) -> dict[FileGeneration, int]:
    """The generation at which the content of each began, of those that have been superseded since."""
    if not versions:
        return {}
    columns = superseded_contents.c
    rows = connection.execute(
        select(columns.node_id, columns.content_generation, columns.last_generation).where(
            columns.run_key == run.run_key,
            or_(
                *(
                    and_(
                        columns.node_id == node_id,
                        columns.content_generation <= generation,
                        columns.last_generation >= generation,
                    )
                    for node_id, generation in versions
                )
            ),
        )
    )
    contents_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for node_id, first, last in rows:
        contents_of[node_id].append((first, last))
    return {
        (node_id, generation): first
        for node_id, generation in versions
        for first, last in contents_of[node_id]
        if first <= generation <= last
    }


def _only_chunks(
    connection: Connection, run: Run, content_generations: dict[FileGeneration, int]
) -> dict[FileGeneration, ChunkPlace | CloudAIError]:
    """The chunk of each of these contents, as it was at its generation."""
    if not content_generations:
        return {}
    columns = manifest_chunks.c
    rows = connection.execute(
        select(
            columns.node_id,
            columns.content_generation,
            columns.generation,
            columns.digest,
            columns.length_bytes,
        ).where(
            columns.run_key == run.run_key,
            # Two tell whether it is one.
            columns.chunk_index < 2,
            or_(
                *(
                    and_(columns.node_id == node_id, columns.content_generation == content_generation)
                    for (node_id, _), content_generation in content_generations.items()
                )
            ),
        )
    )
    chunks_of: dict[FileGeneration, list[tuple[int, ChunkPlace]]] = defaultdict(list)
    for node_id, content_generation, added_at, digest, length_bytes in rows:
        chunks_of[node_id, content_generation].append((added_at, ChunkPlace(digest, length_bytes)))
    found: dict[FileGeneration, ChunkPlace | CloudAIError] = {}
    for version, content_generation in content_generations.items():
        node_id, generation = version
        places = [
            place for added_at, place in chunks_of[node_id, content_generation] if added_at <= generation
        ]
        if len(places) == 1:
            found[version] = places[0]
        else:
            found[version] = InvalidRequest("the file is not one chunk", node_id=node_id)
    return found
