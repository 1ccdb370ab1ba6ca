"""Reading the bytes of files: ReadChunk and ReadFiles. Authorised by file, never by digest.

Bytes are sent as they are on disk: the reader verifies them, by the digest of the chunk or of its blocks, and
asks again with `verify` when they are not what they should be. So a read costs one look at remembered places
and one of the disk; the database is asked once for a slab of a file, and once a second whether its run is
still there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from cloudai_master.authorization import Caller, Run, find_run
from cloudai_master.chunk_messages import (
    BLOCK_DIGESTS_BYTES_MAX,
    ENVELOPE_BYTES_MAX,
    encode_read_chunk_response,
)
from cloudai_master.chunk_ownership import record_block_digests
from cloudai_master.chunk_places import ChunkPlace, ChunkPlaces, locate_only_chunks
from cloudai_master.chunk_store import ChunkStore
from cloudai_master.damage import read_verified, set_aside
from cloudai_master.database import Database
from cloudai_master.known_blocks import KnownBlocks
from cloudai_master.known_runs import KnownRuns
from cloudai_master.statuses import to_detail
from cloudai_model.chunks import block_digests_of
from cloudai_model.errors import ChunkDamaged, CloudAIError, InvalidRequest, MasterUnavailable, NoSpace
from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, READ_FILES_BYTES_MAX, READ_FILES_MAX
from cloudai_proto.storage.v1 import chunks_pb2 as chunks

AT_ONCE_BYTES_MAX: Final = BLOCK_BYTES
"""What may be read and copied on the event loop: twice as much took 25 microseconds."""

AT_ONCE_ANSWER_BYTES_MAX: Final = AT_ONCE_BYTES_MAX + BLOCK_DIGESTS_BYTES_MAX + ENVELOPE_BYTES_MAX
"""Of an answer that `read_chunk_at_once` gives."""

log = logging.getLogger(__name__)


def read_chunk_bytes_max(request: chunks.ReadChunkRequest) -> int:
    """How long `read_chunk` can make its answer to this, or what it reads for it: with `verify` the whole chunk."""
    length_bytes = CHUNK_BYTES_MAX
    if request.length_bytes and not request.verify:
        length_bytes = min(request.length_bytes, CHUNK_BYTES_MAX)
    digests_bytes = BLOCK_DIGESTS_BYTES_MAX if request.with_block_digests else 0
    return length_bytes + digests_bytes + ENVELOPE_BYTES_MAX


class FileReader:
    """Both calls, for any thread. All but `read_chunk_at_once` may block on the database and the chunk store."""

    def __init__(self, database: Database, store: ChunkStore) -> None:
        self._database = database
        self._store = store
        self._runs = KnownRuns(database)
        self._places = ChunkPlaces(database)
        self._blocks = KnownBlocks(database)

    def forget_run(self, task_id: str) -> None:
        """The run was removed."""
        self._runs.forget(task_id)

    def read_chunk(self, caller: Caller, request: chunks.ReadChunkRequest) -> bytes:
        """An encoded ReadChunkResponse."""
        run = self._runs.find(caller, request.task_id)
        place = self._places.locate(run, request.node_id, request.generation, request.chunk_index)
        offset_bytes = request.offset_bytes
        length_bytes = request.length_bytes or place.length_bytes - offset_bytes
        if not 0 < length_bytes <= place.length_bytes - offset_bytes:
            raise InvalidRequest(
                "not a range of the chunk",
                offset_bytes=offset_bytes,
                length_bytes=request.length_bytes,
                chunk_bytes=place.length_bytes,
            )
        data: bytes | memoryview
        block_digests = b""
        try:
            if request.verify:
                whole = memoryview(read_verified(self._store, run.user, place))
                data = whole[offset_bytes : offset_bytes + length_bytes]
            else:
                data = self._store.read(run.user, place.digest, offset_bytes, length_bytes)
            if request.with_block_digests:
                neighbours = self._places.neighbours(
                    run, request.node_id, request.generation, request.chunk_index
                )
                block_digests = self._block_digests(run, place, neighbours)
        except ChunkDamaged as damage:
            raise set_aside(
                self._database, run, place.digest, request.node_id, request.chunk_index, damage
            ) from damage
        return encode_read_chunk_response(data, block_digests)

    def read_chunk_at_once(self, caller: Caller, request: chunks.ReadChunkRequest) -> bytes | None:
        """The same answer when it is short and in memory, all of it; None when it would have to be waited for.

        For an event loop: a hop to a worker thread and back costs more than all that is done here. None also
        stands for what read_chunk will refuse; NotFound for a run that is remembered and not the caller's.
        """
        if request.verify:
            return None
        run = self._runs.found_lately(caller, request.task_id)
        if run is None:
            return None
        place = self._places.located_lately(run, request.node_id, request.generation, request.chunk_index)
        if place is None:
            return None
        offset_bytes = request.offset_bytes
        length_bytes = request.length_bytes or place.length_bytes - offset_bytes
        if not 0 < length_bytes <= min(place.length_bytes - offset_bytes, AT_ONCE_BYTES_MAX):
            return None
        block_digests: bytes | None = b""
        if request.with_block_digests:
            block_digests = self._blocks.found_lately(run.user_key, place)
        if block_digests is None:
            return None
        data = self._store.read_at_once(run.user, place.digest, offset_bytes, length_bytes)
        return None if data is None else encode_read_chunk_response(data, block_digests)

    def read_files(self, caller: Caller, request: chunks.ReadFilesRequest) -> chunks.ReadFilesResponse:
        """Ends before the file that would make it more than READ_FILES_BYTES_MAX, but never before the first."""
        if len(request.files) > READ_FILES_MAX:
            raise InvalidRequest("too many files in one call", count=len(request.files))
        versions = [(file.node_id, file.generation) for file in request.files]
        with self._database.read() as connection:
            run = find_run(connection, caller, request.task_id)
            places = locate_only_chunks(connection, run, versions)
        response = chunks.ReadFilesResponse()
        room_bytes = READ_FILES_BYTES_MAX
        for (node_id, _), place in zip(versions, places, strict=True):
            if isinstance(place, CloudAIError):
                response.files.add(error=to_detail(place))
                continue
            if place.length_bytes > room_bytes and response.files:
                break
            room_bytes -= place.length_bytes
            try:
                response.files.add(data=self._store.read(run.user, place.digest, 0, place.length_bytes))
            except ChunkDamaged as damage:
                error = set_aside(self._database, run, place.digest, node_id, 0, damage)
                response.files.add(error=to_detail(error))
        return response

    def _block_digests(self, run: Run, place: ChunkPlace, neighbours: Sequence[ChunkPlace]) -> bytes:
        """Those of the chunk's blocks, made now if an earlier version stored the chunk. Raises ChunkDamaged."""
        known = self._blocks.find(run.user_key, place, neighbours)
        if known is not None:
            return known
        made = block_digests_of(read_verified(self._store, run.user, place))
        try:
            with self._database.write() as transaction:
                record_block_digests(transaction, run.user_key, place.digest, made)
        except (NoSpace, MasterUnavailable) as error:
            # They can be made again: a full or busy database fails no read.
            log.warning("block digests are not kept: %s", error)
        return made
