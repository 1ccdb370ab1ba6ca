"""Makes a mount daemon with bugs: what $FAULTS names (a file with `Class.method`) raises what nobody foresaw.

Python imports this module by itself where its folder is on PYTHONPATH.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _install(faults: Path) -> None:
    from cloudai_fusefs.namespace import Namespace
    from cloudai_fusefs.open_files import OpenFiles
    from cloudai_fusefs.rearrangements import Rearrangements
    from cloudai_fusefs.run_nodes import RunNodes

    # What stands behind the handlers.
    for owner in (Namespace, OpenFiles, Rearrangements, RunNodes):
        for name, call in list(vars(owner).items()):
            if callable(call) and not name.startswith("_"):
                setattr(owner, name, _faulty(call, f"{owner.__name__}.{name}", faults))


def _faulty(call: Callable[..., Any], name: str, faults: Path) -> Callable[..., Any]:
    @functools.wraps(call)
    def fail_or_call(*arguments: Any, **options: Any) -> Any:
        if name == faults.read_text():
            raise RuntimeError(f"a bug in {name}")
        return call(*arguments, **options)

    return fail_or_call


if "cloudai_daemon.mount_process" in sys.orig_argv and "FAULTS" in os.environ:
    _install(Path(os.environ["FAULTS"]))
