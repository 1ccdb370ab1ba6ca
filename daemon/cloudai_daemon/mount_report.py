"""How a process that was started to mount tells who started it how that went: one line of JSON on standard output."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from cloudai_daemon.detached_process import detach

Report = Callable[[str | None], None]
"""To be called once: with None when the tree can be used, or with the line that says why it cannot."""


def open_report() -> Report:
    """Standard output becomes the report's, and is the null device from here on, as standard input is."""
    descriptor = os.dup(1)
    null_descriptor = os.open(os.devnull, os.O_RDWR)
    os.dup2(null_descriptor, 0)
    os.dup2(null_descriptor, 1)
    os.close(null_descriptor)

    def report(failure: str | None) -> None:
        detach()
        answer = {"ready": True} if failure is None else {"error": failure}
        # Closed at once: its end tells the parent that nothing more comes.
        with os.fdopen(descriptor, "w") as pipe:
            pipe.write(json.dumps(answer) + "\n")

    return report
