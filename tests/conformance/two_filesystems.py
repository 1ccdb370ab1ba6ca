"""A state machine of Hypothesis: any calls, in any order, on a mount and on tmpfs, with the same outcomes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from conformance.observation import Observation
from conformance.program import ROOT, Caller, Program
from conformance.raw_calls import (
    RENAME_NOREPLACE,
    UTIME_NOW,
    UTIME_OMIT,
    Moment,
    rename_with_flags,
    set_times,
)

SLOTS_MAX: Final = 6

_NAMES: Final = (b"a", b"b", b"c")
# Few, so that calls meet each other's results.
_PLAIN_PATHS: Final = (*_NAMES, *(one + b"/" + two for one in _NAMES for two in _NAMES), b"a/b/c", b"b/a/a")
_ODD_PATHS: Final = (
    *(b"a/", b"b/c/", b"a/.", b"a/..", b"b/a/..", b".", b"./a", b"a/b/c/a/b", b"\xff\xfe", b" "),
    *(b"n" * 255, b"n" * 256, b"a/" + b"n" * 256),
)
# None leads out of the directory, wherever the symlink is moved.
_TARGETS: Final = (*_NAMES, b"a/b", b"b/", b".", b"nowhere", b"t" * 300)

_IDS: Final = (-1, 0, 1000, 1001)

_plain_paths = st.sampled_from(_PLAIN_PATHS)
_taken_paths = st.runner().flatmap(lambda machine: st.sampled_from(machine.taken_paths))
_paths = st.one_of(_taken_paths, _taken_paths, _plain_paths, st.sampled_from(_ODD_PATHS))
_slots = st.integers(0, SLOTS_MAX - 1)
_others = (Caller(1000, 1000), Caller(1001, 1001, (1000,)), Caller(1001, 1001))
_callers = st.one_of(st.just(ROOT), st.just(ROOT), st.sampled_from(_others))
_modes = st.sampled_from(
    (0o644, 0o600, 0o666, 0o777, 0o755, 0o700, 0, 0o4755, 0o6775, 0o2755, 0o1777, 0o3777)
)
# Without (-1, -1): POSIX leaves open whether times move then, and the kernel does not ask FUSE.
_owners = st.sampled_from([(uid, gid) for uid in _IDS for gid in _IDS if (uid, gid) != (-1, -1)])
_offsets = st.sampled_from((0, 1, 5, 4095, 4096, 10_000, 65_536, 131_071))
_lengths = st.sampled_from((0, 1, 7, 4096, 5000, 70_000))
_moments = st.sampled_from((UTIME_NOW, UTIME_OMIT, 0, 1, 123_456_789_987_654_321))
_xattr_names = st.sampled_from(
    (
        *(b"user.a", b"user.b", b"user.B", b"user.\xff\n", b"user." + b"n" * 250),
        # Too long, or none of the namespace.
        *(b"user." + b"n" * 251, b"user.", b"user", b"other.a", b"system.a"),
    )
)
_xattr_values = st.sampled_from((b"", b"value", b"\0\xff", b"v" * 300))
_xattr_flags = st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
_open_flags = st.builds(
    lambda access, others: access | sum(others),
    st.sampled_from((os.O_RDONLY, os.O_WRONLY, os.O_RDWR)),
    st.sets(
        st.sampled_from((os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY)),
        max_size=3,
    ),
)

_CLOCK_REALTIME_COARSE: Final = 5
"""Of linux/time.h: older kernels take a file's times from it."""


