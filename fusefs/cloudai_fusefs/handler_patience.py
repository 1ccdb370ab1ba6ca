"""How long the kernel's requests may wait, each for itself and all together: who waits for the master holds up nobody
who asks for what is known here.

While HANDLERS_MAX handlers wait, nobody reads the kernel's requests. So the last of them are kept for what is
answered at once: who begins to wait beyond PATIENT_HANDLERS_MAX gives up once the master has said nothing for a
while. As long as it answers, all wait for their turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from cloudai_model.limits import KIB

HANDLERS_MAX: Final = 512
"""At once; pyfuse3's own limit is 99. Behind each is a thread of some program, or a reader's read-ahead."""

PATIENT_HANDLERS_MAX: Final = 448
"""Of those, how many may wait for as long as any request may."""

WAITING_HANDLER_BYTES: Final = 36 * KIB
"""What one costs that waits for a call of its own: 900 of them took 31 MiB."""

HASTE_SECONDS: Final = 2.0
"""How long the others wait for a master that says nothing. A disk that answers has done so by then."""

_LOOK_SECONDS: Final = HASTE_SECONDS / 4

assert PATIENT_HANDLERS_MAX < HANDLERS_MAX


class HandlerPatience:
    """The handlers of one mount. Used from its loop only."""

    def __init__(self, answered_at_seconds: Callable[[], float]) -> None:
        """`answered_at_seconds`: when the master last said something, by trio's clock."""
        self._answered_at_seconds = answered_at_seconds
        self._handler_count = 0
        self._hasty: dict[trio.CancelScope, float] = {}  # when each began, the first of them first
        self._has_hasty = trio.Event()

    @contextmanager
    def limited(self, seconds_max: float | None) -> Iterator[None]:
        """Around a handler. Raises TooSlowError after `seconds_max`, or sooner for one of too many.

        None: it bounds its own waits, and as one of few is spared the cost of a bound.
        """
        self._handler_count += 1
        try:
            is_hasty = self._handler_count > PATIENT_HANDLERS_MAX
            if seconds_max is None and not is_hasty:
                yield
                return
            with trio.fail_after(math.inf if seconds_max is None else seconds_max) as scope:
                if is_hasty:
                    self._hasty[scope] = trio.current_time()
                    self._has_hasty.set()
                try:
                    yield
                finally:
                    self._hasty.pop(scope, None)
        finally:
            self._handler_count -= 1

    async def hurry(self) -> None:
        """Ends the waits of those that are too many, while the master is silent. Runs for as long as the mount."""
        while True:
            if not self._hasty:
                self._has_hasty = trio.Event()
                await self._has_hasty.wait()
            await trio.sleep(_LOOK_SECONDS)
            before_seconds = trio.current_time() - HASTE_SECONDS
            if self._answered_at_seconds() > before_seconds:
                continue
            for scope, began_at_seconds in self._hasty.items():
                if began_at_seconds > before_seconds:
                    break
                scope.cancel()
