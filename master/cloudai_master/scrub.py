"""The scrub: reads every stored chunk from the disk and compares it with its digest, at a bounded rate.

It works beside a running master, in its process or in another. What is damaged is set aside (`damage`), so
that the next writer of those bytes heals it. The order is that of the chunks' keys, so a pass can go on where
an earlier one stood.

A disk that is not mounted, or fails altogether, is no damage: the pass ends with an error and sets nothing of
it aside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from blake3 import blake3
from sqlalchemy import Connection, exists, func, select, tuple_

from cloudai_master.chunk_store import ChunkStore, ChunkUnreachable
from cloudai_master.damage import DamagedChunk, describe, set_aside_found
from cloudai_master.database import Database
from cloudai_master.schema import chunks, manifest_chunks, runs, users
from cloudai_model.errors import ChunkDamaged, InternalError
from cloudai_model.limits import MIB

# An operator waits for it, and what it leaves of a disk is enough for a master that serves from it.
BYTES_PER_SECOND_DEFAULT: Final = 100 * MIB

SLAB_CHUNKS: Final = 256

UNREACHABLE_IN_A_ROW_MAX: Final = 16
UNREACHABLE_FOLDERS_MAX: Final = 2
"""More in a row, of more folders than one that was lost, are not lost one by one. A pass goes by digest, and a folder
holds the chunks of one first byte."""

FORGOTTEN_NAMED_MAX: Final = 1000

FORGOTTEN: Final = "it was found to be damaged or gone, and nobody has stored it again"


class Position(NamedTuple):
    """The last chunk that was looked at, by its key."""

    user_key: int = 0
    digest: bytes = b""


class Looked(NamedTuple):
    """One chunk, looked at."""

    position: Position
    length_bytes: int
    damaged: DamagedChunk | None


class StoredAmount(NamedTuple):
    chunk_count: int
    size_bytes: int


class Pace:
    """Keeps a rate in bytes per second. Time in which nothing was asked for is not made up for."""

    def __init__(
        self,
        bytes_per_second: float,
        sleep: Callable[[float], object] = time.sleep,
        clock_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """`bytes_per_second` 0: no bound."""
        self._seconds_per_byte = 1 / bytes_per_second if bytes_per_second else 0.0
        self._sleep = sleep
        self._clock_seconds = clock_seconds
        self._free_at_seconds = clock_seconds()

    def keep(self, size_bytes: int) -> None:
        """Sleeps for as long as it takes until this many bytes more are within the rate."""
        now_seconds = self._clock_seconds()
        self._free_at_seconds = max(self._free_at_seconds, now_seconds) + size_bytes * self._seconds_per_byte
        if self._free_at_seconds > now_seconds:
            self._sleep(self._free_at_seconds - now_seconds)


class _ChunkRow(NamedTuple):
    user_key: int
    user: str
    digest: bytes
    length_bytes: int

    def looked(self, damaged: DamagedChunk | None) -> Looked:
        return Looked(Position(self.user_key, self.digest), self.length_bytes, damaged)


def scrub(database: Database, store: ChunkStore, pace: Pace, after: Position) -> Iterator[Looked]:
    """Looks at each chunk after the position, in order. Blocks on database and disk, and sleeps.

    Those that cannot be reached are held back until another one can, or all were looked at. Raises what the
    store raises; InternalError for more than UNREACHABLE_IN_A_ROW_MAX of them, of more folders than
    UNREACHABLE_FOLDERS_MAX, none of which is set aside.
    """
    unreachable: list[_ChunkRow] = []
    folders: set[bytes] = set()
    for row in _rows_after(database, after):
        try:
            damaged = _look_at(database, store, pace, row)
        except ChunkUnreachable as damage:
            unreachable.append(row)
            folders.add(row.digest[:1])
            if len(unreachable) > UNREACHABLE_IN_A_ROW_MAX and len(folders) > UNREACHABLE_FOLDERS_MAX:
                raise InternalError(
                    "chunks in a row cannot be read: is their disk there?",
                    count=len(unreachable),
                    first=unreachable[0].digest.hex(),
                ) from damage
            continue
        for held_back in unreachable:
            yield held_back.looked(_look_again(database, store, pace, held_back))
        unreachable.clear()
        folders.clear()
        yield row.looked(damaged)
    for held_back in unreachable:
        yield held_back.looked(_look_again(database, store, pace, held_back))


def stored_amount(database: Database) -> StoredAmount:
    """What a whole pass has to look at."""
    with database.read() as connection:
        count, size_bytes = connection.execute(
            select(func.count(), func.coalesce(func.sum(chunks.c.length_bytes), 0)).select_from(chunks)
        ).one()
    return StoredAmount(count, size_bytes)


def find_forgotten(database: Database) -> list[DamagedChunk]:
    """What files are made of and is not recorded as stored: set aside earlier and not healed since.

    FORGOTTEN_NAMED_MAX at most. Looks at every manifest.
    """
    with database.read() as connection:
        is_stored = exists().where(
            chunks.c.user_key == runs.c.user_key, chunks.c.digest == manifest_chunks.c.digest
        )
        rows = connection.execute(
            select(runs.c.user_key, users.c.name, manifest_chunks.c.digest)
            .distinct()
            .select_from(manifest_chunks)
            .join(runs, runs.c.run_key == manifest_chunks.c.run_key)
            .join(users, users.c.user_key == runs.c.user_key)
            .where(runs.c.removed_at_ns.is_(None), ~is_stored)
            .limit(FORGOTTEN_NAMED_MAX)
        ).all()
        digests_of: dict[tuple[int, str], list[bytes]] = {}
        for user_key, user, digest in rows:
            digests_of.setdefault((user_key, user), []).append(digest)
        return [
            found
            for (user_key, user), digests in digests_of.items()
            for found in describe(connection, user_key, user, digests, FORGOTTEN)
        ]


def _rows_after(database: Database, after: Position) -> Iterator[_ChunkRow]:
    while True:
        with database.read() as connection:
            slab = _next_chunks(connection, after)
        if not slab:
            return
        yield from slab
        after = Position(slab[-1].user_key, slab[-1].digest)


def _next_chunks(connection: Connection, after: Position) -> list[_ChunkRow]:
    key = tuple_(chunks.c.user_key, chunks.c.digest)
    rows = connection.execute(
        select(chunks.c.user_key, users.c.name, chunks.c.digest, chunks.c.length_bytes)
        .join(users, users.c.user_key == chunks.c.user_key)
        .where(key > tuple_(after.user_key, after.digest))
        .order_by(chunks.c.user_key, chunks.c.digest)
        .limit(SLAB_CHUNKS)
    )
    return [_ChunkRow(*row) for row in rows]


def _look_at(database: Database, store: ChunkStore, pace: Pace, row: _ChunkRow) -> DamagedChunk | None:
    """Raises ChunkUnreachable: whether that is damage, its neighbours tell."""
    try:
        _compare(store, pace, row)
    except ChunkUnreachable:
        raise
    except ChunkDamaged:
        return _look_again(database, store, pace, row)
    return None


def _look_again(database: Database, store: ChunkStore, pace: Pace, row: _ChunkRow) -> DamagedChunk | None:
    """Sets it aside, unless it was healed, or collected, since its row was read."""
    try:
        _compare(store, pace, row)
    except ChunkDamaged as damage:
        return set_aside_found(database, row.user_key, row.user, row.digest, damage)
    return None


def _compare(store: ChunkStore, pace: Pace, row: _ChunkRow) -> None:
    hasher = blake3()
    length_bytes = 0
    for part in store.read_past_cache(row.user, row.digest):
        hasher.update(part)
        length_bytes += len(part)
        pace.keep(len(part))
    if length_bytes != row.length_bytes:
        raise ChunkDamaged("the chunk's file has another length")
    if hasher.digest() != row.digest:
        raise ChunkDamaged("its bytes are not those of its digest")
