"""One program's system calls below one directory: what it does alike on a mount and on tmpfs can be compared."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple


class Caller(NamedTuple):
    """Whose rights a call is made with."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT: Final = Caller(0, 0)


class Outcome(NamedTuple):
    """The name of the errno, or what was returned."""

    refusal: str
    value: object = None


class Program:
    """Makes calls with paths relative to the directory; open files are in numbered slots."""

    def __init__(self, directory: bytes) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.slots: dict[int, int] = {}

    def close(self) -> None:
        for descriptor in (*self.slots.values(), self._directory):
            os.close(descriptor)
        self.slots.clear()

    def try_call(self, call: Callable[[Program], object], caller: Caller = ROOT) -> Outcome:
        """What comes of a call with the caller's rights."""
        with self.in_directory(), _rights_of(caller):
            try:
                return Outcome("", call(self))
            except OSError as error:
                return Outcome(errno.errorcode[error.errno or 0])

    @contextmanager
    def in_directory(self) -> Iterator[None]:
        """Makes it the working directory: its path may lead through what other callers may not enter."""
        before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        os.fchdir(self._directory)
        try:
            yield
        finally:
            os.fchdir(before)
            os.close(before)

    def open_in(self, slot: int, path: bytes, flags: int, mode: int) -> None:
        self.slots[slot] = os.open(path, flags, mode)

    def close_slot(self, slot: int) -> None:
        os.close(self.slots.pop(slot))


@contextmanager
def _rights_of(caller: Caller) -> Iterator[None]:
    if caller == ROOT:
        yield
        return
    groups = os.getgroups()
    os.setgroups(caller.groups)
    os.setegid(caller.gid)
    os.seteuid(caller.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
