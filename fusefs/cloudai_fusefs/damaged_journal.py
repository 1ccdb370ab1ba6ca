"""Reads what is left of a damaged journal: the rows that SQLite still finds and that are as they were written.

Of an earlier version's as well, which is not upgraded for it: what a person may want to look at stays as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cloudai_fusefs.journal import to_os_error
from cloudai_fusefs.journal_errors import UNREADABLE, is_damage
from cloudai_fusefs.journal_rows import JournalRecord, RemovalRecord, StrayRecord, record_from_row
from cloudai_fusefs.journal_schema import (
    SELECT_PENDING,
    SELECT_PENDING_OF_VERSION_1,
    SELECT_PENDING_OF_VERSION_3,
    SELECT_REMOVALS,
    SELECT_STRAYS,
    SELECT_STRAYS_OF_VERSION_4,
)


class WhatIsLeft(NamedTuple):
    """The rows of a damaged journal that can still be read and are as they were written, by node id."""

    records: dict[int, JournalRecord]
    strays: dict[int, StrayRecord]
    removals: dict[int, RemovalRecord]
    boot_id: str
    """"" when it cannot be read."""


def read_what_is_left(path: Path, node_ids: Iterable[int]) -> WhatIsLeft:
    """What can be saved of a damaged journal.

    `node_ids` are looked up one by one: a page that cannot be read hides what a scan finds behind it.
    Raises OSError where it is not for the bytes that they cannot be read, and nothing of SQLite's.
    """
    try:
        return _read(path, node_ids)
    except sqlite3.DatabaseError as error:  # of damage it is none: that was passed over
        raise to_os_error(error, path) from error


def _read(path: Path, node_ids: Iterable[int]) -> WhatIsLeft:
    records: dict[int, JournalRecord] = {}
    strays: dict[int, StrayRecord] = {}
    removals: dict[int, RemovalRecord] = {}
    boot_id = ""
    database = sqlite3.connect(path, isolation_level=None)
    try:
        with _passing_over_damage():
            # It must not be changed by a look at it: what a person may want to read stays.
            database.execute("PRAGMA wal_autocheckpoint = 0")
        select = SELECT_PENDING
        if not _has_column(database, "pending", "xattrs"):
            select = (
                SELECT_PENDING_OF_VERSION_3
                if _has_column(database, "pending", "row_check")
                else SELECT_PENDING_OF_VERSION_1
            )
        for order in ("ASC", "DESC"):
            _take_rows(database, f"{select} ORDER BY node_id {order}", (), JournalRecord, records)
        for node_id in node_ids:
            if node_id not in records:
                _take_rows(database, f"{select} WHERE node_id = ?", (node_id,), JournalRecord, records)
        has_places = _has_column(database, "strays", "places")
        select_strays = SELECT_STRAYS if has_places else SELECT_STRAYS_OF_VERSION_4
        for order in ("ASC", "DESC"):
            _take_rows(database, f"{select_strays} ORDER BY node_id {order}", (), StrayRecord, strays)
            _take_rows(database, f"{SELECT_REMOVALS} ORDER BY node_id {order}", (), RemovalRecord, removals)
        with _passing_over_damage():
            boot_id = "".join(str(row[0]) for row in database.execute("SELECT boot_id FROM boots"))
    finally:
        database.close()
    return WhatIsLeft(records, strays, removals, boot_id)


@contextmanager
def _passing_over_damage() -> Iterator[None]:
    """Raises all else: on a full disk every row would be one that cannot be read."""
    try:
        yield
    except UNREADABLE as error:
        if not is_damage(error):
            raise


def _has_column(database: sqlite3.Connection, table: str, name: str) -> bool:
    """False of rows that an earlier version has made, which did not know it."""
    try:
        database.execute(f"SELECT {name} FROM {table} LIMIT 0")  # noqa: S608 - names of table and column only
    except UNREADABLE as error:
        if not is_damage(error):
            raise
        return "no such column" not in str(error)
    return True


def _take_rows(
    database: sqlite3.Connection,
    query: str,
    values: tuple[int, ...],
    record_type: type[Any],
    found: dict[int, Any],
) -> None:
    with _passing_over_damage():
        for row in database.execute(query, values):
            record = record_from_row(record_type, row)
            if record is not None:
                found[record.node_id] = record
