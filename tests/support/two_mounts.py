"""Two mounts of one run, whose programs call them at the same time; they may die meanwhile, and lose their master.

A seed decides what is called, when a mount dies and how long the master's calls take; node ids, jitter and the order of
tasks are left to chance. Time passes while nothing else happens (a MockClock).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import trio

from cloudai_model.errors import MasterUnavailable
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER

NAMES: Final = ("one", "other")
REST_SECONDS: Final = 60.0
TIMEO_SECONDS: Final = 20.0

LATENCIES_SECONDS: Final = ((0.0, 0.0), (0.01, 0.0), (0.0, 0.02), (0.05, 0.1))
"""Of a master's calls and of its answers. Where something dies or is away not the first: calls are under way then."""
NEWS_LATENCIES_SECONDS: Final = (0.0, 0.0, 0.03, 0.3)
LIFETIMES_SECONDS: Final = (0.2, 0.7, 1.5)
"""Of a mount that dies."""

Program = Callable[[str, FileSystemHarness], Awaitable[None]]
"""Calls a mount, by its name, until it has nothing more to do."""


@asynccontextmanager
async def open_both(
    client: FakeMasterClient,
    run: types.Run,
    directory: Path,
    *,
    other_client: FakeMasterClient | None = None,
) -> AsyncIterator[tuple[FileSystemHarness, FileSystemHarness]]:
    """Two mounts that know the run, with their directories below this one by their NAMES, and perhaps clients of their
    own.
    """
    async with AsyncExitStack() as opened:
        one, other = [
            await opened.enter_async_context(open_file_system(its_client, run, directory / name))
            for name, its_client in zip(NAMES, (client, other_client or client), strict=True)
        ]
        for mount in (one, other):
            await mount.sync.load_run(mount.tree)
        yield one, other


@dataclass(frozen=True)
class Mishaps:
    """What happens while the programs run."""

    deaths: int = 0
    """Of each mount."""
    outages: int = 0
    """Of the master."""
    lost_state_chance: float = 0.0
    """That what a mount leaves is lost as well."""


class TwoMounts:
    """Both mounts, one after another where they die, and what happened to them."""

    def __init__(self, master: FakeMaster, run: types.Run, directory: Path, random: Random) -> None:
        self.story: list[str] = []
        """What to say of a failure, one line each."""
        self.on_lost_state: Callable[[str], None] = lambda name: None
        """Called with the name of a mount whose state is lost."""
        self._master = master
        self._run = run
        self._directory = directory
        self._random = random
        self._dead: set[FileSystemHarness] = set()

    def note(self, words: str) -> None:
        self.story.append(f"{trio.current_time():.2f} {words}")

    def is_dead(self, mount: FileSystemHarness) -> bool:
        """Whether what it answers reaches nobody any more: its programs run on to where they wait next."""
        return mount in self._dead

    @asynccontextmanager
    async def run_programs(
        self, program: Program, count: int, mishaps: Mishaps
    ) -> AsyncIterator[dict[str, FileSystemHarness]]:
        """The mounts by their names, which live on, once so many programs on each of them have ended.

        A mount that dies does so with its programs. The next one goes on with what it left, if that is not lost, and
        has as many programs.
        """
        master, random = self._master, self._random
        first = 1 if mishaps.deaths or mishaps.outages else 0
        master.latency_seconds, master.answer_latency_seconds = random.choice(LATENCIES_SECONDS[first:])
        master.news_latency_seconds = random.choice(NEWS_LATENCIES_SECONDS)
        mounts: dict[str, FileSystemHarness] = {}

        async def live(name: str) -> None:
            for life in range(mishaps.deaths):
                await self._run_until_death(name, life, program, count, mishaps)
            mounts[name] = await nursery.start(self._run_on, name, mishaps.deaths, program, count)

        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as living:
                for name in NAMES:
                    living.start_soon(live, name)
                for _ in range(mishaps.outages):
                    await self._lose_master()
            yield mounts
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def open_fresh(self) -> AsyncIterator[FileSystemHarness]:
        """A mount that shows what the master has."""
        client = self._master.client(USER)
        async with open_file_system(client, self._run, self._directory / "fresh") as fresh:
            await fresh.sync.load_run(fresh.tree)
            yield fresh

    async def _run_until_death(
        self, name: str, life: int, program: Program, count: int, mishaps: Mishaps
    ) -> None:
        client = self._master.client(USER)
        async with self._open(client, name, life) as mount, trio.open_nursery() as living:
            living.start_soon(self._run_all, name, mount, program, count)
            await trio.sleep(self._random.choice(LIFETIMES_SECONDS))
            # As it is at this moment; and what is due already does not reach the master any more.
            self._dead.add(mount)
            client.is_revoked = True
            living.cancel_scope.cancel()
            if self._random.random() < mishaps.lost_state_chance:
                self.note(f"{name} dies, and what it left is lost")
                self.on_lost_state(name)
            else:
                self.note(f"{name} dies")
                mount.copy_state(self._directory_of(name, life + 1))

    async def _run_on(
        self,
        name: str,
        life: int,
        program: Program,
        count: int,
        task_status: trio.TaskStatus[FileSystemHarness],
    ) -> None:
        """Started: its programs have ended."""
        async with self._open(self._master.client(USER), name, life) as mount:
            await self._run_all(name, mount, program, count)
            task_status.started(mount)
            await trio.sleep_forever()

    async def _run_all(self, name: str, mount: FileSystemHarness, program: Program, count: int) -> None:
        await self._load(mount)
        async with trio.open_nursery() as programs:
            for _ in range(count):
                programs.start_soon(program, name, mount)

    def _open(
        self, client: FakeMasterClient, name: str, life: int
    ) -> AbstractAsyncContextManager[FileSystemHarness]:
        directory = self._directory_of(name, life)
        return open_file_system(client, self._run, directory, timeo_seconds=TIMEO_SECONDS)

    def _directory_of(self, name: str, life: int) -> Path:
        return self._directory / f"{name}-{life}"

    @staticmethod
    async def _load(mount: FileSystemHarness) -> None:
        while True:
            try:
                await mount.sync.load_run(mount.tree)
            except MasterUnavailable:
                await trio.sleep(0.5)
            else:
                return

    async def _lose_master(self) -> None:
        await trio.sleep(self._random.uniform(0.1, 1.0))
        self._master.go_away()
        self.note("the master is away")
        await trio.sleep(self._random.choice((0.05, 0.3, 1.0)))
        self._master.come_back()
        self.note("the master is back")
