"""What this mount has promised and not yet made durable, in an SQLite file that outlives the daemon.

One row for each node with a change that the master has not acknowledged, one for each node that was replaced
here and may have left a name at the master, and one for each file that was removed here and not yet there. A row
is written before the kernel's request is answered, without a sync: the page cache survives kill -9, and what must
survive the machine is made durable at the master (fsync) instead. What each column means: `journal_schema`.

Used from the mount's loop; a row costs 15-35 us. What syncs runs in a thread: checkpoints, and `sync`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio

from cloudai_fusefs.journal_errors import UNREADABLE, JournalDamaged, JournalTooNew, is_damage
from cloudai_fusefs.journal_log import (
    check_log,
    check_log_is_all,
    cut_off_refused,
    mark_of_open,
    mark_open,
    note_moved,
    open_index,
)
from cloudai_fusefs.journal_rows import JournalRecord, RemovalRecord, StrayRecord, record_from_row, row_of
from cloudai_fusefs.journal_schema import (
    SCHEMA,
    SCHEMA_VERSION,
    SCHEMA_VERSION_MAX,
    SELECT_PENDING,
    SELECT_REMOVALS,
    SELECT_STRAYS,
    UPGRADES,
    UPSERT_PENDING,
    UPSERT_REMOVAL,
    UPSERT_STRAY,
)
from cloudai_model.full_disks import is_lack_of_room
from cloudai_model.limits import KIB


class Journal:
    """The rows of one state directory."""

    def __init__(self, path: Path) -> None:
        """Opens the journal, brought to this version's schema, or makes it. All rows have been verified.

        Raises JournalTooNew and JournalDamaged, and the file is left as it is; OSError when the disk refuses.
        """
        self._path = path
        if _version_of(path) <= SCHEMA_VERSION:
            check_log_is_all(path)
        self._is_marked = mark_of_open(path).exists()  # by one who died, whose log this one has now
        # The log and its index get the mode of the database, whatever the umask.
        # Kept open: closing any descriptor of the file gives up the locks that SQLite has on it (2.2 of its "How To
        # Corrupt An SQLite Database File"), and another process that looks into it would take log and index away.
        self._index_descriptor: int | None = None
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._database = _connect(path)
        except BaseException:
            os.close(self._descriptor)
            raise
        try:
            self._prepare()
            self.records()
            self.strays()
            self.removals()
            self.boot_id  # noqa: B018 - to be verified as well
            self._mark_open()
        except UNREADABLE as error:
            self.close()
            raise _to_refusal(error, path) from error
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        execute = self._database.execute
        # First, and without a write: a newer version's file is left as it is.
        version = execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= version <= SCHEMA_VERSION_MAX:
            raise JournalDamaged("its version is none", path=str(self._path), version=version)
        if version > SCHEMA_VERSION:
            raise JournalTooNew(path=str(self._path), version=version, known_version=SCHEMA_VERSION)
        # Its index is exact now: the version was read through it.
        self._index_descriptor = check_log(self._path)
        execute("PRAGMA journal_mode = WAL")
        # A checkpoint syncs; checkpoint() does it off the loop.
        execute("PRAGMA wal_autocheckpoint = 0")
        execute("PRAGMA synchronous = NORMAL")
        self._check_writable(version)
        if version < SCHEMA_VERSION:
            self._upgrade(version)
        if self._index_descriptor is None:
            with suppress(FileNotFoundError):  # a file system on which SQLite keeps no log
                self._index_descriptor = open_index(self._path)
        check = execute("PRAGMA quick_check").fetchone()[0]
        if check != "ok":
            raise JournalDamaged(str(check), path=str(self._path))

    def _check_writable(self, version: int) -> None:
        """What cannot be opened for writing in this moment, SQLite has opened for reading, without a word."""
        try:
            self._database.execute("BEGIN")
            self._database.execute(f"PRAGMA user_version = {version}")
            self._database.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if _header_of(self._path)[_WRITE_FORMAT_OFFSET] > _WRITE_FORMAT_MAX:
                raise JournalDamaged("its format is none", path=str(self._path)) from error
            raise

    def _mark_open(self) -> None:
        """From here on its log belongs to it, which is there since the first look."""
        try:
            mark_open(self._path)
        except OSError as error:
            if not is_lack_of_room(error):
                raise
        else:
            self._is_marked = True

    def _upgrade(self, version: int) -> None:
        with self.together():
            if version == 0:
                self._database.execute(SCHEMA)
            for step in range(max(version, 1) + 1, SCHEMA_VERSION + 1):
                for statement in UPGRADES[step]:
                    self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _read(self, select: str, record_type: type[Any]) -> list[Any]:
        found = []
        for row in self._database.execute(select):
            record = record_from_row(record_type, row)
            if record is None:
                raise JournalDamaged("a row is not as it was written", path=str(self._path))
            found.append(record)
        return found

    def records(self) -> list[JournalRecord]:
        """All rows of `pending`: directories before what is in them, then in the order of their sequence.

        Raises JournalDamaged.
        """
        # By depth: a file may have been moved into a directory that was made after it.
        rows = self._read(SELECT_PENDING, JournalRecord)
        return sorted(rows, key=lambda record: (record.path.count(b"/"), record.sequence))

    def strays(self) -> list[StrayRecord]:
        """All rows of `strays`. Raises JournalDamaged."""
        return self._read(SELECT_STRAYS, StrayRecord)

    def removals(self) -> list[RemovalRecord]:
        """All rows of `removals`, the oldest first. Raises JournalDamaged."""
        rows: list[RemovalRecord] = self._read(SELECT_REMOVALS, RemovalRecord)
        return sorted(rows, key=lambda record: record.removed_at_ns)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written within is in the journal as a whole or not at all. Does not nest.

        An exception takes it back and goes on. Raises OSError as put.
        """
        self._database.execute("BEGIN")
        try:
            yield
            self._execute("COMMIT", ())
        except BaseException as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if not _is_busy(error.__cause__):
                self._cut_off_refused()
            raise

    def put(self, record: JournalRecord) -> None:
        """Writes the row, new or again. Raises OSError, ENOSPC or EDQUOT when there is no room: nothing changed."""
        record.written_at_ns = time.time_ns()
        self.put_again(record)

    def put_again(self, record: JournalRecord) -> None:
        """The same of a row that comes from another journal, and keeps its moment. Raises OSError as put."""
        self._execute(UPSERT_PENDING, row_of(record))

    def remove(self, node_id: int) -> None:
        """Takes the row away; nothing happens when there is none. Raises OSError as put."""
        self._execute("DELETE FROM pending WHERE node_id = ?", (node_id,))

    def put_stray(self, stray: StrayRecord) -> None:
        """Writes the row, new or again. Raises OSError as put."""
        self._execute(UPSERT_STRAY, row_of(stray))

    def remove_stray(self, node_id: int) -> None:
        """Takes the row away; nothing happens when there is none. Raises OSError as put."""
        self._execute("DELETE FROM strays WHERE node_id = ?", (node_id,))

    def put_removal(self, removal: RemovalRecord) -> None:
        """Writes the row, new or again. Raises OSError as put."""
        self._execute(UPSERT_REMOVAL, row_of(removal))

    def remove_removals(self, node_ids: Iterable[int]) -> None:
        """Takes these rows away, all or none; nothing happens where there is none. Raises OSError as put."""
        with self.together():
            for node_id in node_ids:
                self._execute("DELETE FROM removals WHERE node_id = ?", (node_id,))

    @property
    def boot_id(self) -> str:
        """Of the boot in which it was last opened; "" of a new journal and of version 1's."""
        row = self._database.execute("SELECT boot_id FROM boots").fetchone()
        return "" if row is None else str(row[0])

    def note_boot(self, boot_id: str) -> None:
        """Writes down the boot. Raises OSError as put; within `together`."""
        self._execute("DELETE FROM boots", ())
        self._execute("INSERT INTO boots VALUES (?)", (boot_id,))

    async def sync(self) -> None:
        """The rows written until now survive a loss of power afterwards. Leaves the loop. Raises OSError."""
        await trio.to_thread.run_sync(self.sync_now)

    def sync_now(self) -> None:
        """The same, in the caller's thread."""
        # On the log itself SQLite has no locks.
        log = os.open(self._path.with_name(self._path.name + "-wal"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(log)
        finally:
            os.close(log)
        assert self._descriptor is not None
        os.fdatasync(self._descriptor)

    async def checkpoint(self) -> None:
        """Moves the log into the database, so that it does not grow without bound. Leaves the loop.

        Raises OSError as put: the log stays as it is.
        """

        def run() -> None:
            database = _connect(self._path)
            try:
                # TRUNCATE keeps writers out for as long as it takes, so most of it is done before.
                database.execute("PRAGMA wal_checkpoint(PASSIVE)")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.DatabaseError as error:
                raise to_os_error(error, self._path) from error
            finally:
                if self._is_marked:
                    with suppress(OSError):
                        note_moved(self._path)
                database.close()

        await trio.to_thread.run_sync(run)

    def close(self) -> None:
        """Twice is once."""
        if self._is_marked:
            # Before SQLite takes the log away: a death in between must not leave the mark without it.
            mark = mark_of_open(self._path)
            try:
                mark.unlink(missing_ok=True)
            except OSError:
                with suppress(OSError):
                    os.utime(mark, ns=(0, 0))  # as if SQLite alone had moved the log: none is missed
            self._is_marked = False
        self._database.close()
        for descriptor in (self._descriptor, self._index_descriptor):
            if descriptor is not None:
                os.close(descriptor)
        self._descriptor = self._index_descriptor = None

    def _execute(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            self._database.execute(statement, values)
        except sqlite3.DatabaseError as error:
            if not self._database.in_transaction and not _is_busy(error):
                self._cut_off_refused()
            raise to_os_error(error, self._path) from error

    def _cut_off_refused(self) -> None:
        """Of a transaction that is taken back, nothing may be there after a death."""
        if self._index_descriptor is not None:
            with suppress(OSError, sqlite3.DatabaseError):
                # A checkpoint, or another process, would move the end.
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    cut_off_refused(self._path, self._index_descriptor)
                finally:
                    self._database.execute("ROLLBACK")


def _connect(path: Path) -> sqlite3.Connection:
    """For the calling thread. Raises OSError: SQLite opens the file at once, and there may be no descriptor left."""
    try:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=True)
    except sqlite3.DatabaseError as error:
        raise to_os_error(error, path) from error


# In the header of a database, see 1.3 of https://www.sqlite.org/fileformat2.html.
_WRITE_FORMAT_OFFSET: Final = 18
_WRITE_FORMAT_MAX: Final = 2
_VERSION_OFFSET: Final = 60


def _header_of(path: Path) -> bytes:
    """As much of the file's header as is looked at without SQLite; zeros where there is none."""
    length_bytes = _VERSION_OFFSET + 4
    try:
        with path.open("rb") as file:
            return file.read(length_bytes).ljust(length_bytes, b"\0")
    except FileNotFoundError:
        return bytes(length_bytes)


def _version_of(path: Path) -> int:
    return int.from_bytes(_header_of(path)[_VERSION_OFFSET:], "big")


def _is_busy(error: BaseException | None) -> bool:
    """Whether another has the lock: it was waited for, and nothing was written."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF == sqlite3.SQLITE_BUSY


def _to_refusal(error: sqlite3.DatabaseError | UnicodeDecodeError, path: Path) -> Exception:
    if is_damage(error):
        return JournalDamaged(str(error), path=str(path))
    return to_os_error(error, path)


# What SQLite says when the disk is full: plainly, or while its log's index grows.
_FULL_DISK_CODES: Final = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}

_PROBE_BYTES: Final = 64 * KIB
"""More than a row takes of the log, and than the log's index grows by at a time."""


def to_os_error(error: Exception, path: Path) -> OSError:
    """What SQLite says of a refusal of the disk: ENOSPC or EDQUOT where there is no room, else EIO."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    number = errno.ENOSPC if code in _FULL_DISK_CODES else errno.EIO
    if code & 0xFF == sqlite3.SQLITE_IOERR:
        # SQLite knows ENOSPC alone of what can be wrong with room, and keeps the errno of all else to itself.
        number = _lack_of_room(path.parent) or number
    return OSError(number, f"the journal cannot be written: {error}")


def _lack_of_room(directory: Path) -> int:
    """ENOSPC or EDQUOT, as the directory's disk answers a write of a few pages; 0: it takes them."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        if is_lack_of_room(error):
            return error.errno or errno.ENOSPC
    return 0
