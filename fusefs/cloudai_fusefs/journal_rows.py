"""The journal's rows as values, and the check that tells whether one is as it was written.

SQLite has no checksums in its database: a flipped bit in a path would be another path.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class DiskState(IntEnum):
    """What a loss of power leaves of a node's staged bytes."""

    UNKNOWN = 0
    """They are in the page cache, and perhaps on the disk."""
    ON_DISK = 1
    """All of them are there: synced, and not written since."""
    MAYBE_LOST = 2
    """Power was lost while they were UNKNOWN, and nobody has said since that they are right."""


@dataclass(kw_only=True)
class JournalRecord:
    """One row of `pending`; fields as the columns."""

    node_id: int
    user: str
    task_id: str
    sequence: int
    kind: int
    path: bytes
    parent_node_id: int
    place: bool
    has_content: bool
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    symlink_target: bytes = b""
    base: bytes = b""
    base_generation: int = 0
    committed: bytes = b""
    written_at_ns: int = 0
    disk_state: int = DiskState.UNKNOWN
    xattrs: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class StrayRecord:
    """One row of `strays`; fields as the columns."""

    node_id: int
    user: str
    task_id: str
    after_node_id: int
    places: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class RemovalRecord:
    """One row of `removals`; fields as the columns."""

    node_id: int
    user: str
    task_id: str
    parent_node_id: int
    name: bytes
    generation: int
    removed_at_ns: int


def row_of(record: JournalRecord | StrayRecord | RemovalRecord) -> tuple[object, ...]:
    """The values of the record's row, its check last."""
    # SQLite has no booleans: as what comes back, or the check would differ.
    values = tuple(int(value) if isinstance(value, int) else value for value in vars(record).values())
    return (*values, _check_of_row(type(record), values))


def record_from_row(record_type: type[Any], row: tuple[Any, ...]) -> Any:
    """The record of a row as it was selected; None when it is not as it was written."""
    *values, check = row
    if check is None and record_type is JournalRecord:
        # Of version 1, which kept no check: at least it must be of the right kind.
        given = {"int": int, "bool": int, "str": str, "bytes": bytes, "bytes | None": type(None)}
        types = [given[str(field.type)] for field in record_type.__dataclass_fields__.values()]
        if any(value.__class__ is not type_ for value, type_ in zip(values, types, strict=True)):
            return None
    elif check != _check_of_row(record_type, tuple(values)):
        return None
    record = record_type(**dict(zip(record_type.__dataclass_fields__, values, strict=True)))
    if isinstance(record, JournalRecord):
        record.place = bool(record.place)
        record.has_content = bool(record.has_content)
        record.disk_state = DiskState(record.disk_state)
    return record


def _check_of_row(record_type: type[Any], values: tuple[object, ...]) -> int:
    """Of a row of `pending` without a word of extended attributes as before version 4, which had no column for them; of
    one of `strays` without its places as before version 5.
    """
    is_short = record_type in (JournalRecord, StrayRecord) and values[-1] is None
    return check_of(values[:-1] if is_short else values)


def check_of(values: tuple[object, ...]) -> int:
    return zlib.crc32(repr(values).encode(errors="surrogatepass"))
