"""How long the kernel's requests may wait, each for itself and all together: who waits for the master holds up nobody
who asks for what is known here.

While HANDLERS_MAX handlers wait, nobody reads the kernel's requests. So the last of them are kept for what is
answered at once: who begins to wait beyond PATIENT_HANDLERS_MAX gives up once the master has said nothing for a
while. The silence is waited out once, not by each that comes to such a place in its turn. As long as the master
answers, all wait for theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
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

PRESSED_SECONDS: Final = 0.25
"""The same once a wait of HASTE_SECONDS was in vain, while nobody reads requests: 2,000 readers at once kept a `stat`
waiting for a minute, 64 of them every two seconds. What comes from this machine's disk is there by then as a rule."""

_LOOK_SECONDS: Final = PRESSED_SECONDS / 2

assert PATIENT_HANDLERS_MAX < HANDLERS_MAX


class _Limit:
    """What `limited` is: no generator, whose turns are a tenth of what a short request costs."""

    __slots__ = ("_patience", "_scope", "_seconds_max")

    def __init__(self, patience: HandlerPatience, seconds_max: float | None) -> None:
        self._patience = patience
        self._seconds_max = seconds_max
        self._scope: trio.CancelScope | None = None

    def __enter__(self) -> None:
        patience, seconds_max = self._patience, self._seconds_max
        patience.handler_count += 1
        is_hasty = patience.handler_count > PATIENT_HANDLERS_MAX
        if seconds_max is None and not is_hasty:
            return
        scope = trio.CancelScope() if seconds_max is None else trio.move_on_after(seconds_max)
        scope.__enter__()
        self._scope = scope
        if is_hasty:
            patience.note_hasty(scope)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._patience.handler_count -= 1
        scope = self._scope
        if scope is None:
            return
        self._patience.forget_hasty(scope)
        scope.__exit__(kind, error, where)
        if scope.cancelled_caught:
            raise trio.TooSlowError


class HandlerPatience:
    """The handlers of one mount. Used from its loop only."""

    def __init__(self, answered_at_seconds: Callable[[], float]) -> None:
        """`answered_at_seconds`: when the master last said something, by trio's clock."""
        self._answered_at_seconds = answered_at_seconds
        self.handler_count = 0
        self._hasty: dict[trio.CancelScope, float] = {}  # when each began, the first of them first
        self._has_hasty = trio.Event()

    def limited(self, seconds_max: float | None) -> _Limit:
        """Around a handler. Raises TooSlowError after `seconds_max`, or sooner for one of too many.

        None: it bounds its own waits, and as one of few is spared the cost of a bound.
        """
        return _Limit(self, seconds_max)

    def note_hasty(self, scope: trio.CancelScope) -> None:
        """One of too many begins now."""
        self._hasty[scope] = trio.current_time()
        self._has_hasty.set()

    def forget_hasty(self, scope: trio.CancelScope) -> None:
        """It has ended, if it was one."""
        self._hasty.pop(scope, None)

    async def hurry(self) -> None:
        """Ends the waits of those that are too many, while the master is silent. Runs for as long as the mount."""
        waited_in_vain_at_seconds = -math.inf
        while True:
            if not self._hasty:
                waited_in_vain_at_seconds = -math.inf  # whether it is silent is a new question for the next
                self._has_hasty = trio.Event()
                await self._has_hasty.wait()
            await trio.sleep(_LOOK_SECONDS)
            now_seconds = trio.current_time()
            answered_at_seconds = self._answered_at_seconds()
            is_pressed = (
                self.handler_count >= HANDLERS_MAX and answered_at_seconds < waited_in_vain_at_seconds
            )
            if not is_pressed and answered_at_seconds > now_seconds - HASTE_SECONDS:
                continue
            before_seconds = now_seconds - (PRESSED_SECONDS if is_pressed else HASTE_SECONDS)
            for scope, began_at_seconds in self._hasty.items():
                if began_at_seconds > before_seconds:
                    break
                scope.cancel()
                waited_in_vain_at_seconds = now_seconds
