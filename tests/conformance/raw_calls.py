"""System calls that Python does not offer in full."""

from __future__ import annotations

import ctypes
import os
from typing import Final

UTIME_NOW: Final = "now"
UTIME_OMIT: Final = "omit"

Moment = int | str
"""Nanoseconds since 1970, or one of the two words."""

RENAME_NOREPLACE: Final = 1

_NANOSECONDS_NOW: Final = (1 << 30) - 1
_NANOSECONDS_OMIT: Final = (1 << 30) - 2
_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100

_libc = ctypes.CDLL(None, use_errno=True)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def set_times(path: bytes, accessed: Moment, modified: Moment) -> None:
    """utimensat(2), of a symlink itself. Raises OSError."""
    times = (_TimeSpec * 2)(_time_spec(accessed), _time_spec(modified))
    _check(_libc.utimensat(_AT_FDCWD, path, times, _AT_SYMLINK_NOFOLLOW))


def rename_with_flags(old: bytes, new: bytes, flags: int) -> None:
    """renameat2(2). Raises OSError."""
    _check(_libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags))


def _time_spec(moment: Moment) -> _TimeSpec:
    if isinstance(moment, int):
        return _TimeSpec(*divmod(moment, 10**9))
    return _TimeSpec(0, _NANOSECONDS_NOW if moment == UTIME_NOW else _NANOSECONDS_OMIT)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
