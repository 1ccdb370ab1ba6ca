"""A master's data directory: what is in it, and that one master alone works in it.

names.db     the names database (with its -wal and -shm)
chunks/      the chunk store; incoming/ is its half-written files
token.key    signs tokens; who reads it can make any
lock         held by the running master
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cloudai_master.database import Announce, Database, open_sqlite

DATABASE_NAME: Final = "names.db"


class DataDirTaken(Exception):
    """Another master is running on the directory."""


class DataDir:
    """The directory, 0700, made when it is missing."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self.key_path = path / "token.key"

    def open_database(self, announce: Announce | None = None) -> Database:
        """The names database, with its schema brought up to this version."""
        engine = open_sqlite(self.path / DATABASE_NAME)
        database = Database(engine) if announce is None else Database(engine, announce)
        database.migrate()
        return database

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock, which the kernel drops with the process. Raises DataDirTaken at once."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataDirTaken(f"another master is running on {self.path}") from None
            yield
        finally:
            os.close(descriptor)
