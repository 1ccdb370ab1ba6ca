"""Two mounts of one run, whose programs make, rename and remove under the same few names at the same time: once both
are at rest they show what the master has.

The seed decides the calls; node ids, jitter and the order of tasks are left to chance. Time passes while nothing else
happens, on a master whose calls take as long as the seed says. AGREE_SEEDS=1000 tries more of them.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from cloudai_model.errors import CloudAIError, MasterUnavailable
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster
from support.file_system_harness import FileSystemHarness, Shown, open_file_system
from support.storage_requests import USER

SEEDS: Final = range(int(os.environ.get("AGREE_SEEDS", "10")))
CALLS: Final = 60
PROGRAMS: Final = 3
"""On each mount."""

DEATHS: Final = 2
"""Of each mount, where they die."""
OUTAGES: Final = 2

REST_SECONDS: Final = 60.0
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

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
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


async def run_program(
    mount: FileSystemHarness, name: str, script: Script, call_count: int, story: list[str]
) -> None:
    for _ in range(call_count):
        await trio.sleep(script.random.choice((0, 0, 0.01, 0.05, 0.3)))
        words, call = script.draw()
        try:
            await call(mount)
            outcome = "done"
        except CloudAIError as error:
            outcome = type(error).__name__
        story.append(f"{trio.current_time():.2f} {name} {words}: {outcome}")


def seen(mount: FileSystemHarness) -> dict[bytes, Shown]:
    """By path, the run's own directory as b""."""
    return {b"": mount.shown_as(mount.tree.root), **mount.shown()}


@pytest.mark.parametrize("seed", SEEDS)
async def test_mounts_at_rest_show_what_the_master_has(
    master: FakeMaster, run: types.Run, tmp_path: Path, clock: MockClock, seed: int
) -> None:
    """W10. Whatever mounts do at the same time under the same names, once they are at rest they show the same, within a
    minute at most.
    """
    script = Script(seed)
    story: list[str] = []
    master.latency_seconds, master.answer_latency_seconds = script.random.choice(
        ((0.0, 0.0), (0.01, 0.0), (0.0, 0.02), (0.05, 0.1))
    )
    master.news_latency_seconds = script.random.choice((0.0, 0.0, 0.03, 0.3))
    async with AsyncExitStack() as opened:
        mounts = {
            name: await opened.enter_async_context(
                open_file_system(master.client(USER), run, tmp_path / name, timeo_seconds=20)
            )
            for name in ("one", "other")
        }
        for mount in mounts.values():
            await mount.sync.load_run(mount.tree)
        async with trio.open_nursery() as nursery:
            for name, mount in mounts.items():
                for _ in range(PROGRAMS):
                    nursery.start_soon(run_program, mount, name, script, CALLS // PROGRAMS, story)
        for mount in mounts.values():
            await mount.make_all_durable()
        await trio.sleep(REST_SECONDS)

        fresh = await opened.enter_async_context(
            open_file_system(master.client(USER), run, tmp_path / "fresh", timeo_seconds=20)
        )
        await fresh.sync.load_run(fresh.tree)
        for name, mount in mounts.items():
            assert seen(mount) == seen(fresh), "\n".join([name, *story])


class Lives:
    """One mount and those that come after it with what it left, until one outlives its programs."""

    def __init__(self, master: FakeMaster, run: types.Run, directory: Path, script: Script) -> None:
        self._master = master
        self._run = run
        self._directory = directory
        self._script = script
        self._count = 0

    async def run(
        self,
        name: str,
        story: list[str],
        end: trio.Event,
        task_status: trio.TaskStatus[FileSystemHarness] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Its last mount has started, and its programs have ended, once `task_status` is; that lives until `end`."""
        while True:
            client = self._master.client(USER)
            state = self._directory / f"{name}-{self._count}"
            async with open_file_system(client, self._run, state, timeo_seconds=20) as mount:
                await self._load(mount)
                seconds = self._script.random.choice((0.2, 0.7, 1.5)) if self._count < DEATHS else math.inf
                with trio.move_on_after(seconds) as life:
                    async with trio.open_nursery() as programs:
                        for _ in range(PROGRAMS):
                            programs.start_soon(
                                run_program, mount, name, self._script, CALLS // PROGRAMS, story
                            )
                if self._count >= DEATHS:
                    task_status.started(mount)
                    await end.wait()
                    return
                # As it is at this moment; and what is due already does not reach the master any more.
                self._count += 1
                mount.copy_state(self._directory / f"{name}-{self._count}")
                client.is_revoked = True
                story.append(f"{trio.current_time():.2f} {name} dies, {life.cancelled_caught}")

    @staticmethod
    async def _load(mount: FileSystemHarness) -> None:
        while True:
            try:
                await mount.sync.load_run(mount.tree)
            except MasterUnavailable:
                await trio.sleep(0.5)
            else:
                return


@pytest.mark.parametrize("seed", SEEDS)
async def test_mounts_that_died_and_lost_their_master_show_at_rest_what_it_has(
    master: FakeMaster, run: types.Run, tmp_path: Path, clock: MockClock, seed: int
) -> None:
    """W10. Whatever mounts do at the same time under the same names, once they are at rest they show the same, within a
    minute at most.
    """
    script = Script(seed)
    story: list[str] = []
    master.latency_seconds, master.answer_latency_seconds = script.random.choice(
        ((0.01, 0.0), (0.0, 0.02), (0.05, 0.1))
    )
    master.news_latency_seconds = script.random.choice((0.0, 0.0, 0.03, 0.3))
    end = trio.Event()
    mounts: dict[str, FileSystemHarness] = {}

    async def run_lives(name: str) -> None:
        lives = Lives(master, run, tmp_path, script)
        mounts[name] = await nursery.start(lives.run, name, story, end)

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as living:
            for name in ("one", "other"):
                living.start_soon(run_lives, name)
            for _ in range(OUTAGES):
                await trio.sleep(script.random.uniform(0.1, 1.0))
                master.go_away()
                story.append(f"{trio.current_time():.2f} the master is away")
                await trio.sleep(script.random.choice((0.05, 0.3, 1.0)))
                master.come_back()
                story.append(f"{trio.current_time():.2f} the master is back")
        for mount in mounts.values():
            await mount.make_all_durable()
        await trio.sleep(REST_SECONDS)

        async with open_file_system(master.client(USER), run, tmp_path / "fresh") as fresh:
            await fresh.sync.load_run(fresh.tree)
            for name, mount in mounts.items():
                assert seen(mount) == seen(fresh), "\n".join([name, *story])
        end.set()


async def test_directory_that_both_made_is_not_made_again_by_the_next_mount_once_it_was_removed(
    master: FakeMaster, run: types.Run, tmp_path: Path, clock: MockClock
) -> None:
    client = master.client(USER)
    async with (
        open_file_system(client, run, tmp_path / "one") as one,
        open_file_system(client, run, tmp_path / "other") as other,
    ):
        for mount in (one, other):
            await mount.sync.load_run(mount.tree)
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
