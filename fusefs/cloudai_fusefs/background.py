"""Keeps a mount's background tasks alive: an error that nobody foresaw must not end a mount with open files."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVarTuple

import trio

log = logging.getLogger(__name__)

RESTART_SECONDS: Final = 5.0
"""An error that comes back costs a traceback every so often, not a busy loop."""

Ts = TypeVarTuple("Ts")


async def keep_running(what: str, call: Callable[[*Ts], Awaitable[None]], *arguments: *Ts) -> None:
    """Runs the call until it returns; one that raises is logged with its traceback and begun again.

    Cancelled: the call is.
    """
    while True:
        try:
            await call(*arguments)
        except Exception:
            log.exception("%s failed unexpectedly and begins again in %s s", what, RESTART_SECONDS)
            await trio.sleep(RESTART_SECONDS)
        else:
            return
