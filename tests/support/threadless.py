"""Worker threads' work done on the loop, for tests whose clock jumps when the loop is idle.

A task that waits for a thread looks idle to such a clock: on a busy machine the thread's work took longer than
the clock waited before it jumped, and the task met its timeouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import trio

T = TypeVar("T")


def run_threads_work_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on trio.to_thread.run_sync calls its function at once, between two checkpoints."""

    async def run_sync(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        await trio.lowlevel.checkpoint()
        result = function(*arguments)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr(trio.from_thread, "check_cancelled", lambda: None)
