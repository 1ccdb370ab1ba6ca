"""The journal's tables: what each column means, how those of an earlier version become this one's, and the statements
that read and write whole rows. The column comments below are the reference.
"""

from __future__ import annotations

from typing import Any, Final

from cloudai_fusefs.journal_rows import JournalRecord, RemovalRecord, StrayRecord

SCHEMA_VERSION: Final = 5

SCHEMA_VERSION_MAX: Final = 1000
"""A higher number is no version but damage."""

# Version 1, and each later one as what is done to the one before it.
SCHEMA: Final = """
CREATE TABLE pending (
    node_id        INTEGER PRIMARY KEY, -- as the master knows it or will know it
    user           TEXT NOT NULL,       -- of the run
    task_id        TEXT NOT NULL,       -- of the run
    sequence       INTEGER NOT NULL,    -- order of first change
    kind           INTEGER NOT NULL,    -- NodeKind on the wire
    path           BLOB NOT NULL,       -- in the run, when the row was last written
    parent_node_id INTEGER NOT NULL,    -- directory of the path, which may have moved since; 0: root, no name;
                                        -- of a file that the master is about to replace: what replaces it
    place          INTEGER NOT NULL,    -- 1: the node has yet to be put at its path
    has_content    INTEGER NOT NULL,    -- 1: its staged file is its content; none: empty
    mode           INTEGER NOT NULL,    -- attributes, as on the wire
    uid            INTEGER NOT NULL,
    gid            INTEGER NOT NULL,
    mtime_ns       INTEGER NOT NULL,
    ctime_ns       INTEGER NOT NULL,
    atime_ns       INTEGER NOT NULL,
    symlink_target BLOB NOT NULL,       -- of a symlink, else empty
    base           BLOB NOT NULL,       -- wire Manifest below the staged extents; empty: none
    base_generation INTEGER NOT NULL,   -- of that manifest; 0: none
    committed      BLOB NOT NULL,       -- digest of the manifest this mount committed last; empty: none, or unknown
    written_at_ns  INTEGER NOT NULL     -- of the row: staged bytes after it are newer than mtime_ns
) WITHOUT ROWID
"""

UPGRADES: Final = {
    2: (
        # What a loss of power leaves of its staged bytes: a DiskState
        "ALTER TABLE pending ADD COLUMN disk_state INTEGER NOT NULL DEFAULT 0",
        # CRC-32 of the other columns; NULL: version 1 wrote the row
        "ALTER TABLE pending ADD COLUMN row_check INTEGER",
        """
        CREATE TABLE strays (
            node_id       INTEGER PRIMARY KEY, -- has no name here; what it has at the master is to be removed
            user          TEXT NOT NULL,       -- of the run
            task_id       TEXT NOT NULL,       -- of the run
            after_node_id INTEGER NOT NULL,    -- only once this one, which replaced it, has no row in pending
            row_check     INTEGER NOT NULL     -- CRC-32 of the other columns
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE boots (
            boot_id TEXT NOT NULL -- of the machine when a mount last opened this journal; at most one row
        )
        """,
    ),
    3: (
        """
        CREATE TABLE removals (
            node_id        INTEGER PRIMARY KEY, -- file or symlink that lost its only name here
            user           TEXT NOT NULL,       -- of the run
            task_id        TEXT NOT NULL,       -- of the run
            parent_node_id INTEGER NOT NULL,    -- directory of the name
            name           BLOB NOT NULL,       -- to be removed at the master, if it stands for the node
            generation     INTEGER NOT NULL,    -- and if that has this one: another is somebody's later work
            removed_at_ns  INTEGER NOT NULL,    -- becomes the directory's mtime
            row_check      INTEGER NOT NULL     -- CRC-32 of the other columns
        ) WITHOUT ROWID
        """,
    ),
    4: (
        # All extended attributes of the node, a wire Xattrs; NULL: as the master has them
        "ALTER TABLE pending ADD COLUMN xattrs BLOB",
    ),
    5: (
        # Directories and names under which it may be by commits from here, a wire RemoveNodesRequest: others may have
        # given it more, which stay; NULL: version 4 wrote the row, any name is to be removed
        "ALTER TABLE strays ADD COLUMN places BLOB",
    ),
}
assert max(UPGRADES) == SCHEMA_VERSION <= SCHEMA_VERSION_MAX


def _select_of(table: str, record_type: type[Any]) -> str:
    columns = ", ".join(record_type.__dataclass_fields__)
    return f"SELECT {columns}, row_check FROM {table}"  # noqa: S608 - names of tables and columns only


def _upsert_of(table: str, record_type: type[Any]) -> str:
    columns = (*record_type.__dataclass_fields__, "row_check")
    values = ", ".join("?" * len(columns))
    return f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608


SELECT_PENDING: Final = _select_of("pending", JournalRecord)
SELECT_STRAYS: Final = _select_of("strays", StrayRecord)
SELECT_STRAYS_OF_VERSION_4: Final = SELECT_STRAYS.replace("places, row_check", "NULL, row_check")
assert SELECT_STRAYS_OF_VERSION_4 != SELECT_STRAYS
SELECT_REMOVALS: Final = _select_of("removals", RemovalRecord)

SELECT_PENDING_OF_VERSION_3: Final = SELECT_PENDING.replace("xattrs, row_check", "NULL, row_check")
SELECT_PENDING_OF_VERSION_1: Final = SELECT_PENDING.replace("disk_state, xattrs, row_check", "0, NULL, NULL")
assert SELECT_PENDING not in (SELECT_PENDING_OF_VERSION_3, SELECT_PENDING_OF_VERSION_1)

UPSERT_PENDING: Final = _upsert_of("pending", JournalRecord)
UPSERT_STRAY: Final = _upsert_of("strays", StrayRecord)
UPSERT_REMOVAL: Final = _upsert_of("removals", RemovalRecord)
