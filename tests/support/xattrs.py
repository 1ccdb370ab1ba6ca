"""The extended attributes of a file or directory, as a value."""

from __future__ import annotations

import os
from pathlib import Path


def xattrs_of(place: bytes | Path | int) -> dict[str, bytes]:
    """By its path or descriptor; in the order in which they are listed."""
    return {name: os.getxattr(place, name) for name in os.listxattr(place)}


def xattrs_below(directory: Path) -> dict[bytes, dict[str, bytes]]:
    """By relative path, of the directory and of all below it but symlinks."""
    top = os.fsencode(directory)
    found = {b".": xattrs_of(top)}
    for parent, directories, files in os.walk(top):
        paths = [os.path.join(parent, name) for name in directories + files]
        found |= {os.path.relpath(path, top): xattrs_of(path) for path in paths if not os.path.islink(path)}
    return found
