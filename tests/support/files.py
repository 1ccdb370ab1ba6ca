"""Files as tests write them."""

from __future__ import annotations

import os
from pathlib import Path

from support.mount_process import wait_until


def write_synced(path: Path, content: bytes) -> None:
    """Writes, fsyncs and closes. Raises what fsync raises."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def has_content(path: Path, content: str) -> bool:
    """Whether it can be read, and is that."""
    try:
        return path.read_text() == content
    except OSError:
        return False


def wait_for_content(path: Path, content: str) -> None:
    wait_until(lambda: has_content(path, content), str(path))
