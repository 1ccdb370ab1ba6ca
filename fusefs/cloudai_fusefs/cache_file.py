"""Files that may be lost but never be wrong: how both caches write them, and how they complain.

Blocking; callers run it in a thread. A file appears under its name whole or not at all, to every process
that shares the directory. Nothing is synced: after a power cut a file may hold anything, so whoever reads
one verifies it.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloudai_model.chunks import digest_of
from cloudai_model.direct_write import write_file
from cloudai_model.errors import PermissionRefused

TEMPORARY_PREFIX: Final = ".incoming-"
"""Of files that are being written; what a killed process left has it too."""

WARNING_INTERVAL_SECONDS: Final = 60.0

USE_INTERVAL_SECONDS: Final = 300.0
"""A time of use is this coarse: a hot chunk is not worth an inode write per read."""


TAG_NAME: Final = "CACHEDIR.TAG"

_TAG: Final = b"""Signature: 8a477f597d28d172789f06886806bc55
# This directory is a cache of CloudAI FS: what is in it can be fetched again, and need not be backed up.
# See https://bford.info/cachedir/
"""


_SCOPE_DIGITS: Final = 16  # 64 bits tell the masters of one machine apart


def scope_name(scope: str) -> str:
    """A name, for files that are to be believed only as far as who they came from is, and are not others'."""
    return digest_of(scope.encode()).hex()[:_SCOPE_DIGITS]


def make_private_directory(root: Path, directory: Path) -> None:
    """Makes root and the directory below it, and all between, for the owner alone; what is there stays.

    The root is tagged as a cache, so that backups pass it by.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (root / TAG_NAME).exists():
        write_cache_file(root / TAG_NAME, _TAG)
    place = root
    for name in directory.relative_to(root).parts:
        place /= name
        place.mkdir(mode=0o700, exist_ok=True)


def require_private(root: Path) -> None:
    """Raises PermissionRefused for a directory that somebody else may write into: its files are believed as far as
    they agree with themselves. One that is not there yet will be private. Raises OSError.
    """
    try:
        status = root.stat()
    except FileNotFoundError:
        return
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionRefused(
            "others can write into the cache directory: chmod 700 it", cache_dir=str(root)
        )


def write_cache_file(path: Path, data: bytes | memoryview, tail: bytes = b"") -> None:
    """Makes the file hold the data and the tail, mode 0600, replacing what had the name.

    Raises OSError (ENOSPC, ENOENT without the directory, ...) and leaves nothing then.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_file(handle, data)
            if tail:
                os.pwrite(handle, tail, len(data))
        finally:
            os.close(handle)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def note_used(place: int | Path) -> None:
    """Counts what is there, by its path or an open descriptor, as used now: those used longest ago go first."""
    now = time.time()
    with suppress(OSError):  # a cache that is only readable is a cache
        if abs(now - os.stat(place).st_mtime) >= USE_INTERVAL_SECONDS:  # noqa: PTH116 - or a descriptor
            os.utime(place, (now, now))


class RareWarning:
    """A warning that is logged at most once in WARNING_INTERVAL_SECONDS: a full disk fails every write."""

    def __init__(self, log: logging.Logger, message: str) -> None:
        self._log = log
        self._message = message
        self._logged_at: float | None = None

    def log(self, *arguments: object) -> None:
        now = time.monotonic()
        if self._logged_at is not None and now - self._logged_at < WARNING_INTERVAL_SECONDS:
            return
        self._logged_at = now
        self._log.warning(self._message, *arguments)
