"""What is done before the clock runs, so that the disk is nobody's business while it does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cloudai_benchmarks.processes import run_command

_READ_BYTES: Final = 4 * 1024**2
_SYNC_SECONDS_MAX: Final = 300.0


def read_files(paths: Iterable[Path]) -> None:
    """Brings them into the page cache."""
    buffer = bytearray(_READ_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def sync_disk(directory: Path) -> None:
    """What others left to be written is written. Of this filesystem alone: a sync of all would ask every mount."""
    run_command("sync", "-f", directory, seconds_max=_SYNC_SECONDS_MAX)
