"""What is done about a stored chunk that is damaged or gone: a line in the log, and it counts as missing.

Whoever writes those bytes again is then asked for them, and heals it; no commit can refer to it meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, and_, case, func, select

from cloudai_master.authorization import RUN_QUERY, Run
from cloudai_master.chunk_ownership import forget_chunk, stored_lengths
from cloudai_master.chunk_places import ChunkPlace
from cloudai_master.chunk_store import ChunkStore
from cloudai_master.database import Database
from cloudai_master.listings import find_path
from cloudai_master.run_tree import in_slabs
from cloudai_master.schema import manifest_chunks, nodes, runs
from cloudai_model.chunks import digest_of
from cloudai_model.errors import ChunkDamaged, MasterUnavailable, NoSpace

log = logging.getLogger(__name__)

FILES_NAMED_MAX: Final = 20
"""Of one chunk. The same bytes may be in thousands of files."""


@dataclass(frozen=True, kw_only=True)
class DamagedFile:
    """A file with a damaged chunk in it."""

    path: str
    """user/task/run/path; of a name that is gone, the node's id."""
    node_id: int
    chunk_index: int
    """The first place of the chunk in the file."""
    is_current: bool
    """False: in an earlier content of the file alone."""


@dataclass(frozen=True, kw_only=True)
class DamagedChunk:
    """A chunk that cannot be read, and what refers to it."""

    user: str
    digest: bytes
    reason: str
    files: tuple[DamagedFile, ...]
    """FILES_NAMED_MAX at most."""
    file_count: int

    def __str__(self) -> str:
        named = ", ".join(
            f"{file.path}, node {file.node_id}, chunk {file.chunk_index}"
            + ("" if file.is_current else " of an earlier content")
            for file in self.files
        )
        more = self.file_count - len(self.files)
        return (
            f"chunk {self.digest.hex()} of {self.user}: {self.reason}: {named or 'no file refers to it'}"
            + (f", and {more} more" if more else "")
        )


def read_verified(store: ChunkStore, owner: str, place: ChunkPlace) -> bytes:
    """The whole chunk, compared with its digest; raises ChunkDamaged."""
    data = store.read(owner, place.digest, 0, place.length_bytes)
    if digest_of(data) != place.digest:
        raise ChunkDamaged("its bytes are not those of its digest")
    return data


def set_aside(
    database: Database, run: Run, digest: bytes, node_id: int, chunk_index: int, damage: ChunkDamaged
) -> ChunkDamaged:
    """Logs one line that names the file being read, forgets the chunk, and returns the error that names it too.

    A full or busy database changes nothing about the line and the answer.
    """
    log.error(
        "%s: %s, node %d, chunk %d", damage, _path_for_log(database, run, node_id), node_id, chunk_index
    )
    try:
        with database.write() as transaction:
            forget_chunk(transaction, run.user_key, digest)
    except (NoSpace, MasterUnavailable) as error:
        # Whoever reads it next, or the scrub, tries again.
        log.warning("chunk %s is not set aside: %s", digest.hex(), error)
    return ChunkDamaged(damage.detail, node_id=node_id, chunk_index=chunk_index)


def _path_for_log(database: Database, run: Run, node_id: int) -> str:
    try:
        with database.read() as connection:
            return find_path(connection, run, node_id)
    except (NoSpace, MasterUnavailable):
        return f"{run.user}/{run.task}/{run.name}"


def set_aside_found(
    database: Database, user_key: int, user: str, digest: bytes, damage: ChunkDamaged
) -> DamagedChunk | None:
    """The same for a chunk that nobody asked for. None: it is not recorded as stored any more."""
    with database.write() as transaction:
        if not stored_lengths(transaction.connection, user_key, [digest]):
            return None
        forget_chunk(transaction, user_key, digest)
    # After the transaction: no writer waits while all manifests are looked at.
    with database.read() as connection:
        (found,) = describe(connection, user_key, user, [digest], damage.detail)
    log.error("%s: %s", damage.sentence, found)
    return found


def describe(
    connection: Connection, user_key: int, user: str, digests: Sequence[bytes], reason: str
) -> list[DamagedChunk]:
    """Each of these chunks with the files that are made of it. Looks at every manifest, once for 500 chunks."""
    rows_of: dict[bytes, list[tuple[int, int, int, bool]]] = {digest: [] for digest in digests}
    for slab in in_slabs(digests):
        for digest, *row in connection.execute(_files_of(user_key, slab)):
            rows_of[digest].append(tuple(row))
    run_keys = {run_key for rows in rows_of.values() for run_key, *_ in rows[:FILES_NAMED_MAX]}
    run_of = {
        row.run_key: Run(*row)
        for slab in in_slabs(run_keys)
        for row in connection.execute(RUN_QUERY.where(runs.c.run_key.in_(slab)))
    }
    return [
        DamagedChunk(
            user=user,
            digest=digest,
            reason=reason,
            files=tuple(
                DamagedFile(
                    path=find_path(connection, run_of[run_key], node_id),
                    node_id=node_id,
                    chunk_index=chunk_index,
                    is_current=bool(is_current),
                )
                for run_key, node_id, chunk_index, is_current in rows[:FILES_NAMED_MAX]
            ),
            file_count=len(rows),
        )
        for digest, rows in rows_of.items()
    ]


def _files_of(user_key: int, digests: Sequence[bytes]) -> Select[Any]:
    """Digest, run key, node id, first chunk index, whether it is in the content of now."""
    is_current = case((manifest_chunks.c.content_generation == nodes.c.content_generation, 1), else_=0)
    key = (manifest_chunks.c.digest, manifest_chunks.c.run_key, manifest_chunks.c.node_id)
    return (
        select(*key, func.min(manifest_chunks.c.chunk_index), func.max(is_current))
        .select_from(manifest_chunks)
        .join(runs, runs.c.run_key == manifest_chunks.c.run_key)
        .join(
            nodes,
            and_(nodes.c.run_key == manifest_chunks.c.run_key, nodes.c.node_id == manifest_chunks.c.node_id),
        )
        .where(
            runs.c.user_key == user_key,
            runs.c.removed_at_ns.is_(None),
            manifest_chunks.c.digest.in_(digests),
        )
        .group_by(*key)
        .order_by(*key)
    )
