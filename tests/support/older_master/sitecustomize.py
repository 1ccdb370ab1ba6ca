"""Makes a master that has not heard of extended attributes: `cloudai-master`, with this folder on PYTHONPATH.

Python imports this module by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def _install() -> None:
    from cloudai_master.service import StorageService

    get_capabilities = StorageService.get_capabilities

    def get_older_capabilities(*arguments: Any) -> Any:
        answer = get_capabilities(*arguments)
        answer.ClearField("keeps_xattrs")
        return answer

    StorageService.get_capabilities = get_older_capabilities  # type: ignore[method-assign, assignment]


if any(Path(word).name == "cloudai-master" for word in sys.orig_argv):
    _install()
