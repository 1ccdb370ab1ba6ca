"""The extended attributes of a file or directory, as a value."""

from __future__ import annotations

import os
from pathlib import Path


def xattrs_of(place: bytes | Path | int) -> dict[str, bytes]:
    """By its path or descriptor; in the order in which they are listed."""
    return {name: os.getxattr(place, name) for name in os.listxattr(place)}
