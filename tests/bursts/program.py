"""One of several programs that make, rename and remove under the same few names of a run, on one of two mounts: a
thread, whose calls and their outcomes are kept as a story.

Some names are everybody's. What is under others is known whatever the rest do: a program's own file has one name at
any time and the lines that were appended to it; what is written aside and renamed to a name of the whole kind is one
of those contents; a lock of a mount that was made with O_EXCL is nobody else's there.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition
from typing import Final

from bursts.whole_content import is_whole, make_whole

DIRECTORIES: Final = ("", "a/", "b/", "a/b/")
DIRECTORY_NAMES: Final = ("a", "b")
FILE_NAMES: Final = ("x", "y")
"""Others than the directories': a file and a directory of one name are refused, not merged."""
WHOLE_NAMES: Final = ("v", "w")

SIZES_BYTES: Final = (0, 1, 5_000, 200_000)

_EXPLAINED: Final = frozenset(
    {
        errno.ENOENT,  # others removed it or what it was in
        errno.EEXIST,  # others made it
        errno.ENOTEMPTY,  # others have put something into it
        errno.EINVAL,  # a directory cannot be moved into itself
        errno.ELOOP,  # a symlink that leads to itself
        errno.ENODATA,  # others removed the extended attribute
        errno.ESTALE,  # a directory on the way was moved elsewhere while something was renamed here
    }
)
EXPLAINED_BY_DEATH: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.EIO})
"""By the mount daemon's."""


class Gate:
    """Calls of a mount's programs go through it, unless it is closed."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._inside_count = 0
        self._is_open = True

    @contextmanager
    def passing(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._is_open)
            self._inside_count += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside_count -= 1
                self._changed.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Nobody is inside."""
        with self._changed:
            self._is_open = False
            self._changed.wait_for(lambda: not self._inside_count)
        try:
            yield
        finally:
            with self._changed:
                self._is_open = True
                self._changed.notify_all()


class Lock:
    """Who made the lock file of one mount and has not removed it yet, as the programs of the test know."""

    def __init__(self) -> None:
        self.holder = ""


