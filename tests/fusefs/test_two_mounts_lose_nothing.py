"""Two mounts of one run, whose programs move and remove directories while they write files in them and move those: no
file is lost that nobody has removed, nor what was last written to it; nor is it where mounts die meanwhile, with their
state directories or without, and the master is away.

LOSE_SEEDS=1000 tries more seeds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.node import FILE
from cloudai_model.errors import CloudAIError, NotFound
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster
from support.file_system_harness import FileSystemHarness
from support.two_mounts import REST_SECONDS, Mishaps, TwoMounts

SEEDS: Final = range(int(os.environ.get("LOSE_SEEDS", "3")))
CALLS: Final = 40
"""Of each program."""
PROGRAMS: Final = 2
"""On each mount."""

MISHAPS: Final = {
    "alive": Mishaps(),
    "killed": Mishaps(deaths=2, outages=2),
    "lost": Mishaps(deaths=2, outages=2, lost_state_chance=0.5),
}

PARENTS: Final = (b"", b"a/", b"b/", b"a/b/")
DIRECTORY_NAMES: Final = (b"a", b"b")

VERSIONS_MAX: Final = 1000
"""Of a file: its size is this times its number, and its version."""


@dataclass
class Written:
    """A file, which the programs of one mount change, one of them at a time."""

    number: int
    writer: str
    """The name of the mount."""
    version_count: int = 0
    """That were begun."""
    staged: int = 0
    """The version that was acknowledged: it survives the death of its mount."""
    durable: int = 0
    """The version that survives the loss of its mount's state as well."""
    is_expendable: bool = False
    """Somebody has asked for its removal."""
    is_being_changed: bool = False

    def begin_version(self) -> int:
        self.version_count += 1
        return self.version_count

    @contextmanager
    def new_version(self) -> Iterator[int]:
        """Nobody else changes it meanwhile."""
        self.is_being_changed = True
        try:
            yield self.begin_version()
        finally:
            self.is_being_changed = False

    def size_bytes(self, version: int) -> int:
        """Of no other file, and no other version."""
        return self.number * VERSIONS_MAX + version


