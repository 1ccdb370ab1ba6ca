"""How many bytes of answers are in the master's memory at a time, from the first one read to the last one sent.

A client that takes its answers slowly, or has stopped, keeps them in memory. So a connection holds no more than
a fraction of what is free: alone it has room for five full chunks, and a dozen of them that take nothing still
leave room for others. What is beyond waits, and room goes to the connection that holds the least. Belongs to
the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import Final

from cloudai_model.limits import CHUNK_BYTES_MAX, MIB

ANSWERS_BYTES_MAX: Final = 96 * MIB
"""Of answers as they are sent; gRPC holds each a second time while it sends it."""

SHARE_OF_FREE: Final = 1 / 4
"""What a connection may hold, of what nobody holds; one answer in any case."""

assert CHUNK_BYTES_MAX < ANSWERS_BYTES_MAX


class Reservation:
    """Room for one answer, for as long as it is in memory."""

    def __init__(self, budget: AnswerBudget, connection: str, size_bytes: int) -> None:
        self._budget = budget
        self._connection = connection
        self._size_bytes = size_bytes

    def shrink(self, size_bytes: int) -> None:
        """The answer turned out to be of this size; a larger one than reserved changes nothing."""
        if size_bytes < self._size_bytes:
            freed_bytes, self._size_bytes = self._size_bytes - size_bytes, size_bytes
            self._budget.give_back(self._connection, freed_bytes)

    def release(self) -> None:
        """The answer was sent, or is not wanted any more. Twice is once."""
        self.shrink(0)


class AnswerBudget:
    """Invariants: held_bytes is the sum of what connections hold; nobody waits who could be given room."""

    def __init__(self, bytes_max: int = ANSWERS_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self.held_bytes = 0
        self._held_by: defaultdict[str, int] = defaultdict(int)
        self._waiting: defaultdict[str, deque[tuple[int, asyncio.Future[None]]]] = defaultdict(deque)

    async def reserve(self, connection: str, size_bytes: int) -> Reservation:
        """Room for an answer of this size, at once or in its turn. Cancelled: nothing is reserved.

        An answer larger than all there is gets room once nobody holds any.
        """
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[connection].append((size_bytes, room))
        self._hand_out()
        try:
            await room
        except asyncio.CancelledError:
            if room.cancelled():
                self._hand_out()
            else:
                # Given in the same moment: nobody will use it.
                self.give_back(connection, size_bytes)
            raise
        return Reservation(self, connection, size_bytes)

    def give_back(self, connection: str, size_bytes: int) -> None:
        """This much of what the connection holds is free again."""
        self.held_bytes -= size_bytes
        self._held_by[connection] -= size_bytes
        if not self._held_by[connection]:
            del self._held_by[connection]
        self._hand_out()

    def _hand_out(self) -> None:
        while ready := self._connections_in_turn():
            connection = min(ready, key=self._held)
            size_bytes, room = self._waiting[connection][0]
            # Whose turn it is waits for enough room: smaller answers of others would keep it away for ever.
            if self.held_bytes and self.held_bytes + size_bytes > self._bytes_max:
                return
            self._forget_first(connection)
            self.held_bytes += size_bytes
            self._held_by[connection] += size_bytes
            room.set_result(None)

    def _connections_in_turn(self) -> list[str]:
        """Those that wait for what is within their share."""
        for connection in list(self._waiting):
            while connection in self._waiting and self._waiting[connection][0][1].cancelled():
                self._forget_first(connection)
        share_bytes = (self._bytes_max - self.held_bytes) * SHARE_OF_FREE
        return [
            connection
            for connection, waiting in self._waiting.items()
            if not self._held(connection) or self._held(connection) + waiting[0][0] <= share_bytes
        ]

    def _held(self, connection: str) -> int:
        return self._held_by.get(connection, 0)

    def _forget_first(self, connection: str) -> None:
        self._waiting[connection].popleft()
        if not self._waiting[connection]:
            del self._waiting[connection]
