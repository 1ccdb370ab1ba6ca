"""How the bytes of requests come into the master's memory: of those who may, when there is room, within a time.

gRPC takes a message of up to MESSAGE_BYTES_MAX into memory as soon as it is asked for one, and says nothing of it
before it is whole. So it is not asked before the token was found good and there is room for what may come. Until
then a call has what its first flow-control window lets through (UNASKED_BYTES_MAX).
docs/decisions/0011-requests-in-memory.md has the sums.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from cloudai_master.message_budget import MessageBudget, Reservation
from cloudai_model.errors import InvalidRequest, MasterUnavailable
from cloudai_model.limits import CHUNK_BYTES_MAX, KIB, MESSAGE_BYTES_MAX, MIB

CHUNK_REQUEST_BYTES_MAX: Final = CHUNK_BYTES_MAX + 64 * KIB
"""Of a PutChunk, what an honest one has. gRPC has one limit for all calls: four times as much may come."""

CHUNKS_BYTES_MAX: Final = 512 * MIB
"""Of PutChunk: a user alone has 42 of them on their way, many workers on slow lines among them."""

COMMITS_BYTES_MAX: Final = 256 * MIB
"""Of CommitNodes: 16 on their way, 5 of one user. Apart from the chunks, which may be slow: a log's news is here."""

OTHERS_BYTES_MAX: Final = 256 * MIB
"""Of all other calls: 16 on their way, for the moment it takes a short one to be handed over."""

STRANGERS_BYTES_MAX: Final = 64 * MIB
"""Of calls that need no token: four at a time, one from a connection."""

SHARE_OF_FREE: Final = 1 / 2
"""What one user may have, of what nobody has."""

INTAKE_SECONDS_MAX: Final = 60.0
"""From a call's begin until its message is whole: a chunk at 0.6 Mbit/s."""

STRANGERS_MAX: Final = 64
"""Those that wait for it; the next is refused at once: they must not use up the calls that a master has."""

STRANGERS_SECONDS_MAX: Final = 2.0

SHORT_BYTES_MAX: Final = 64 * KIB
"""A request of this size is counted by nobody once it is there: a thousand calls are no burden."""

UNASKED_BYTES_MAX: Final = 64 * KIB
"""gRPC's first window of a call. It stays at that: see SERVER_OPTIONS in `rpc`."""

Read: TypeAlias = Callable[[], Awaitable[Any]]
"""Asks gRPC for the call's next message; something else than bytes when there is none."""


class NoMessage(InvalidRequest):
    """The peer has ended its messages, or the call."""

    sentence = "the call has no message"


class Intake:
    """All requests of a master. Belongs to the event loop's thread."""

    def __init__(self, *, seconds_max: float = INTAKE_SECONDS_MAX) -> None:
        self._seconds_max = seconds_max
        self._others = MessageBudget(OTHERS_BYTES_MAX, share_of_free=SHARE_OF_FREE)
        self._strangers = MessageBudget(STRANGERS_BYTES_MAX, share_of_free=SHARE_OF_FREE)
        self._stranger_count = 0
        self._own_budgets = {
            "PutChunk": (
                MessageBudget(CHUNKS_BYTES_MAX, share_of_free=SHARE_OF_FREE),
                CHUNK_REQUEST_BYTES_MAX,
            ),
            "CommitNodes": (
                MessageBudget(COMMITS_BYTES_MAX, share_of_free=SHARE_OF_FREE),
                MESSAGE_BYTES_MAX,
            ),
        }

    async def take(self, call: str, user: str, read: Read) -> tuple[bytes, Reservation]:
        """The request of a call, and its room, to be released when the call has ended.

        Raises MasterUnavailable when it is not whole in time, NoMessage when there is none. Cancelled: nothing is
        reserved.
        """
        budget, size_bytes = self._own_budgets.get(call, (self._others, MESSAGE_BYTES_MAX))
        return await _take(budget, user, size_bytes, read, self._seconds_max)

    async def take_from_stranger(self, connection: str, read: Read) -> bytes:
        """The next message of a call that needs no token, which is answered at once and not counted any more.

        Raises as take.
        """
        if self._stranger_count >= STRANGERS_MAX:
            raise MasterUnavailable("too many calls without a token")
        self._stranger_count += 1
        try:
            encoded, room = await _take(
                self._strangers, connection, MESSAGE_BYTES_MAX, read, STRANGERS_SECONDS_MAX
            )
        finally:
            self._stranger_count -= 1
        room.release()
        if len(encoded) > SHORT_BYTES_MAX:
            raise InvalidRequest("too long", size_bytes=len(encoded), limit_bytes=SHORT_BYTES_MAX)
        return encoded


async def _take(
    budget: MessageBudget, holder: str, size_bytes: int, read: Read, seconds_max: float
) -> tuple[bytes, Reservation]:
    try:
        async with asyncio.timeout(seconds_max):
            room = await budget.reserve(holder, size_bytes)
            try:
                encoded = await read()
            except BaseException:
                room.release()
                raise
    except TimeoutError:
        raise MasterUnavailable("the request did not arrive in time", timeout_seconds=seconds_max) from None
    if not isinstance(encoded, bytes):
        room.release()
        raise NoMessage
    room.shrink(len(encoded) if len(encoded) > SHORT_BYTES_MAX else 0)
    return encoded, room
