"""A state directory belongs to one mount at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_state_directory(directory: Path) -> Iterator[None]:
    """Holds the state directory's lock. Raises BlockingIOError while another mount has it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                error.errno, "the state directory is in use by another mount", str(directory)
            ) from None
        yield
    finally:
        os.close(descriptor)
