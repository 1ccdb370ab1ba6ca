"""How a disk says that it has no room for what is written."""

from __future__ import annotations

import errno
from typing import Final

_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_lack_of_room(error: OSError) -> bool:
    """Whether it is full, or its user's quota is: what a person makes room for, and nobody else."""
    return error.errno in _ERRNOS
