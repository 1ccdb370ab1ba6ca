"""Which chunks a user has stored: rows of chunks, each written once its bytes are on disk, and of their blocks.

The statements are made once, as those of `run_tree_statements`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from cloudai_master.database import Transaction
from cloudai_master.run_tree import in_slabs
from cloudai_master.schema import chunk_blocks, chunks, users
from cloudai_model.chunks import Chunk
from cloudai_model.errors import InvalidRequest, MissingChunks, SizeMismatch
from cloudai_model.limits import DIGEST_BYTES

MISSING_DIGESTS_NAMED_MAX: Final = 100

_OF_USER: Final = chunks.c.user_key == bindparam("of_user")
_FIND_LENGTHS: Final = select(chunks.c.digest, chunks.c.length_bytes).where(
    _OF_USER, chunks.c.digest.in_(bindparam("digests", expanding=True))
)
_STORE_AGAIN: Final = (
    update(chunks)
    .where(_OF_USER, chunks.c.digest.in_(bindparam("digests", expanding=True)))
    .values(stored_at_ns=bindparam("now_ns"))
)
_ADD_CHUNKS: Final = insert(chunks)
_ADD_USED_BYTES: Final = (
    update(users)
    .where(users.c.user_key == bindparam("of_user"))
    .values(used_bytes=users.c.used_bytes + bindparam("added_bytes"))
)
_FIND_BLOCK_DIGESTS: Final = select(chunk_blocks.c.digest, chunk_blocks.c.block_digests).where(
    chunk_blocks.c.user_key == bindparam("of_user"),
    chunk_blocks.c.digest.in_(bindparam("digests", expanding=True)),
)
_ADD_BLOCK_DIGESTS: Final = insert(chunk_blocks)


def check_digest(digest: bytes) -> None:
    """Raises InvalidRequest for anything but 32 bytes."""
    if len(digest) != DIGEST_BYTES:
        raise InvalidRequest("a digest is 32 bytes", size_bytes=len(digest))


def stored_lengths(connection: Connection, user_key: int, digests: Iterable[bytes]) -> dict[bytes, int]:
    """The length in bytes of each of these chunks that the user has stored."""
    lengths: dict[bytes, int] = {}
    for slab in in_slabs(set(digests)):
        rows = connection.execute(_FIND_LENGTHS, {"of_user": user_key, "digests": slab})
        lengths.update((digest, length_bytes) for digest, length_bytes in rows)
    return lengths


def record_chunks(transaction: Transaction, user_key: int, lengths: Mapping[bytes, int]) -> None:
    """Notes that these chunks are on disk and the user's."""
    connection = transaction.connection
    known = stored_lengths(connection, user_key, lengths)
    now_ns = transaction.now_ns
    if known:
        for slab in in_slabs(known):
            connection.execute(_STORE_AGAIN, {"of_user": user_key, "digests": slab, "now_ns": now_ns})
    new = [
        {"user_key": user_key, "digest": digest, "length_bytes": length_bytes, "stored_at_ns": now_ns}
        for digest, length_bytes in lengths.items()
        if digest not in known
    ]
    if new:
        connection.execute(_ADD_CHUNKS, new)
        added_bytes = sum(lengths[digest] for digest in lengths.keys() - known.keys())
        connection.execute(_ADD_USED_BYTES, {"of_user": user_key, "added_bytes": added_bytes})


def find_block_digests(connection: Connection, user_key: int, digests: Iterable[bytes]) -> dict[bytes, bytes]:
    """The digests of the blocks of each of these chunks that has them recorded."""
    found: dict[bytes, bytes] = {}
    for slab in in_slabs(set(digests)):
        rows = connection.execute(_FIND_BLOCK_DIGESTS, {"of_user": user_key, "digests": slab})
        found.update((digest, block_digests) for digest, block_digests in rows)
    return found


def record_block_digests(
    transaction: Transaction, user_key: int, digest: bytes, block_digests: bytes
) -> None:
    """Notes them for a chunk that is recorded as stored; for another one nothing."""
    connection = transaction.connection
    if stored_lengths(connection, user_key, [digest]) and not find_block_digests(
        connection, user_key, [digest]
    ):
        connection.execute(
            _ADD_BLOCK_DIGESTS, {"user_key": user_key, "digest": digest, "block_digests": block_digests}
        )


def forget_chunk(transaction: Transaction, user_key: int, digest: bytes) -> None:
    """The stored bytes turned out to be damaged or gone: the chunk counts as missing until it is put again."""
    connection = transaction.connection
    known = stored_lengths(connection, user_key, [digest])
    if digest not in known:
        return
    for table in (chunk_blocks, chunks):
        connection.execute(delete(table).where(table.c.user_key == user_key, table.c.digest == digest))
    connection.execute(_ADD_USED_BYTES, {"of_user": user_key, "added_bytes": -known[digest]})


def require_stored(stored: Mapping[bytes, int], wanted: Collection[Chunk]) -> None:
    """Raises MissingChunks with the first of those that are not stored, SizeMismatch for another length."""
    missing = {chunk.digest: None for chunk in wanted if chunk.digest not in stored}
    if missing:
        raise MissingChunks(digests=tuple(missing)[:MISSING_DIGESTS_NAMED_MAX], missing_count=len(missing))
    for index, chunk in enumerate(wanted):
        if stored[chunk.digest] != chunk.length_bytes:
            raise SizeMismatch("not the stored chunk's length", index=index, length_bytes=chunk.length_bytes)