class Program:
    """Makes so many calls in the run's directory on its mount."""

    def __init__(
        self, directory: Path, mount_name: str, number: int, seed: str, gate: Gate, lock: Lock
    ) -> None:
        self.name = f"{mount_name}{number}"
        self.own_lines: list[bytes] = []
        """What was appended to its own file and acknowledged."""
        self.may_have_lines: set[bytes] = set()
        """What may have been, besides."""
        self.has_own = False
        """Whether its own file was made, and that was acknowledged."""
        self.may_have_two = False
        """The daemon died while its own file was being made, so that it has made another since."""
        self.surprises: list[str] = []
        self.story: list[tuple[float, str]] = []
        self._directory = str(directory)
        self._mount_name = mount_name
        self._random = random.Random(f"{seed} {self.name}")
        self._gate = gate
        self._lock = lock
        self._count = 0
        self._own_place = ""
        self._calls: tuple[tuple[Callable[[], str], int], ...] = (
            (self._write, 12),
            (self._create, 6),
            (self._append, 6),
            (self._truncate, 4),
            (self._unlink, 12),
            (self._rename_file, 10),
            (self._rename_directory, 10),
            (self._make_directory, 12),
            (self._remove_directory, 8),
            (self._link, 4),
            (self._symlink, 4),
            (self._change_mode, 5),
            (self._set_times, 5),
            (self._set_xattr, 5),
            (self._replace, 8),
            (self._read_whole, 8),
            (self._look, 6),
            (self._work_on_own, 12),
            (self._take_lock, 5),
        )

    def run(self, call_count: int, explained_by_trouble: frozenset[int]) -> None:
        """Whoever joins it has a bound: no call takes longer than `timeo`."""
        calls = [call for call, _ in self._calls]
        weights = [weight for _, weight in self._calls]
        for _ in range(call_count):
            time.sleep(self._random.choice((0, 0, 0, 0.01, 0.05)))
            (call,) = self._random.choices(calls, weights)
            self._count += 1
            began_seconds = time.monotonic()
            with self._gate.passing():
                self._words = call.__name__
                try:
                    outcome = call() or "done"
                except OSError as error:
                    outcome = errno.errorcode.get(error.errno or 0, str(error))
                    if error.errno not in _EXPLAINED | explained_by_trouble:
                        self.surprises.append(f"{self.name} {self._words}: {error}")
            took_seconds = time.monotonic() - began_seconds
            self.story.append(
                (began_seconds, f"{self.name} {self._words}: {outcome} ({took_seconds * 1000:.0f} ms)")
            )

    # --- under everybody's names ---------------------------------------------------------------------------

    def _write(self) -> str:
        path = self._path(FILE_NAMES)
        self._put(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, self._content())
        return ""

    def _create(self) -> str:
        path = self._path(FILE_NAMES)
        self._put(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._content())
        return ""

    def _append(self) -> str:
        path = self._path(FILE_NAMES)
        self._put(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, self._content())
        return ""

    def _truncate(self) -> str:
        path, size_bytes = self._path(FILE_NAMES), self._random.choice(SIZES_BYTES)
        self._words += f" {path} {size_bytes}"
        os.truncate(self._full(path), size_bytes)
        return ""

    def _unlink(self) -> str:
        path = self._path((*FILE_NAMES, *FILE_NAMES, *WHOLE_NAMES))
        self._words += f" {path}"
        os.unlink(self._full(path))
        return ""

    def _rename_file(self) -> str:
        kind = self._random.choice((FILE_NAMES, FILE_NAMES, WHOLE_NAMES))
        self._rename(self._path(kind), self._path(kind))
        return ""

    def _rename_directory(self) -> str:
        self._rename(self._path(DIRECTORY_NAMES), self._path(DIRECTORY_NAMES))
        return ""

    def _make_directory(self) -> str:
        path = self._path(DIRECTORY_NAMES)
        self._words += f" {path}"
        os.mkdir(self._full(path), self._random.choice((0o755, 0o700)))
        return ""

    def _remove_directory(self) -> str:
        path = self._path(DIRECTORY_NAMES)
        self._words += f" {path}"
        os.rmdir(self._full(path))
        return ""

    def _link(self) -> str:
        kind = self._random.choice((FILE_NAMES, WHOLE_NAMES))
        path, other_path = self._path(kind), self._path(kind)
        self._words += f" {path} {other_path}"
        os.link(self._full(path), self._full(other_path), follow_symlinks=False)
        return ""

    def _symlink(self) -> str:
        path, target = self._path(FILE_NAMES), self._random.choice(FILE_NAMES)
        self._words += f" {path} -> {target}"
        os.symlink(target, self._full(path))
        return ""

    def _change_mode(self) -> str:
        path = self._path((*FILE_NAMES, *DIRECTORY_NAMES))
        mode = self._random.choice((0o600, 0o640, 0o755))
        self._words += f" {path} {mode:o}"
        os.chmod(self._full(path), mode | (0o100 if path.endswith(DIRECTORY_NAMES) else 0))
        return ""

    def _set_times(self) -> str:
        path = self._path((*FILE_NAMES, *DIRECTORY_NAMES))
        time_ns = self._random.randrange(10**18, 2 * 10**18)
        self._words += f" {path} {time_ns}"
        os.utime(self._full(path), ns=(time_ns, time_ns), follow_symlinks=self._random.random() < 0.5)
        return ""

    def _set_xattr(self) -> str:
        path = self._path((*FILE_NAMES, *DIRECTORY_NAMES))
        name = self._random.choice(("user.one", "user.other"))
        self._words += f" {path} {name}"
        if self._random.random() < 0.3:
            os.removexattr(self._full(path), name)
            return "removed"
        os.setxattr(self._full(path), name, f"{self.name}-{self._count}".encode())
        return ""

    def _look(self) -> str:
        """A listing, and a look at each name, which may be gone by then."""
        path = self._random.choice(DIRECTORIES)
        self._words += f" {path}"
        names = os.listdir(self._full(path))
        for name in names:
            with suppress(FileNotFoundError):
                os.lstat(self._full(path + name))
        return " ".join(sorted(names))

    # --- whole contents ------------------------------------------------------------------------------------

    def _replace(self) -> str:
        """Written aside and renamed over, as a checkpoint is."""
        directory = self._random.choice(DIRECTORIES)
        aside, path = f"{directory}aside-{self.name}", f"{directory}{self._random.choice(WHOLE_NAMES)}"
        content = make_whole(f"{self.name}-{self._count}", self._random.choice(SIZES_BYTES))
        self._put(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, content)
        if self._random.random() < 0.2:
            os.utime(self._full(aside), ns=(10**18, 10**18))
        self._rename(aside, path)
        return ""

    def _read_whole(self) -> str:
        path = self._path(WHOLE_NAMES)
        self._words += f" {path}"
        with open(self._full(path), "rb") as file:
            content = file.read()
        if not is_whole(content):
            self.surprises.append(f"{self.name} {self._words}: {len(content)} bytes that nobody has written")
        return f"{len(content)} bytes"

    # --- a file of its own ---------------------------------------------------------------------------------

    @property
    def own_names(self) -> tuple[str, str]:
        return f"own-{self.name}-p", f"own-{self.name}-q"

    def _work_on_own(self) -> str:
        if not self._own_place:
            if not self.has_own or not (place := self._find_own()):
                place = self._random.choice(DIRECTORIES) + self.own_names[0]
            self._own_place = place
        try:
            if not self.has_own or self._random.random() < 0.5:
                self._append_to_own()
            else:
                self._rename_own()
        except OSError as error:
            self._own_place = ""  # what it is in has been moved
            self.may_have_two |= not self.has_own and error.errno in EXPLAINED_BY_DEATH
            raise
        return ""

    def _append_to_own(self) -> None:
        # Not made again: it is somewhere else where it is not here.
        flags = os.O_WRONLY | os.O_APPEND | (0 if self.has_own else os.O_CREAT)
        line = b"%d\n" % self._count
        self.may_have_lines.add(line)
        self._words += f" {self._own_place} {line!r}"
        descriptor = os.open(self._full(self._own_place), flags, 0o644)
        try:
            self.has_own = True
            os.write(descriptor, line)
            self.own_lines.append(line)
            if self._random.random() < 0.2:
                self._words += " fsync"
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _rename_own(self) -> None:
        name = self.own_names[self._own_place.endswith("-p")]
        place = self._random.choice(DIRECTORIES) + name
        self._rename(self._own_place, place)
        self._own_place = place

    def _find_own(self) -> str:
        """Where it is, by a walk that others may disturb; "" where it was not seen."""
        for place, _, names in os.walk(self._directory):
            for name in self.own_names:
                if name in names:
                    return os.path.relpath(f"{place}/{name}", self._directory)
        return ""

    # --- a lock of its mount -------------------------------------------------------------------------------

    def _take_lock(self) -> str:
        path = self._full(f"lock-{self._mount_name}")
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        if self._lock.holder:
            self.surprises.append(f"{self.name} and {self._lock.holder} have the lock")
        self._lock.holder = self.name
        time.sleep(self._random.choice((0, 0.01)))
        self._lock.holder = ""
        os.unlink(path)
        return ""

    # --- within --------------------------------------------------------------------------------------------

    def _full(self, path: str) -> str:
        return f"{self._directory}/{path}"

    def _path(self, names: tuple[str, ...]) -> str:
        return self._random.choice(DIRECTORIES) + self._random.choice(names)

    def _content(self) -> bytes:
        word = f"{self.name}-{self._count}\n".encode()
        return word * (self._random.choice(SIZES_BYTES) // len(word))

    def _put(self, path: str, flags: int, content: bytes) -> None:
        """In one or several writes, with fsync or without."""
        self._words += f" {path} {len(content)} bytes"
        descriptor = os.open(self._full(path), flags, 0o644)
        try:
            middle = self._random.choice((0, len(content) // 2))
            for part in (content[:middle], content[middle:]):
                if part:
                    os.write(descriptor, part)
            if self._random.random() < 0.15:
                self._words += " fsync"
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _rename(self, path: str, other_path: str) -> None:
        self._words += f" {path} {other_path}"
        os.rename(self._full(path), self._full(other_path))
