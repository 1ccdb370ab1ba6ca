"""What reading counts, for `cloudai status` and the metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class ReadCounters:
    """Where the bytes came from, since the mount began. A chunk counts once per read that touches it."""

    memory_hits: int = 0
    memory_misses: int = 0
    memory_bytes: int = 0
    """Answered from memory."""
    disk_hits: int = 0
    disk_misses: int = 0
    disk_bytes: int = 0
    """Read from the disk cache."""
    fetched_chunks: int = 0
    """Answers of the master, damaged ones included."""
    fetched_ranges: int = 0
    fetched_batches: int = 0
    """Calls that brought several small files."""
    fetched_bytes: int = 0
    damaged_chunks: int = 0
    """Answers of the master that were not the chunk."""
