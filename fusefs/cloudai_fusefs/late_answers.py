"""Directories whose times the kernel may have wrong after a change that it asked for itself.

Two answers of this mount, written one after the other, reach the kernel's cache in the order in which the processes
that wait for them run. The kernel forgets a directory's times when it takes the answer of a `create`; attributes that
were answered before it, and are taken after it, are kept as if they were new. (Of files it compares versions: after a
write, a link or a removal it refuses what was asked for before. Of directories it does not, Linux 6.18.) Seen with four
shells that begin in one directory at once, in one of two hundred runs. A notification makes it refuse them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import trio

from cloudai_fusefs.node import Node
from cloudai_fusefs.run_nodes import Invalidation

DELAY_SECONDS: Final = 0.2
"""At most, from a change to the notification: those of this time are told together, so that asking for the attributes
again costs a directory one call in as long, however many names come and go in it. When it is told does not matter else:
what was asked for before that is refused."""


class LateAnswers:
    """Of one mount. What was not told at its end nobody has cached any more."""

    def __init__(self, tell_kernel: Callable[[Iterable[Invalidation]], None]) -> None:
        self._tell_kernel = tell_kernel
        self._changed: set[int] = set()
        self._woken = trio.Event()

    def note_changed(self, *directories: object) -> None:
        """Names in them have come or gone, as the kernel wanted. What is no node of a run is left out."""
        numbers = [directory.ino for directory in directories if isinstance(directory, Node)]
        if numbers:
            self._changed.update(numbers)
            self._woken.set()

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._woken.wait()
            await trio.sleep(DELAY_SECONDS)
            changed, self._changed, self._woken = self._changed, set(), trio.Event()
            self._tell_kernel([Invalidation(ino) for ino in changed])
