"""One of many processes that make, rename and remove in the same directories, a program of its own.

    python -m crowd.member '{"directory": ..., "number": ..., ...}'

Its calls meet those of the others, so that most refusals are what others made true a moment before; a refusal that
no order of the calls explains is a surprise. In a directory of its own nothing is refused, least of all its removal.
Prints what came of it as JSON.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Final

SURPRISES_MAX: Final = 20

OWN_FILES: Final = 8
OWN_SHARE: Final = 0.02
"""Of all calls: how often the directory of its own is made, filled and removed."""

_DIRECTORIES: Final = ("", "a/", "b/", "a/c/")
_DIRECTORY_NAMES: Final = ("a", "b", "c")
_FILE_NAMES: Final = ("x", "y", "z")

_EXPLAINED: Final = frozenset(
    {
        errno.ENOENT,  # others removed it or what it was in
        errno.EEXIST,  # others made it
        errno.ENOTEMPTY,  # others have put something into it
        errno.ENOTDIR,  # others put a file where a directory was
        errno.EISDIR,  # the other way round
        errno.EINVAL,  # a directory cannot be moved into itself, nor what is no symlink be read as one
        errno.EPERM,  # a directory has no second name
        errno.ELOOP,  # a symlink that leads to itself
    }
)
_EXPLAINED_BY_OTHER_MOUNTS: Final = frozenset(
    {
        errno.ESTALE,  # a directory on the way was moved elsewhere while something was renamed here
    }
)


@dataclass(frozen=True, kw_only=True)
class MemberTask:
    """What one member does, in a directory that is there."""

    directory: str
    number: int
    seed: int
    seconds: float
    has_other_mounts: bool
    """Others are on other mounts of the run. Then a name is always a directory's or never: of a file and a directory
    that two mounts make under one name, one is refused later."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(kw_only=True)
class MemberReport:
    call_count: int = 0
    refusal_count: int = 0
    longest_seconds: float = 0.0
    longest_call: str = ""
    surprises: list[str] = field(default_factory=list)
    """The first of the calls that were refused although nobody had given a reason."""


class Member:
    """Makes the calls, in its working directory."""

    def __init__(self, task: MemberTask) -> None:
        self._task = task
        self._random = random.Random(f"{task.seed} {task.number}")
        self._own_count = 0
        self.report = MemberReport()
        any_names = (*_DIRECTORY_NAMES, *_FILE_NAMES)
        of_files = _FILE_NAMES if task.has_other_mounts else any_names
        of_directories = _DIRECTORY_NAMES if task.has_other_mounts else any_names
        self._calls: tuple[tuple[Callable[[str], None], Sequence[str], int], ...] = (
            (self._write, of_files, 20),
            (self._create, of_files, 15),
            (os.unlink, any_names, 15),
            (self._rename, of_files, 10),
            (self._rename, of_directories, 10),
            (os.mkdir, of_directories, 10),
            (os.rmdir, any_names, 10),
            (self._link, of_files, 5),
            (self._symlink, of_files, 5),
            (self._look, any_names, 10),
            (self._read, any_names, 10),
        )
        self._names: Sequence[str] = any_names
        self._explained = _EXPLAINED | (_EXPLAINED_BY_OTHER_MOUNTS if task.has_other_mounts else frozenset())

    def run(self) -> None:
        """Until its time is over."""
        os.chdir(self._task.directory)
        weights = [weight for _, _, weight in self._calls]
        end_seconds = time.monotonic() + self._task.seconds
        while time.monotonic() < end_seconds:
            if self._random.random() < OWN_SHARE:
                self._make_and_remove_own_directory()
                continue
            ((call, self._names, _),) = self._random.choices(self._calls, weights)
            self._try(call, self._path(), self._explained)

    def _make_and_remove_own_directory(self) -> None:
        """Beside what the others do, and renamed while it is full: nobody else knows its name."""
        self._own_count += 1
        path = f"own-{self._task.number}-{self._own_count}"
        self._try(os.mkdir, path)
        for number in range(OWN_FILES):
            self._try(self._write, f"{path}/{number}")
        moved = f"{path}-moved"
        self._try(lambda old: os.rename(old, moved), path)
        if self._random.random() < 0.5:
            self._try(lambda old: os.rename(old, f"{moved}/0"), f"{moved}/{OWN_FILES - 1}")
        for name in self._try(os.listdir, moved) or ():
            self._try(os.unlink, f"{moved}/{name}")
        self._try(os.rmdir, moved)

    def _try(
        self, call: Callable[[str], object], path: str, explained: frozenset[int] = frozenset()
    ) -> list[str] | None:
        """What a listing returned. A refusal that is not explained is noted."""
        name = getattr(call, "__name__", "")
        began_seconds = time.monotonic()
        found = None
        try:
            found = call(path)
        except OSError as error:
            self.report.refusal_count += 1
            if error.errno not in explained and len(self.report.surprises) < SURPRISES_MAX:
                moment = time.strftime("%H:%M:%S")
                self.report.surprises.append(f"{moment} {name} {path}: {error}")
        took_seconds = time.monotonic() - began_seconds
        if took_seconds > self.report.longest_seconds:
            self.report.longest_seconds, self.report.longest_call = took_seconds, f"{name} {path}"
        self.report.call_count += 1
        return found if isinstance(found, list) else None

    def _path(self) -> str:
        return self._random.choice(_DIRECTORIES) + self._random.choice(self._names)

    def _write(self, path: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(descriptor, b"%d" % self._task.number * self._random.choice((0, 1, 5000)))
        finally:
            os.close(descriptor)

    @staticmethod
    def _create(path: str) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    def _rename(self, path: str) -> None:
        os.rename(path, self._path())

    def _link(self, path: str) -> None:
        os.link(path, self._path(), follow_symlinks=False)

    def _symlink(self, path: str) -> None:
        os.symlink(self._random.choice(_FILE_NAMES), path)

    @staticmethod
    def _look(path: str) -> None:
        """A listing, and a look at each name, which may be gone by then."""
        for name in os.listdir(path):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(f"{path}/{name}")

    @staticmethod
    def _read(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.read(descriptor, 10_000)
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    member = Member(MemberTask(**json.loads(sys.argv[1])))
    member.run()
    print(json.dumps(asdict(member.report)))
