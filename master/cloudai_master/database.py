"""Transactions on the names database. The one module that knows which database it is.

SQLite: WAL, so that readers never wait; synchronous=FULL, so that a commit is on disk when it returns; one
writer at a time. Everything here blocks: callers run it in a worker thread.

Promises: a transaction happens as a whole or not at all; what it touched is announced only after it has
happened; a full disk is NoSpace and leaves the database as it was.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError

from cloudai_master.schema import SCHEMA_REVISION
from cloudai_model.errors import InternalError, InvalidRequest, MasterUnavailable, NoSpace

BUSY_TIMEOUT_SECONDS: Final = 20
"""How long a write waits for another process (a token command beside a running master)."""

CONNECTIONS_MAX: Final = 32
"""More than the worker threads of a master, so that none of them waits for a connection."""

# What SQLite says when the disk is full: plainly, or while it grows its log or its shared index.
_FULL_DISK_CODES: Final = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}


@dataclass
class Transaction:
    """One write transaction. Its connection commits when the function that was given to `write` returns."""

    connection: Connection
    now_ns: int
    touched_runs: set[int] = field(default_factory=set)
    """Keys of the runs whose watchers are to be woken."""
    touched_users: set[int] = field(default_factory=set)


Announce = Callable[[Transaction], None]


def _ignore(_: Transaction) -> None:
    """Nobody watches."""


class Database:
    """The engine, its one-writer rule, and its errors in our words. Safe for any thread."""

    def __init__(self, engine: Engine, announce: Announce = _ignore) -> None:
        """`announce` is called in the writing thread after each commit; it must not block or raise."""
        self._engine = engine
        self._announce = announce
        self._writing = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the database for as long as it is open."""
        with _our_errors(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """One transaction, alone in this process; rolled back when the block raises."""
        with _our_errors(), self._writing:
            with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
                transaction = Transaction(connection, time.time_ns())
                yield transaction
            self._announce(transaction)

    def migrate(self) -> None:
        """Brings the schema to this version, from nothing or from any earlier one."""
        if self._find_revision() == SCHEMA_REVISION:
            return
        # Here and not above: its import is a fifth of all that a token command does.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", "cloudai_master:migrations")
        # One transaction: of two processes that start together, one migrates and the other waits.
        with self.write() as transaction:
            config.attributes["connection"] = transaction.connection
            command.upgrade(config, "head")

    def _find_revision(self) -> str | None:
        """The last migration that was made here; None before the first."""
        with self.read() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()

    def close(self) -> None:
        self._engine.dispose()


def open_sqlite(path: Path | None) -> Engine:
    """An engine on a database file, made when it is missing; None keeps it in memory, for one thread."""
    if path is None:
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = create_engine(
            f"sqlite:///{path}",
            connect_args={"timeout": BUSY_TIMEOUT_SECONDS},
            pool_size=CONNECTIONS_MAX,
            max_overflow=0,
        )
    event.listen(engine, "connect", _set_up_connection)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up_connection(connection: sqlite3.Connection, _: Any) -> None:
    # The driver's own idea of when a transaction begins is off: `_begin` says it.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-65536"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # IMMEDIATE: a write that starts as a read can be refused half-way when somebody else wrote meanwhile.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_BUSY:
            raise MasterUnavailable("the names database is busy") from error
        if code in _FULL_DISK_CODES:
            raise NoSpace("the disk of the names database is full") from error
        raise InternalError("the names database failed", error=type(error.orig).__name__) from error
    except OverflowError as error:
        # The wire's numbers have 64 bits, the database's 63 and a sign.
        raise InvalidRequest("a number is out of range") from error
