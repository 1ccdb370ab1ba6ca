"""What a writer does next: scenes of a few operations each, drawn from a seed.

The same seed gives the same operations: nothing here depends on the mount's answers or on time, but for the
pauses between operations, which let uploads stand at different points.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

from crash.expected_tree import ExpectedTree
from crash.operations import Call, Operation

KIB = 1024
MIB = 1024 * KIB

FILES_MAX = 40
TREE_BYTES_MAX = 24 * MIB
DIRECTORIES_MAX = 6
LOGS_MAX = 2
PAUSE_SECONDS_MAX = 0.08

SMALL_BYTES_MAX = 64 * KIB
# Over what travels inside a commit, below one chunk.
MIDDLE_BYTES_MAX = 600 * KIB
BIG_BYTES_MIN, BIG_BYTES_MAX = 5 * MIB, 9 * MIB
BIG_WRITE_BYTES = 2 * MIB


class Pause(float):
    """Seconds in which a writer does nothing."""


class Script:
    """Scenes for one tree, which the reader of the script brings up to date after each operation."""

    def __init__(self, seed: int, tree: ExpectedTree, *, sync_share: float, asks_master: bool) -> None:
        """`sync_share` of what is written is fsynced before it is closed. Without `asks_master` nothing is done
        that waits for the master's answer: fsyncs, links, and all that takes away or moves what it has.
        """
        self._random = random.Random(seed)
        self._tree = tree
        self._sync_share = sync_share if asks_master else 0.0
        self._numbers = itertools.count(1)
        self._logs: list[int] = []
        self._scenes: dict[Callable[[], Iterator[Operation | Pause]], int] = {
            self._write_new: 20,
            self._append_to_log: 22,
            self._overwrite: 12,
            self._overwrite_big: 5,
            self._write_anew: 6,
            self._save_by_rename: 14,
            self._write_big: 3,
            self._truncate: 7,
            self._rename: 6,
            self._unlink_and_write_anew: 6,
            self._unlink: 4,
            self._make_directory: 4,
            self._rename_directory: 5,
            self._remove_directory: 2,
            self._give_left_name: 4,
            self._swap: 3,
            self._link: 2,
            self._make_symlink: 1,
            self._set_attributes: 4,
            self._set_xattrs: 5,
            self._pause: 6,
        }

        if not asks_master:
            for scene in (
                self._save_by_rename,
                self._overwrite_big,
                self._rename,
                self._unlink_and_write_anew,
                self._unlink,
                self._rename_directory,
                self._remove_directory,
                self._give_left_name,
                self._swap,
                self._link,
            ):
                self._scenes[scene] = 0

    def operations(self) -> Iterator[Operation | Pause]:
        """Without end. The tree must have taken each operation before the next is asked for."""
        while True:
            (scene,) = self._random.choices(list(self._scenes), list(self._scenes.values()))
            yield from scene()

    # --- scenes ------------------------------------------------------------------------------------------

    def _write_new(self) -> Iterator[Operation]:
        if len(self._file_paths()) < FILES_MAX:
            yield from self._write_file(self._new_path("file"), self._size())

    def _write_big(self) -> Iterator[Operation]:
        if self._tree_bytes() < TREE_BYTES_MAX:
            yield from self._write_file(self._new_path("big"), self._big_size())

    def _append_to_log(self) -> Iterator[Operation]:
        if len(self._logs) < LOGS_MAX and self._random.random() < 0.3:
            path, slot = self._new_path("log"), self._new_slot()
            yield Operation(call=Call.CREATE, path=path, slot=slot)
            self._logs.append(slot)
        elif not self._logs:
            return
        slot = self._random.choice(self._logs)
        for _ in range(self._random.randint(1, 4)):
            size_bytes = len(self._tree.slots[slot].content)
            yield self._write(slot, size_bytes, self._random.randint(1, 300))
        if self._random.random() < self._sync_share / 2:
            yield Operation(call=Call.FSYNC, slot=slot)
        if self._random.random() < 0.1:
            self._logs.remove(slot)
            yield Operation(call=Call.CLOSE, slot=slot)

    def _overwrite(self) -> Iterator[Operation]:
        yield from self._write_into(self._some_file(0, MIDDLE_BYTES_MAX))

    def _overwrite_big(self) -> Iterator[Operation]:
        yield from self._write_into(self._some_file(BIG_BYTES_MIN, BIG_BYTES_MAX * 2))

    def _write_anew(self) -> Iterator[Operation]:
        path = self._some_file()
        if path is not None:
            slot = self._new_slot()
            yield Operation(call=Call.OPEN_TRUNCATED, path=path, slot=slot)
            yield from self._fill(slot, self._size())
            yield from self._close(slot)

    def _save_by_rename(self) -> Iterator[Operation]:
        path = self._some_file() or self._new_path("saved")
        if self._random.random() < 0.2:
            path = self._new_path("saved")
        size_bytes = self._big_size() if self._random.random() < 0.05 else self._size()
        # In the same directory as a rule; from elsewhere sometimes.
        temporary = self._new_path("tmp") if self._random.random() < 0.2 else f"{path}.tmp"
        if temporary not in self._file_paths():
            yield from self._write_file(temporary, size_bytes)
            if self._random.random() < 0.3:
                yield Operation(call=Call.UTIME, path=temporary, number=self._time_ns())
            yield Operation(call=Call.RENAME, path=temporary, target=path)

    def _truncate(self) -> Iterator[Operation]:
        path = self._some_file()
        if path is None:
            return
        held_bytes = len(self._content(path))
        size_bytes = self._random.choice([0, held_bytes // 2, held_bytes + self._random.randint(1, MIB)])
        if self._random.random() < 0.6:
            yield Operation(call=Call.TRUNCATE_PATH, path=path, number=size_bytes)
            return
        slot = self._new_slot()
        yield Operation(call=Call.OPEN, path=path, slot=slot)
        yield Operation(call=Call.TRUNCATE, slot=slot, number=size_bytes)
        yield self._write(slot, size_bytes, self._random.randint(1, SMALL_BYTES_MAX))
        yield from self._close(slot)

    def _rename(self) -> Iterator[Operation]:
        path = self._some_file()
        if path is not None:
            yield Operation(call=Call.RENAME, path=path, target=self._new_path("renamed"))

    def _unlink_and_write_anew(self) -> Iterator[Operation]:
        path = self._some_file()
        if path is not None:
            yield Operation(call=Call.UNLINK, path=path)
            yield from self._write_file(path, self._size())

    def _unlink(self) -> Iterator[Operation]:
        path = self._some_file()
        if path is not None:
            yield Operation(call=Call.UNLINK, path=path)

    def _make_directory(self) -> Iterator[Operation]:
        if len(self._directory_paths()) < DIRECTORIES_MAX:
            path = self._new_path("directory")
            yield Operation(call=Call.MKDIR, path=path)
            yield from self._write_file(f"{path}/first", self._size())

    def _rename_directory(self) -> Iterator[Operation]:
        paths = self._directory_paths()
        if not paths:
            return
        path = self._random.choice(paths)
        for _ in range(self._random.randint(0, 3)):
            yield from self._write_file(f"{path}/{next(self._numbers)}", self._size())
        places = [place for place in ["", *paths] if not f"{place}/".startswith(f"{path}/")]
        target = f"{self._random.choice(places)}/moved-{next(self._numbers)}".lstrip("/")
        yield Operation(call=Call.RENAME, path=path, target=target)
        if self._random.random() < 0.5:
            yield from self._write_file(f"{target}/{next(self._numbers)}", self._size())

    def _remove_directory(self) -> Iterator[Operation]:
        path = self._new_path("short-lived")
        yield Operation(call=Call.MKDIR, path=path)
        yield from self._write_file(f"{path}/file", self._size())
        yield Operation(call=Call.UNLINK, path=f"{path}/file")
        yield Operation(call=Call.RMDIR, path=path)

    def _give_left_name(self) -> Iterator[Operation | Pause]:
        """A directory is renamed while it is on its way to the master, perhaps, and something else gets its name."""
        if len(self._directory_paths()) + 2 > DIRECTORIES_MAX:
            return
        path, moved = self._new_path("left"), self._new_path("moved")
        yield Operation(call=Call.MKDIR, path=path)
        yield from self._write_file(f"{path}/first", self._size())
        yield Pause(self._random.uniform(0, PAUSE_SECONDS_MAX))
        yield Operation(call=Call.RENAME, path=path, target=moved)
        if self._random.random() < 0.5:
            yield from self._write_file(path, self._size())
        else:
            yield Operation(call=Call.MKDIR, path=path)
            yield from self._write_file(f"{path}/second", self._size())

    def _swap(self) -> Iterator[Operation]:
        """Two files, two directories, or one of each change names with each other."""
        paths = sorted([*self._file_paths(), *self._directory_paths()])
        if len(paths) < 2:
            return
        one, other = self._random.sample(paths, 2)
        if f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/"):
            return
        aside = f"aside-{next(self._numbers)}"
        yield Operation(call=Call.RENAME, path=one, target=aside)
        yield Operation(call=Call.RENAME, path=other, target=one)
        yield Operation(call=Call.RENAME, path=aside, target=other)

    def _link(self) -> Iterator[Operation]:
        path = self._some_file()
        if path is not None:
            yield Operation(call=Call.LINK, path=path, target=self._new_path("link"))

    def _make_symlink(self) -> Iterator[Operation]:
        yield Operation(call=Call.SYMLINK, path=self._new_path("symlink"), target="wherever/it/points")

    def _set_attributes(self) -> Iterator[Operation]:
        path = self._some_file()
        if path is not None:
            yield Operation(call=Call.CHMOD, path=path, number=self._random.choice([0o600, 0o640, 0o755]))
            yield Operation(call=Call.UTIME, path=path, number=self._time_ns())

    def _set_xattrs(self) -> Iterator[Operation]:
        """So that it is seen which of them are there: a value that no other has, and sometimes one less."""
        with_some = sorted(path for path, file in self._tree.files() if file.xattrs)
        if with_some and self._random.random() < 0.7:
            path: str | None = self._random.choice(with_some)
        else:
            path = self._some_file()
        if path is None:
            return
        names = sorted(self._tree.file_at(path).xattrs)
        if len(names) > 1 and self._random.random() < 0.7:
            yield Operation(call=Call.REMOVE_XATTR, path=path, target=self._random.choice(names))
        yield Operation(
            call=Call.SET_XATTR,
            path=path,
            target=self._random.choice(["user.one", "user.two", "user.three"]),
            length_bytes=self._random.choice([0, 16, 1000]),
            content_seed=self._random.getrandbits(63),
        )

    def _pause(self) -> Iterator[Pause]:
        yield Pause(self._random.uniform(0, PAUSE_SECONDS_MAX))

    # --- parts of scenes ---------------------------------------------------------------------------------

    def _write_file(self, path: str, size_bytes: int) -> Iterator[Operation]:
        slot = self._new_slot()
        yield Operation(call=Call.CREATE, path=path, slot=slot)
        yield from self._fill(slot, size_bytes)
        yield from self._close(slot)

    def _fill(self, slot: int, size_bytes: int) -> Iterator[Operation]:
        # A write of its own for the last bytes, too: most programs write several times.
        step_bytes = min(BIG_WRITE_BYTES, max(1, size_bytes * 2 // 3))
        for offset_bytes in range(0, size_bytes, step_bytes):
            yield self._write(slot, offset_bytes, min(step_bytes, size_bytes - offset_bytes))

    def _write_into(self, path: str | None) -> Iterator[Operation]:
        if path is None:
            return
        slot = self._new_slot()
        yield Operation(call=Call.OPEN, path=path, slot=slot)
        for _ in range(self._random.randint(1, 3)):
            # Behind the end sometimes: the gap reads as zeros.
            offset_bytes = self._random.randint(0, len(self._tree.slots[slot].content) + KIB)
            yield self._write(slot, offset_bytes, self._random.randint(1, SMALL_BYTES_MAX))
        yield from self._close(slot)

    def _write(self, slot: int, offset_bytes: int, length_bytes: int) -> Operation:
        return Operation(
            call=Call.WRITE,
            slot=slot,
            number=offset_bytes,
            length_bytes=length_bytes,
            content_seed=self._random.getrandbits(63),
        )

    def _close(self, slot: int) -> Iterator[Operation]:
        if self._random.random() < self._sync_share:
            yield Operation(call=Call.FSYNC, slot=slot)
        yield Operation(call=Call.CLOSE, slot=slot)

    # --- draws -------------------------------------------------------------------------------------------

    def _new_slot(self) -> int:
        return next(slot for slot in itertools.count() if slot not in self._tree.slots)

    def _new_path(self, word: str) -> str:
        directory = self._random.choice(["", "", *self._directory_paths()])
        return f"{directory}/{word}-{next(self._numbers)}".lstrip("/")

    def _some_file(self, size_bytes_min: int = 0, size_bytes_max: int = TREE_BYTES_MAX) -> str | None:
        paths = [
            path
            for path, file in self._tree.files()
            if size_bytes_min <= len(file.content) <= size_bytes_max and self._is_no_log(path)
        ]
        return self._random.choice(sorted(paths)) if paths else None

    def _is_no_log(self, path: str) -> bool:
        # A log that somebody else writes to, renames or removes is rarer than the others: one time in four.
        file = self._tree.find(path)
        is_log = any(self._tree.slots[slot] is file for slot in self._logs)
        return not is_log or self._random.random() < 0.25

    def _size(self) -> int:
        limits = [0, 200, 4 * KIB, SMALL_BYTES_MAX, MIDDLE_BYTES_MAX]
        (limit,) = self._random.choices(limits, [1, 6, 6, 4, 3])
        return self._random.randint(0, limit)

    def _big_size(self) -> int:
        return self._random.randint(BIG_BYTES_MIN, BIG_BYTES_MAX)

    def _time_ns(self) -> int:
        return self._random.randint(1_000_000_000, 2_000_000_000_000_000_000)

    def _content(self, path: str) -> bytearray:
        return dict(self._tree.files())[path].content

    def _tree_bytes(self) -> int:
        return sum(len(file.content) for _, file in self._tree.files())

    def _file_paths(self) -> list[str]:
        return sorted(path for path, _ in self._tree.files())

    def _directory_paths(self) -> list[str]:
        return sorted(path for path, _ in self._tree.directories() if path)
