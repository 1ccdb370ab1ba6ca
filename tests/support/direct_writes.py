"""Which writes go past the page cache."""

from __future__ import annotations

import fcntl
import os

import pytest


def note_direct_writes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows with each `pwrite` of this process: whether it went past the page cache."""
    found: list[bool] = []
    real_pwrite = os.pwrite

    def pwrite(descriptor: int, data: memoryview, offset_bytes: int) -> int:
        found.append(bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT))
        return real_pwrite(descriptor, data, offset_bytes)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return found