class TwoFilesystems(RuleBasedStateMachine):
    """One program here and one there. After each call both have the same outcome and see the same.

    The one here goes from one mount to another between its calls.
    """

    def __init__(self, mounted: Path, reference: Path, find_elsewhere: Callable[[Path], Path]) -> None:
        """The two directories are made, and are empty; `find_elsewhere` says where the mount's is in the other mount
        once it is the same there.
        """
        super().__init__()
        self._mounted, self._reference = mounted, reference
        self._find_elsewhere = find_elsewhere
        for directory in (mounted, reference):
            directory.mkdir()
            directory.chmod(0o777)
        self._here, self._there = Program(os.fsencode(mounted)), Program(os.fsencode(reference))
        self._seen_here, self._seen_there = Observation(self._here), Observation(self._there)
        self._calls = 0
        self._story: list[str] = []
        self._agree = True

    def teardown(self) -> None:
        """What was written reaches the master, and is the same on another mount."""
        try:
            if self._agree:
                self.read_everything()
            self._here.close()
            self._there.close()
            if self._agree:
                self._settle()
                self._find_elsewhere(self._mounted)
        finally:
            shutil.rmtree(self._reference)

    @property
    def taken_paths(self) -> list[bytes]:
        """Of what is there, and the directory itself."""
        return sorted(path for path in self._seen_there.statuses if not path.startswith(b"slot"))

    @initialize(mode=st.sampled_from((0o777, 0o755, 0o2777, 0o1777)), settle=st.booleans())
    def furnish(self, mode: int, settle: bool) -> None:
        """So that calls find something from the first on."""
        for path in (b"a", b"b", b"b/a"):
            self.mkdir(path, 0o777, ROOT)
            self.chmod(path, mode, ROOT)
        for slot, path in enumerate((b"c", b"a/a", b"b/c")):
            self.create(slot, path, 0o666)
            self._write(slot, 10_000, ROOT)
        self.symlink(b".", b"a/b", ROOT)
        if settle:
            self.settle()

    # --- names -------------------------------------------------------------------------------------------

    @rule(path=_paths, mode=_modes, caller=_callers)
    def mkdir(self, path: bytes, mode: int, caller: Caller) -> None:
        self._both(f"mkdir {path!r} {mode:o}", lambda _: os.mkdir(path, mode), caller)

    @rule(path=_paths, caller=_callers)
    def rmdir(self, path: bytes, caller: Caller) -> None:
        self._both(f"rmdir {path!r}", lambda _: os.rmdir(path), caller)

    @rule(path=_paths, caller=_callers)
    def unlink(self, path: bytes, caller: Caller) -> None:
        self._both(f"unlink {path!r}", lambda _: os.unlink(path), caller)

    @rule(old=_paths, new=_paths, caller=_callers)
    def rename(self, old: bytes, new: bytes, caller: Caller) -> None:
        self._both(f"rename {old!r} {new!r}", lambda _: os.rename(old, new), caller)

    @rule(old=_paths, new=_paths, caller=_callers)
    def rename_without_replacing(self, old: bytes, new: bytes, caller: Caller) -> None:
        self._both(
            f"rename_without_replacing {old!r} {new!r}",
            lambda _: rename_with_flags(old, new, RENAME_NOREPLACE),
            caller,
        )

    @rule(old=_paths, new=_paths, follow=st.booleans())
    def link(self, old: bytes, new: bytes, follow: bool) -> None:
        self._both(f"link {old!r} {new!r} {follow!r}", lambda _: os.link(old, new, follow_symlinks=follow))

    @rule(content=st.sampled_from(_TARGETS), path=_paths, caller=_callers)
    def symlink(self, content: bytes, path: bytes, caller: Caller) -> None:
        self._both(f"symlink {content!r} {path!r}", lambda _: os.symlink(content, path), caller)

    @rule(path=_paths)
    def readlink(self, path: bytes) -> None:
        self._both(f"readlink {path!r}", lambda _: os.readlink(path))

    @rule(path=_paths, caller=_callers)
    def listdir(self, path: bytes, caller: Caller) -> None:
        self._both(f"listdir {path!r}", lambda _: sorted(os.listdir(path)), caller)

    @rule(path=_paths, caller=_callers)
    def stat(self, path: bytes, caller: Caller) -> None:
        self._both(f"stat {path!r}", lambda _: os.stat(path).st_mode, caller)

    @rule(path=_paths, mode=st.integers(0, 7), caller=_callers)
    def access(self, path: bytes, mode: int, caller: Caller) -> None:
        self._both(f"access {path!r} {mode}", lambda _: os.access(path, mode, effective_ids=True), caller)

    # --- attributes --------------------------------------------------------------------------------------

    @rule(path=_paths, mode=_modes, caller=_callers)
    def chmod(self, path: bytes, mode: int, caller: Caller) -> None:
        self._both(f"chmod {path!r} {mode:o}", lambda _: os.chmod(path, mode), caller)

    @rule(path=_paths, owner=_owners, caller=_callers)
    def lchown(self, path: bytes, owner: tuple[int, int], caller: Caller) -> None:
        self._both(f"lchown {path!r} {owner!r}", lambda _: os.lchown(path, *owner), caller)

    @rule(path=_paths, accessed=_moments, modified=_moments, caller=_callers)
    def utimensat(self, path: bytes, accessed: Moment, modified: Moment, caller: Caller) -> None:
        self._both(
            f"utimensat {path!r} {accessed!r} {modified!r}",
            lambda _: set_times(path, accessed, modified),
            caller,
        )

    @rule(path=_paths, size=st.one_of(_offsets, st.just(-1)), caller=_callers)
    def truncate(self, path: bytes, size: int, caller: Caller) -> None:
        if self._there.try_call(lambda _: os.stat(path).st_size).value != size:
            self._both(f"truncate {path!r} {size!r}", lambda _: os.truncate(path, size), caller)

    @rule(path=_paths, name=_xattr_names, value=_xattr_values, flags=_xattr_flags, caller=_callers)
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
        self._both(
            f"setxattr {path!r} {name!r} {len(value)} {flags}",
            lambda _: os.setxattr(path, name, value, flags),
            caller,
        )

    @rule(path=_paths, name=_xattr_names, follow=st.booleans(), caller=_callers)
    def getxattr(self, path: bytes, name: bytes, follow: bool, caller: Caller) -> None:
        self._both(
            f"getxattr {path!r} {name!r} {follow!r}",
            lambda _: os.getxattr(path, name, follow_symlinks=follow),
            caller,
        )

    @rule(path=_paths, follow=st.booleans(), caller=_callers)
    def listxattr(self, path: bytes, follow: bool, caller: Caller) -> None:
        self._both(
            f"listxattr {path!r} {follow!r}",
            lambda _: sorted(os.listxattr(path, follow_symlinks=follow)),
            caller,
        )

    @rule(path=_paths, name=_xattr_names, follow=st.booleans(), caller=_callers)
    def removexattr(self, path: bytes, name: bytes, follow: bool, caller: Caller) -> None:
        self._both(
            f"removexattr {path!r} {name!r} {follow!r}",
            lambda _: os.removexattr(path, name, follow_symlinks=follow),
            caller,
        )

    # --- open files --------------------------------------------------------------------------------------

    @rule(slot=_slots, path=_paths, flags=_open_flags, mode=_modes, caller=_callers)
    def open(self, slot: int, path: bytes, flags: int, mode: int, caller: Caller) -> None:
        if slot in self._there.slots:
            self._both(f"close {slot}", lambda program: program.close_slot(slot))
        self._both(
            f"open {slot} {path!r} {flags:#o} {mode:o}",
            lambda program: program.open_in(slot, path, flags, mode),
            caller,
        )

    @rule(slot=_slots, path=_plain_paths, mode=_modes)
    def create(self, slot: int, path: bytes, mode: int) -> None:
        self.open(slot, path, os.O_CREAT | os.O_RDWR, mode, ROOT)

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        slot = self._draw_slot(data)
        self._both(f"close {slot}", lambda program: program.close_slot(slot))

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data(), offset=_offsets, length=_lengths, caller=_callers)
    def pwrite(self, data: st.DataObject, offset: int, length: int, caller: Caller) -> None:
        slot, content = self._draw_slot(data), self._content(length)
        self._both(
            f"pwrite {slot} {offset!r} {length!r}",
            lambda program: os.pwrite(program.slots[slot], content, offset),
            caller,
        )

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data(), length=_lengths, caller=_callers)
    def write(self, data: st.DataObject, length: int, caller: Caller) -> None:
        self._write(self._draw_slot(data), length, caller)

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data(), offset=_offsets, length=_lengths)
    def pread(self, data: st.DataObject, offset: int, length: int) -> None:
        slot = self._draw_slot(data)
        self._both(
            f"pread {slot} {offset!r} {length!r}",
            lambda program: os.pread(program.slots[slot], length, offset),
        )

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data(), length=_lengths)
    def read(self, data: st.DataObject, length: int) -> None:
        slot = self._draw_slot(data)
        self._both(f"read {slot} {length!r}", lambda program: os.read(program.slots[slot], length))

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data(), offset=st.one_of(_offsets, st.just(-1)), whence=st.sampled_from((0, 1, 2)))
    def lseek(self, data: st.DataObject, offset: int, whence: int) -> None:
        slot = self._draw_slot(data)
        if self._is_directory(slot):
            return  # its places are the filesystem's own
        self._both(
            f"lseek {slot} {offset!r} {whence!r}",
            lambda program: os.lseek(program.slots[slot], offset, whence),
        )

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data(), size=st.one_of(_offsets, st.just(-1)), caller=_callers)
    def ftruncate(self, data: st.DataObject, size: int, caller: Caller) -> None:
        slot = self._draw_slot(data)
        if os.fstat(self._there.slots[slot]).st_size == size:
            return
        self._both(
            f"ftruncate {slot} {size!r}", lambda program: os.ftruncate(program.slots[slot], size), caller
        )

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data(), mode=_modes, caller=_callers)
    def fchmod(self, data: st.DataObject, mode: int, caller: Caller) -> None:
        slot = self._draw_slot(data)
        self._both(f"fchmod {slot} {mode:o}", lambda program: os.fchmod(program.slots[slot], mode), caller)

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data(), owner=_owners, caller=_callers)
    def fchown(self, data: st.DataObject, owner: tuple[int, int], caller: Caller) -> None:
        slot = self._draw_slot(data)
        self._both(f"fchown {slot} {owner!r}", lambda program: os.fchown(program.slots[slot], *owner), caller)

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data(), name=_xattr_names, value=_xattr_values, flags=_xattr_flags, caller=_callers)
    def fsetxattr(self, data: st.DataObject, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
        slot = self._draw_slot(data)
        self._both(
            f"fsetxattr {slot} {name!r} {len(value)} {flags}",
            lambda program: os.setxattr(program.slots[slot], name, value, flags),
            caller,
        )

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data(), name=_xattr_names, caller=_callers)
    def fremovexattr(self, data: st.DataObject, name: bytes, caller: Caller) -> None:
        slot = self._draw_slot(data)
        self._both(
            f"fremovexattr {slot} {name!r}",
            lambda program: os.removexattr(program.slots[slot], name),
            caller,
        )

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data())
    def fsync(self, data: st.DataObject) -> None:
        slot = self._draw_slot(data)
        self._both(f"fsync {slot}", lambda program: os.fsync(program.slots[slot]))

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data(), name=st.sampled_from(_NAMES))
    def make_in_open_directory(self, data: st.DataObject, name: bytes) -> None:
        slot = self._draw_slot(data)
        self._both(
            f"make_in_open_directory {slot} {name!r}",
            lambda program: os.mkdir(name, dir_fd=program.slots[slot]),
        )

    @precondition(lambda self: self._there.slots)
    @rule(data=st.data())
    def list_open_directory(self, data: st.DataObject) -> None:
        slot = self._draw_slot(data)
        self._both(f"list_open_directory {slot}", lambda program: sorted(os.listdir(program.slots[slot])))

    # --- what only the mount does ------------------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        """Everything that has a name is at the master: from here on calls ask it first."""
        self._story.append("settle")
        self._settle()
        self._compare()

    @rule()
    def go_elsewhere(self) -> None:
        """On the other mount, what was closed here is there."""
        for slot in sorted(self._there.slots):
            self._both(f"close {slot}", lambda program, slot=slot: program.close_slot(slot))  # type: ignore[misc]
        self._story.append("go_elsewhere")
        self._agree = False
        self._settle()
        self._mounted = self._find_elsewhere(self._mounted)
        self._here.close()
        self._here = Program(os.fsencode(self._mounted))
        self._seen_here = Observation(self._here)
        self._compare()

    @rule()
    def read_everything(self) -> None:
        self._agree = False
        self._require_same(_read_all(self._here), _read_all(self._there))
        self._agree = True

    # --- within ------------------------------------------------------------------------------------------

    def _both(self, words: str, call: Callable[[Program], object], caller: Caller = ROOT) -> None:
        self._agree = False
        self._story.append(f"{words} by {caller.uid}")
        here = self._here.try_call(call, caller)
        _wait_for_the_clock()
        there = self._there.try_call(call, caller)
        assert here == there, self._tell(f"{here} instead of {there}")
        self._compare()

    def _compare(self) -> None:
        here, there = Observation(self._here), Observation(self._there)
        self._require_same(here.statuses, there.statuses)
        self._require_same(here.moved_since(self._seen_here), there.moved_since(self._seen_there))
        self._seen_here, self._seen_there = here, there
        self._agree = True

    def _require_same(self, here: Mapping[bytes, object], there: Mapping[bytes, object]) -> None:
        """Fails with what differs, and what was done before: not all of it happens again when it is done again."""
        places = here.keys() | there.keys()
        pairs = {place: (here.get(place), there.get(place)) for place in places}
        differing = [
            f"{place!r}: {one} instead of {other}" for place, (one, other) in pairs.items() if one != other
        ]
        assert not differing, self._tell("\n".join(differing))

    def _tell(self, what: str) -> str:
        return "\n".join((what, "after:", *self._story))

    def _write(self, slot: int, length: int, caller: Caller) -> None:
        content = self._content(length)
        self._both(f"write {slot} {length!r}", lambda program: os.write(program.slots[slot], content), caller)

    def _settle(self) -> None:
        for directory, _, _ in os.walk(self._mounted):
            descriptor = os.open(directory, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def _draw_slot(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self._there.slots)))

    def _is_directory(self, slot: int) -> bool:
        return os.path.isdir(self._there.slots[slot])

    def _content(self, length: int) -> bytes:
        """Bytes that no other write has at the same place."""
        self._calls += 1
        return (b"%06d " % self._calls * (length // 7 + 1))[:length]


def _wait_for_the_clock() -> None:
    """Until a file's times of now differ from those of the last call, on a kernel whose clock moves in steps."""
    before = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) == before:
        time.sleep(0.0005)


def _read_all(program: Program) -> dict[bytes, bytes]:
    """The contents of all files below the directory."""
    found = {}
    with program.in_directory():
        for directory, _, names in os.walk(b"."):
            for name in names:
                path = os.path.join(directory, name)
                if not os.path.islink(path):
                    with open(path, "rb") as file:
                        found[path] = file.read()
    return found
