"""The rules for extended attributes: those of `user.` alone, of files and directories, a few KiB for each node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloudai_model.errors import InvalidName, NameTooLong
from cloudai_model.limits import NAME_BYTES_MAX

XATTR_PREFIX: Final = b"user."


def check_xattr_name(name: bytes) -> None:
    """Accept what follows `user.`, by the rules of xattr(7).

    Raises InvalidName without that, with nothing behind it, or with NUL; NameTooLong over 255 bytes.
    """
    if not name.startswith(XATTR_PREFIX) or name == XATTR_PREFIX or b"\0" in name:
        raise InvalidName("an extended attribute is called `user.` and something", name=name[:NAME_BYTES_MAX])
    if len(name) > NAME_BYTES_MAX:
        raise NameTooLong(name=name[:NAME_BYTES_MAX], size_bytes=len(name))


def xattrs_size_bytes(xattrs: Mapping[bytes, bytes]) -> int:
    """What XATTR_BYTES_MAX bounds: names and values."""
    return sum(len(name) + len(value) for name, value in xattrs.items())
