"""A disk that a test can fill."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB


@contextmanager
def small_disk(directory: Path, size_mib: int) -> Iterator[Path]:
    """A file system of this size on the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    options = f"size={size_mib}m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def fill(disk: Path) -> Path:
    """Takes all that is free; returns the file that does so."""
    filler = disk / "filler"
    for block_bytes in (MIB, 4 * KIB):
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(block_bytes))
    assert os.statvfs(disk).f_bavail == 0
    return filler
