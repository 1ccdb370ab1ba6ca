"""When each pending node of a run is to be looked at next: with 10,000 of them, looking at all each time that one
is due would cost more than sending them.

An entry counts for as long as the node is due at its moment; who changes `due_seconds` puts the node again.
"""

from __future__ import annotations

import heapq
import itertools
import math

from cloudai_fusefs.node import Node, Pending


class UploadAgenda:
    """The due pending nodes of one run, by moment, on trio's clock."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Node, Pending]] = []
        self._numbers = itertools.count()

    @property
    def next_due_seconds(self) -> float:
        """When there is something to be looked at again; infinite: never."""
        while self._entries and not self._counts(*self._entries[0]):
            due_seconds, _, _, pending = heapq.heappop(self._entries)
            if pending.agenda_seconds == due_seconds:
                pending.agenda_seconds = (
                    math.nan
                )  # put again at this moment, it would be taken for one that is here
        return self._entries[0][0] if self._entries else math.inf

    def put(self, node: Node, pending: Pending) -> None:
        """The node is due at its `due_seconds`. A second time costs nothing."""
        if pending.agenda_seconds != pending.due_seconds:
            pending.agenda_seconds = pending.due_seconds
            heapq.heappush(self._entries, (pending.due_seconds, next(self._numbers), node, pending))

    def take_due(self, now_seconds: float, count_max: int) -> list[tuple[Node, Pending]]:
        """The first of those that are due now, once each; they are looked at again once they are put again."""
        found: list[tuple[Node, Pending]] = []
        while len(found) < count_max and self.next_due_seconds <= now_seconds:
            _, _, node, pending = heapq.heappop(self._entries)
            pending.agenda_seconds = math.nan
            found.append((node, pending))
        return found

    @staticmethod
    def _counts(due_seconds: float, number: int, node: Node, pending: Pending) -> bool:
        return node.pending is pending and pending.agenda_seconds == due_seconds == pending.due_seconds
