"""Two mounts of one run, whose programs make, rename and remove under the same few names at the same time: once both
are at rest they show what the master has.

AGREE_SEEDS=1000 tries more seeds.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from cloudai_model.errors import CloudAIError
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster
from support.file_system_harness import FileSystemHarness, Shown, open_file_system
from support.storage_requests import USER
from support.two_mounts import REST_SECONDS, Mishaps, TwoMounts, open_both

SEEDS: Final = range(int(os.environ.get("AGREE_SEEDS", "10")))
CALLS: Final = 60
PROGRAMS: Final = 3
"""On each mount."""

MISHAPS: Final = {"alive": Mishaps(), "died": Mishaps(deaths=2, outages=2)}

SETTLED_SECONDS: Final = 5.0
"""Without a doubt to be listed again."""

DIRECTORIES: Final = (b"", b"a/", b"b/", b"a/b/")
DIRECTORY_NAMES: Final = (b"a", b"b")
FILE_NAMES: Final = (b"x", b"y")
SYMLINK_NAMES: Final = (b"s", b"t")  # which the kernel would follow
"""Others than the directories': a file and a directory of one name are refused, not merged."""

Call = Callable[[FileSystemHarness], Awaitable[None]]


class Script:
    """Calls drawn with a seed."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self._content = 0

    def draw(self) -> tuple[str, Call]:
        """A call, and what it is in words."""
        file, other_file = self._path(FILE_NAMES), self._path(FILE_NAMES)
        directory, other_directory = self._path(DIRECTORY_NAMES), self._path(DIRECTORY_NAMES)
        symlink, other_symlink = self._path(SYMLINK_NAMES), self._path(SYMLINK_NAMES)
        self._content += 1
        content = b"x" * self._content
        calls: tuple[tuple[str, Call], ...] = (
            (f"write {file!r}", lambda mount: mount.write_file(file, content)),
            (f"write {file!r}", lambda mount: mount.write_file(file, content)),
            (f"unlink {file!r}", lambda mount: mount.unlink(file)),
            (f"mkdir {directory!r}", lambda mount: mount.mkdir(directory)),
            (f"mkdir {directory!r}", lambda mount: mount.mkdir(directory)),
            (f"rmdir {directory!r}", lambda mount: mount.rmdir(directory)),
            (f"link {file!r} {other_file!r}", lambda mount: mount.link(file, other_file)),
            (f"symlink {symlink!r}", lambda mount: mount.symlink(symlink, content)),
            (f"unlink {symlink!r}", lambda mount: mount.unlink(symlink)),
            (f"rename {symlink!r} {other_symlink!r}", lambda mount: mount.rename(symlink, other_symlink)),
            (f"truncate {file!r}", lambda mount: mount.truncate(file, len(content))),
            (f"append {file!r}", lambda mount: append(mount, file, content)),
            (f"chmod {file!r}", lambda mount: mount.set_attributes(file, mode=0o600)),
            (f"utimens {file!r}", lambda mount: mount.set_attributes(file, mtime_ns=len(content))),
            (f"utimens {directory!r}", lambda mount: mount.set_attributes(directory, mtime_ns=len(content))),
            (f"replace {file!r}", lambda mount: replace(mount, file, content)),
            (f"set_xattr {file!r}", lambda mount: mount.set_xattr(file, b"user.count", content)),
            (f"set_xattr {directory!r}", lambda mount: mount.set_xattr(directory, b"user.count", content)),
            (f"rename {file!r} {other_file!r}", lambda mount: mount.rename(file, other_file)),
            (
                f"rename {directory!r} {other_directory!r}",
                lambda mount: mount.rename(directory, other_directory),
            ),
        )
        return self.random.choice(calls)

    def _path(self, names: tuple[bytes, ...]) -> bytes:
        return self.random.choice(DIRECTORIES) + self.random.choice(names)


async def append(mount: FileSystemHarness, path: bytes, data: bytes) -> None:
    handle = await mount.open(path)
    try:
        await mount.append(handle, data)
    finally:
        mount.close_handle(handle)


async def replace(mount: FileSystemHarness, path: bytes, data: bytes) -> None:
    """Written aside and renamed over."""
    aside = path + b"-%d" % len(data)
    await mount.write_file(aside, data)
    await mount.rename(aside, path)


async def run_program(script: Script, two_mounts: TwoMounts, name: str, mount: FileSystemHarness) -> None:
    for _ in range(CALLS // PROGRAMS):
        await trio.sleep(script.random.choice((0, 0, 0.01, 0.05, 0.3)))
        words, call = script.draw()
        try:
            await call(mount)
            outcome = "done"
        except CloudAIError as error:
            outcome = type(error).__name__
        two_mounts.note(f"{name} {words}: {outcome}")


def seen(mount: FileSystemHarness) -> dict[bytes, Shown]:
    """By path, the run's own directory as b""."""
    return {b"": mount.shown_as(mount.tree.root), **mount.shown()}


def differences(shown: dict[bytes, Shown], known: dict[bytes, Shown]) -> list[str]:
    """What a mount shows and what the master has of each path of which they are not the same."""
    paths = sorted(shown.keys() | known.keys())
    return [
        f"{path!r}: {shown.get(path)}, at the master {known.get(path)}"
        for path in paths
        if shown.get(path) != known.get(path)
    ]


@pytest.mark.parametrize("mishaps", MISHAPS.values(), ids=MISHAPS)
@pytest.mark.parametrize("seed", SEEDS)
async def test_mounts_at_rest_show_what_the_master_has(
    master: FakeMaster, run: types.Run, tmp_path: Path, clock: MockClock, seed: int, mishaps: Mishaps
) -> None:
    """W10. Whatever mounts do at the same time under the same names, once they are at rest they show the same, within a
    minute at most.
    """
    random = Random(seed)
    two_mounts = TwoMounts(master, run, tmp_path, random)
    program = partial(run_program, Script(random), two_mounts)
    async with two_mounts.run_programs(program, PROGRAMS, mishaps) as mounts:
        for mount in mounts.values():
            await mount.make_all_durable()
        await trio.sleep(REST_SECONDS)

        async with two_mounts.open_fresh() as fresh:
            for name, mount in mounts.items():
                found = differences(seen(mount), seen(fresh))
                assert not found, "\n".join([*two_mounts.story, name, *found])


async def test_directory_that_both_made_is_not_made_again_by_the_next_mount_once_it_was_removed(
    master: FakeMaster, run: types.Run, tmp_path: Path, clock: MockClock
) -> None:
    client = master.client(USER)
    async with open_both(client, run, tmp_path) as (one, other):
        await one.mkdir(b"a")
        await other.mkdir(b"a")
        await one.make_all_durable()
        # The news of it come before the other's commit, and its directory has another id from then on.
        await other.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)
        await one.rmdir(b"a")
        await trio.sleep(SETTLED_SECONDS)

    async with open_file_system(client, run, tmp_path / "other") as next_mount:
        await next_mount.sync.wait_recovered()
        await next_mount.sync.load_run(next_mount.tree)
        await next_mount.make_all_durable()

        assert next_mount.shown() == {}
