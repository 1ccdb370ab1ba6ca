"""What this mount has promised and not yet made durable, in an SQLite file that outlives the daemon.

One row for each node with a change that the master has not acknowledged. A row is written before the
kernel's request is answered, without a sync: the page cache survives kill -9, and what must survive the
machine is made durable at the master (fsync) instead. The column comments below are the reference.

Used from the mount's loop; a row costs 10-30 us. Checkpoints, which do sync, run in a thread.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from cloudai_model.errors import CloudAIError

SCHEMA_VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE pending (
    node_id        INTEGER PRIMARY KEY, -- as the master knows it or will know it
    user           TEXT NOT NULL,       -- of the run
    task_id        TEXT NOT NULL,       -- of the run
    sequence       INTEGER NOT NULL,    -- order of first change
    kind           INTEGER NOT NULL,    -- NodeKind on the wire
    path           BLOB NOT NULL,       -- in the run, when the row was last written
    parent_node_id INTEGER NOT NULL,    -- directory of the path, which may have moved since; 0: root; or
                                        -- a node without a name, to be removed at the master, see note_path
                                        -- (of a file that the master is about to replace: what replaces it)
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
    committed      BLOB NOT NULL,       -- digest of the manifest this mount committed last; empty: none
    written_at_ns  INTEGER NOT NULL     -- of the row: staged bytes after it are newer than mtime_ns
) WITHOUT ROWID
"""


@dataclass(kw_only=True)
class JournalRecord:
    """One row; fields as the columns."""

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


_COLUMNS: Final = tuple(JournalRecord.__dataclass_fields__)
_UPSERT: Final = (
    f"INSERT OR REPLACE INTO pending ({', '.join(_COLUMNS)}) "  # noqa: S608 - column names only
    f"VALUES ({', '.join(f':{column}' for column in _COLUMNS)})"
)


class JournalUnusable(CloudAIError):
    """The journal is damaged or from a newer version."""

    reason = ""
    sentence = "the journal cannot be used"


class Journal:
    """The rows of one state directory."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the journal. Raises JournalUnusable; the file is left as it is."""
        self._path = path
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=True)
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise JournalUnusable(str(error), path=str(path)) from error
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        execute = self._database.execute
        execute("PRAGMA journal_mode = WAL")
        # A checkpoint syncs; checkpoint() does it off the loop.
        execute("PRAGMA wal_autocheckpoint = 0")
        execute("PRAGMA synchronous = NORMAL")
        version = execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            execute("BEGIN")
            execute(_SCHEMA)
            execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            execute("COMMIT")
        elif version > SCHEMA_VERSION:
            raise JournalUnusable("it was written by a newer version", path=str(self._path), version=version)
        check = execute("PRAGMA quick_check").fetchone()[0]
        if check != "ok":
            raise JournalUnusable(str(check), path=str(self._path))

    def put(self, record: JournalRecord) -> None:
        """Writes the row, new or again. Raises OSError, ENOSPC when the disk is full: nothing changed."""
        record.written_at_ns = time.time_ns()
        try:
            self._database.execute(_UPSERT, vars(record))
        except sqlite3.OperationalError as error:
            raise _to_os_error(error) from error

    def remove(self, node_id: int) -> None:
        """Takes the row away; nothing happens when there is none. Raises OSError as put."""
        try:
            self._database.execute("DELETE FROM pending WHERE node_id = ?", (node_id,))
        except sqlite3.OperationalError as error:
            raise _to_os_error(error) from error

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is put and removed inside is in the journal as a whole or not at all, also after a death.

        With no await inside: whatever else were written meanwhile would share its fate. Raises OSError as put.
        """
        try:
            self._database.execute("BEGIN")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                # SQLite may have rolled back by itself: of a full disk, for one.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise _to_os_error(error) from error

    def records(self) -> Iterator[JournalRecord]:
        """All rows, directories before what is in them, then in the order of their sequence."""
        query = f"SELECT {', '.join(_COLUMNS)} FROM pending ORDER BY sequence"  # noqa: S608
        records = [
            JournalRecord(**dict(zip(_COLUMNS, row, strict=True)))
            for row in self._database.execute(query).fetchall()
        ]
        # By depth: a file may have been moved into a directory that was made after it.
        records.sort(key=lambda record: record.path.count(b"/"))
        for record in records:
            record.place = bool(record.place)
            record.has_content = bool(record.has_content)
            yield record

    async def checkpoint(self) -> None:
        """Moves the log into the database, so that it does not grow without bound. Leaves the loop.

        Raises OSError as put: the log stays as it is.
        """

        def run() -> None:
            database = sqlite3.connect(self._path, isolation_level=None)
            try:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.OperationalError as error:
                raise _to_os_error(error) from error
            finally:
                database.close()

        await trio.to_thread.run_sync(run)

    def close(self) -> None:
        self._database.close()


def _to_os_error(error: sqlite3.OperationalError) -> OSError:
    number = errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
    return OSError(number, f"the journal cannot be written: {error}")
