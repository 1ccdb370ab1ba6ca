"""When what has come to rest is committed: a file alone soon, of many those of a quarter of a second together.

A call and a transaction cost 5.7 ms for one file, 0.23 for each of a hundred (docs/decisions/0002), and both are taken
from the processor that a copying program waits for.
"""

from __future__ import annotations

import math
from typing import Final

from cloudai_fusefs.node import Node

# Long enough that write, utimens, chmod and rename of a copying program are one commit, short enough that
# another mount has the file within a second.
QUIET_SECONDS: Final = 0.05

GATHER_SECONDS: Final = 0.25
"""`cp -r` of small files makes some hundred in it."""


class CommitPace:
    """Of one run. Moments are on trio's clock."""

    def __init__(self) -> None:
        self._gathered_at_seconds = -math.inf
        self._node: Node | None = None
        self._noted_at_seconds = -math.inf

    def due_seconds(self, node: Node, now_seconds: float) -> float:
        """When the node, which has just changed, is to be committed: QUIET_SECONDS from now or later."""
        soonest_seconds = now_seconds + QUIET_SECONDS
        is_one_of_many = node is not self._node and now_seconds - self._noted_at_seconds < QUIET_SECONDS
        self._node, self._noted_at_seconds = node, now_seconds
        if soonest_seconds > self._gathered_at_seconds:
            self._gathered_at_seconds = now_seconds + GATHER_SECONDS if is_one_of_many else soonest_seconds
        return self._gathered_at_seconds
