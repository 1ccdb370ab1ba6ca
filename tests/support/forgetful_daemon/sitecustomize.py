"""Makes a mount daemon that lets go of runs more readily, by the words in $FORGETFUL.

`restless`: at once, ten times a second. `older_kernel`: as on a kernel from before Linux 6.18, which does not know the
notification that prunes. Python imports this module by itself where its folder is on PYTHONPATH.
"""

from __future__ import annotations

import os
import sys


def _install(words: list[str]) -> None:
    from cloudai_fusefs import kernel_references, tree_memory

    constants: dict[str, object] = {}
    if "restless" in words:
        constants |= {"ROUND_SECONDS": 0.1, "REST_SECONDS": 0.0, "ASK_AGAIN_SECONDS": 0.5}
    for name, value in constants.items():
        setattr(tree_memory, name, value)
    if "older_kernel" in words:
        setattr(kernel_references, "NOTIFY_PRUNE", 99)  # noqa: B010  # which no kernel knows


if "cloudai_daemon.mount_process" in sys.orig_argv and "FORGETFUL" in os.environ:
    _install(os.environ["FORGETFUL"].split())