class Programs:
    """Of all mounts: each file has sizes and, mostly, names of its own."""

    def __init__(self, two_mounts: TwoMounts, random: Random, *, has_collisions: bool) -> None:
        self.has_collisions = has_collisions
        """Files under names of directories: made by one mount alone, as of two files of one name that are made at the
        same time the last commit wins; and nothing is moved to such a name.
        """
        self.files: list[Written] = []
        self._random = random
        self._two_mounts = two_mounts
        self._name_count = 0
        two_mounts.on_lost_state = self._note_lost_state

    async def run(self, name: str, mount: FileSystemHarness) -> None:
        calls = (
            *[self._write] * 4,
            *[self._make_directory, self._remove_directory, self._move_directory] * 2,
            *[self._move, self._append, self._replace] * 2,
            *[self._overwrite, self._link, self._unlink],
        )
        for _ in range(CALLS):
            await trio.sleep(self._random.choice((0, 0, 0.01, 0.05, 0.3)))
            call = self._random.choice(calls)
            try:
                words = await call(name, mount)
            except (CloudAIError, trio.TooSlowError) as error:
                words = f"{call.__name__} {type(error).__name__}"
            if not self._two_mounts.is_dead(mount):
                self._two_mounts.note(f"{name} {words}")

    def find_lost(self, versions: dict[int, int]) -> list[str]:
        """What should be there and is not, of these versions by the files' numbers."""
        return [
            f"file {file.number} has version {versions.get(file.number)} and not {file.staged}"
            for file in self.files
            if versions.get(file.number, 0) < file.staged and not file.is_expendable
        ]

    def content_of(self, size_bytes: int) -> bytes:
        """Of the file that had this size."""
        return bytes([size_bytes // VERSIONS_MAX % 256]) * size_bytes

    # --- directories -------------------------------------------------------------------------------------

    async def _make_directory(self, name: str, mount: FileSystemHarness) -> str:
        path = self._directory()
        await mount.mkdir(path)
        return f"mkdir {path!r}"

    async def _remove_directory(self, name: str, mount: FileSystemHarness) -> str:
        path = self._directory()
        await mount.rmdir(path)
        return f"rmdir {path!r}"

    async def _move_directory(self, name: str, mount: FileSystemHarness) -> str:
        path = self._directory()
        new_path = self._new_path() if self.has_collisions else self._directory()
        await mount.rename(path, new_path)
        return f"rename {path!r} {new_path!r}"

    # --- names of files ----------------------------------------------------------------------------------

    async def _move(self, name: str, mount: FileSystemHarness) -> str:
        path, new_path = self._shown_file(mount), self._new_path()
        await mount.rename(path, new_path)
        return f"rename {path!r} {new_path!r}"

    async def _link(self, name: str, mount: FileSystemHarness) -> str:
        path, new_path = self._shown_file(mount), self._new_path()
        await mount.link(path, new_path)
        return f"link {path!r} {new_path!r}"

    async def _unlink(self, name: str, mount: FileSystemHarness) -> str:
        path = self._shown_file(mount)
        number = mount.shown()[path].size_bytes // VERSIONS_MAX
        for file in self.files:
            file.is_expendable |= file.number == number
        await mount.unlink(path)
        return f"unlink {path!r}"

    # --- contents ----------------------------------------------------------------------------------------

    async def _write(self, name: str, mount: FileSystemHarness) -> str:
        file = Written(len(self.files) + 1, name)
        self.files.append(file)
        path = self._random.choice(PARENTS) + b"f%d" % file.number
        if self.has_collisions and name == "one" and self._random.randrange(3) == 0:
            path = self._directory()
        with file.new_version() as version:
            await mount.write_file(path, self.content_of(file.size_bytes(version)))
            self._acknowledge(mount, file, version)
        return f"write {path!r} of file {file.number}"

    async def _append(self, name: str, mount: FileSystemHarness) -> str:
        """While it is open, others run."""
        file, path = self._own_file(name, mount)
        return await self._write_open(mount, file, path, os.O_RDWR)

    async def _overwrite(self, name: str, mount: FileSystemHarness) -> str:
        """In place: what was there is removed first."""
        file, path = self._own_file(name, mount)
        file.staged = file.durable = 0
        return await self._write_open(mount, file, path, os.O_RDWR | os.O_TRUNC)

    async def _write_open(self, mount: FileSystemHarness, file: Written, path: bytes, flags: int) -> str:
        words = f"open {path!r} of file {file.number}"
        with file.new_version() as version:
            handle = await mount.open(path, flags)
            try:
                for _ in range(self._random.randint(1, 3)):
                    version = file.begin_version()
                    offset_bytes = mount.files.node_of(handle).size_bytes
                    data = self.content_of(file.size_bytes(version))[offset_bytes:]
                    await mount.write(handle, offset_bytes, data)
                    self._acknowledge(mount, file, version)
                    words += f", version {version}"
                    await trio.sleep(self._random.choice((0, 0.05, 0.3)))
                    if self._random.randrange(3) == 0:
                        await mount.fsync(handle)
                        self._acknowledge(mount, file, version, is_durable=True)
                        words += ", fsync"
            finally:
                mount.close_handle(handle)
        return words

    async def _replace(self, name: str, mount: FileSystemHarness) -> str:
        """Written aside and renamed over, as editors do, and perhaps given another name at once."""
        file, path = self._own_file(name, mount)
        if path.rpartition(b"/")[2] in DIRECTORY_NAMES:
            raise NotFound  # another may have that name by now
        with file.new_version() as version:
            aside = path + b"-%d" % version
            await mount.write_file(aside, self.content_of(file.size_bytes(version)))
            self._acknowledge(mount, file, version)
            await mount.rename(aside, path)
            if self._random.randrange(2):
                await mount.rename(path, self._new_path())
        return f"replace {path!r} by version {version} of file {file.number}"

    # --- within ------------------------------------------------------------------------------------------

    def _acknowledge(
        self, mount: FileSystemHarness, file: Written, version: int, *, is_durable: bool = False
    ) -> None:
        if not self._two_mounts.is_dead(mount):
            file.staged = version
            if is_durable:
                file.durable = version

    def _note_lost_state(self, name: str) -> None:
        for file in self.files:
            if file.writer == name:
                file.staged = file.durable

    def _own_file(self, name: str, mount: FileSystemHarness) -> tuple[Written, bytes]:
        """A file that the mount changes and shows, with a path of it. Raises NotFound: there is none."""
        files = {
            file.number: file for file in self.files if file.writer == name and not file.is_being_changed
        }
        shown = [
            (files[shown.size_bytes // VERSIONS_MAX], path)
            for path, shown in mount.shown().items()
            if shown.kind == FILE and shown.size_bytes // VERSIONS_MAX in files
        ]
        if not shown:
            raise NotFound
        return self._random.choice(shown)

    def _shown_file(self, mount: FileSystemHarness) -> bytes:
        """Raises NotFound: there is none."""
        files = [path for path, shown in mount.shown().items() if shown.kind == FILE]
        if not files:
            raise NotFound
        return self._random.choice(files)

    def _new_path(self) -> bytes:
        self._name_count += 1
        return self._random.choice(PARENTS) + b"g%d" % self._name_count

    def _directory(self) -> bytes:
        return self._random.choice(PARENTS) + self._random.choice(DIRECTORY_NAMES)


def versions_shown(mount: FileSystemHarness) -> dict[int, int]:
    """Of the files, by their numbers."""
    return latest(shown.size_bytes for shown in mount.shown().values() if shown.kind == FILE)


def versions_staged(mount: FileSystemHarness) -> dict[int, int]:
    """Of the files that are not at the master, by their numbers."""
    return latest(node.size_bytes for node, pending in mount.tree.pending.items() if pending.content)


def latest(sizes_bytes: Iterable[int]) -> dict[int, int]:
    """The latest version of each number."""
    return dict(sorted(divmod(size_bytes, VERSIONS_MAX) for size_bytes in sizes_bytes))


@pytest.mark.parametrize("mishaps", MISHAPS.values(), ids=MISHAPS)
@pytest.mark.parametrize("has_collisions", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_file_that_was_written_is_somewhere(
    master: FakeMaster,
    run: types.Run,
    tmp_path: Path,
    clock: MockClock,
    seed: int,
    has_collisions: bool,
    mishaps: Mishaps,
) -> None:
    random = Random(seed)
    two_mounts = TwoMounts(master, run, tmp_path, random)
    programs = Programs(two_mounts, random, has_collisions=has_collisions)
    async with two_mounts.run_programs(programs.run, PROGRAMS, mishaps) as mounts:
        for mount in mounts.values():
            with suppress(*([CloudAIError] if has_collisions else [])):
                await mount.make_all_durable()
        await trio.sleep(REST_SECONDS)

        async with two_mounts.open_fresh() as fresh:
            seen = {name: versions_shown(mount) for name, mount in (*mounts.items(), ("fresh", fresh))}
            for path, shown in fresh.shown().items():
                if shown.kind == FILE:
                    assert await fresh.read_file(path) == programs.content_of(shown.size_bytes)
        if has_collisions:
            # What cannot be placed is shown where it was written, or what is there by now is, and `status` names it.
            found = [*seen.values(), *map(versions_staged, mounts.values())]
            seen = {"each": dict(sorted(item for versions in found for item in versions.items()))}
        for name, versions in seen.items():
            lost = programs.find_lost(versions)
            assert not lost, "\n".join([f"{name} has lost:", *lost, *two_mounts.story])
