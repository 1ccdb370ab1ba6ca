"""How many bytes of messages may be in the master's memory at a time, and whose.

What is taken slowly, or sent slowly, stays in memory. So a holder (a connection, a user) has no more than a fraction of
what nobody holds, and the more there are of them the less each has: there is always room for one more. What is beyond
waits, and room goes to the holder of the least. Belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque


class Reservation:
    """Room for one message, for as long as it is in memory."""

    def __init__(self, budget: MessageBudget, holder: str, size_bytes: int) -> None:
        self._budget = budget
        self._holder = holder
        self._size_bytes = size_bytes

    def shrink(self, size_bytes: int) -> None:
        """The message turned out to be of this size; a larger one than reserved changes nothing."""
        if size_bytes < self._size_bytes:
            freed_bytes, self._size_bytes = self._size_bytes - size_bytes, size_bytes
            self._budget.give_back(self._holder, freed_bytes)

    def release(self) -> None:
        """The message has left the memory, or is not wanted any more. Twice is once."""
        self.shrink(0)


class MessageBudget:
    """Invariants: held_bytes is the sum of what is held; nobody waits who could be given room."""

    def __init__(self, bytes_max: int, *, share_of_free: float) -> None:
        """A holder may have this share of what nobody holds, and one message in any case."""
        self._bytes_max = bytes_max
        self._share_of_free = share_of_free
        self.held_bytes = 0
        self._held_by: defaultdict[str, int] = defaultdict(int)
        self._waiting: defaultdict[str, deque[tuple[int, asyncio.Future[None]]]] = defaultdict(deque)

    async def reserve(self, holder: str, size_bytes: int) -> Reservation:
        """Room for a message of this size, at once or in its turn. Cancelled: nothing is reserved.

        A message larger than all there is gets room once nobody holds any.
        """
        if not self._waiting and self._has_room(size_bytes) and self._is_within_share(holder, size_bytes):
            self._take(holder, size_bytes)
            return Reservation(self, holder, size_bytes)
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[holder].append((size_bytes, room))
        self._hand_out()
        try:
            await room
        except asyncio.CancelledError:
            if room.cancelled():
                self._hand_out()
            else:
                # Given in the same moment: nobody will use it.
                self.give_back(holder, size_bytes)
            raise
        return Reservation(self, holder, size_bytes)

    def give_back(self, holder: str, size_bytes: int) -> None:
        """This much of what the holder has is free again."""
        self.held_bytes -= size_bytes
        self._held_by[holder] -= size_bytes
        if not self._held_by[holder]:
            del self._held_by[holder]
        self._hand_out()

    def _hand_out(self) -> None:
        while ready := self._holders_in_turn():
            holder = min(ready, key=self._held)
            size_bytes, room = self._waiting[holder][0]
            # Whose turn it is waits for enough room: smaller messages of others would keep it away for ever.
            if not self._has_room(size_bytes):
                return
            self._forget_first(holder)
            self._take(holder, size_bytes)
            room.set_result(None)

    def _holders_in_turn(self) -> list[str]:
        """Those that wait for what is within their share."""
        for holder in list(self._waiting):
            while holder in self._waiting and self._waiting[holder][0][1].cancelled():
                self._forget_first(holder)
        return [
            holder
            for holder, waiting in self._waiting.items()
            if self._is_within_share(holder, waiting[0][0])
        ]

    def _has_room(self, size_bytes: int) -> bool:
        return not self.held_bytes or self.held_bytes + size_bytes <= self._bytes_max

    def _is_within_share(self, holder: str, size_bytes: int) -> bool:
        held_bytes = self._held(holder)
        share_bytes = (self._bytes_max - self.held_bytes) * self._share_of_free
        return not held_bytes or held_bytes + size_bytes <= share_bytes

    def _take(self, holder: str, size_bytes: int) -> None:
        self.held_bytes += size_bytes
        self._held_by[holder] += size_bytes

    def _held(self, holder: str) -> int:
        return self._held_by.get(holder, 0)

    def _forget_first(self, holder: str) -> None:
        self._waiting[holder].popleft()
        if not self._waiting[holder]:
            del self._waiting[holder]
