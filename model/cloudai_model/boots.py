"""Which boot of the machine this is."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache  # no process outlives it
def current_boot_id() -> str:
    """Another one since the machine last started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
