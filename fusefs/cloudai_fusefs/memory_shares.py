"""What a mount's memory is for: the budget of its `memory=`, divided, and the sum of all that is beside it.

The budget holds contents that are read: what is kept, what is being fetched or read from the disk cache, and
what waits to be written there. Beside it are the program, what is being sent, and tables. Trees are neither:
each name that is known costs about a KiB, and `names=` bounds them (`tree_memory`). Nor are requests that wait for a
master that is away (WAITING_BYTES).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cloudai_fusefs import (
    chunk_sender,
    disk_cache,
    handler_patience,
    range_reader,
    warmup,
    write_behind,
)
from cloudai_fusefs.chunk_flights import FETCHES_IN_FLIGHT_MAX
from cloudai_fusefs.mount_control import MEMORY_BYTES_DEFAULT, MEMORY_BYTES_MIN
from cloudai_model import direct_write
from cloudai_model.limits import CHUNK_BYTES_MAX, MIB

PROGRAM_BYTES: Final = 56 * MIB
"""A mount that has just begun: the interpreter, gRPC and what they load. 52 MiB were measured."""

BESIDE_BYTES: Final = (
    PROGRAM_BYTES
    + chunk_sender.CHUNKS_IN_FLIGHT_MAX * chunk_sender.COPIES_IN_FLIGHT * CHUNK_BYTES_MAX
    + warmup.FETCHES_IN_FLIGHT_MAX * CHUNK_BYTES_MAX
    + direct_write.BUFFERS_MAX * CHUNK_BYTES_MAX
    + range_reader.RANGES_IN_FLIGHT_MAX * range_reader.RANGE_FETCH_BYTES_MAX
    + range_reader.CHUNKS_KNOWN_MAX * range_reader.CHUNK_KNOWN_BYTES
    + disk_cache.KNOWN_CHUNKS_MAX * disk_cache.KNOWN_CHUNK_BYTES
)
"""All that a mount takes beside its budget, whatever the number of open files."""

assert BESIDE_BYTES < 150 * MIB

WAITING_BYTES: Final = handler_patience.HANDLERS_MAX * handler_patience.WAITING_HANDLER_BYTES
"""As long as so many programs wait, and no longer."""

assert WAITING_BYTES < 20 * MIB

_FETCHES_MIN: Final = 2  # one that is waited for, one ahead of it
_DISK_THREADS_MIN: Final = 2  # a sweep holds one for as long as it takes


class MemoryShares(NamedTuple):
    """How a budget is divided."""

    kept_bytes: int
    fetches_max: int
    disk_threads_max: int
    write_behind_bytes: int


def divide_memory(budget_bytes: int) -> MemoryShares:
    """The shares of a budget of at least MEMORY_BYTES_MIN, which they do not exceed together."""
    fetches_max = min(max(budget_bytes // (4 * CHUNK_BYTES_MAX), _FETCHES_MIN), FETCHES_IN_FLIGHT_MAX)
    disk_threads_max = min(max(fetches_max // 2, _DISK_THREADS_MIN), disk_cache.DISK_THREADS_MAX)
    write_behind_bytes = min(budget_bytes // 8, write_behind.WAITING_BYTES_MAX)
    # A chunk that has arrived and waits for the disk is no fetch any more; half as many may.
    chunk_count = fetches_max + fetches_max // 2 + disk_threads_max
    return MemoryShares(
        kept_bytes=budget_bytes - write_behind_bytes - chunk_count * CHUNK_BYTES_MAX,
        fetches_max=fetches_max,
        disk_threads_max=disk_threads_max,
        write_behind_bytes=write_behind_bytes,
    )


# A reader's chunk stays until it has been read, and at the default each of eight has what is ahead of it too.
assert divide_memory(MEMORY_BYTES_MIN).kept_bytes >= 2 * CHUNK_BYTES_MAX
assert divide_memory(MEMORY_BYTES_DEFAULT).kept_bytes >= 8 * 5 * CHUNK_BYTES_MAX
