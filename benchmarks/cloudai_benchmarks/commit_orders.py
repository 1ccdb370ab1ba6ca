"""What a client without a mount is to commit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cloudai_benchmarks.write_place import MasterPlace

FILES_PER_COMMIT: Final = 10
FILE_BYTES: Final = 200
READY: Final = "ready"
"""What a client says when it could begin."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    master: MasterPlace
    task: str
    """A run is made in it."""
    file_count: int
    seed: str


def contents(orders: Orders) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file that is committed."""
    lot = random.Random(f"{orders.seed} {orders.task}")
    for number in range(orders.file_count):
        yield f"file-{number:05}", lot.randbytes(FILE_BYTES)
