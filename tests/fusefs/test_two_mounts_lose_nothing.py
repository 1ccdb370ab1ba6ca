"""Two mounts of one run, whose programs move and remove directories while they write files in them and move those: no
file that was written is lost, as none is removed or replaced by another.

The seed decides the calls; node ids, jitter and the order of tasks are left to chance. Time passes while nothing else
happens, on a master whose calls take as long as the seed says. LOSE_SEEDS=1000 tries more of them.
"""

from __future__ import annotations

import os
import random
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.node import FILE
from cloudai_model.errors import CloudAIError, NotFound
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER

SEEDS: Final = range(int(os.environ.get("LOSE_SEEDS", "10")))
CALLS: Final = 40
"""Of each program."""
PROGRAMS: Final = 2
"""On each mount."""
REST_SECONDS: Final = 60.0

PARENTS: Final = (b"", b"a/", b"b/", b"a/b/")
DIRECTORY_NAMES: Final = (b"a", b"b")


class Programs:
    """Of all mounts: each file has a size and a name of its own."""

    def __init__(self, seed: int, *, has_collisions: bool) -> None:
        self.has_collisions = has_collisions
        """Files under names of directories: made by one mount alone, as of two files of one name that are made at the
        same time the last commit wins; and nothing is moved to such a name.
        """
        self.random = random.Random(seed)
        self.written: set[int] = set()
        """The sizes of files that were acknowledged."""
        self.story: list[str] = []
        self._file_count = self._name_count = 0

    async def run(self, name: str, mount: FileSystemHarness) -> None:
        for _ in range(CALLS):
            await trio.sleep(self.random.choice((0, 0, 0.01, 0.05, 0.3)))
            try:
                words = await self._call(name, mount)
            except (CloudAIError, trio.TooSlowError) as error:
                words = type(error).__name__
            self.story.append(f"{trio.current_time():.2f} {name} {words}")

    async def _call(self, name: str, mount: FileSystemHarness) -> str:
        parent, directory = self.random.choice(PARENTS), self._directory()
        match self.random.randrange(10):
            case 0 | 1 | 2:
                self._file_count += 1
                size_bytes = self._file_count
                path = parent + b"f%d" % size_bytes
                if self.has_collisions and name == "one" and self.random.randrange(3) == 0:
                    path = directory
                await mount.write_file(path, b"x" * size_bytes)
                self.written.add(size_bytes)
                return f"wrote {path!r}"
            case 3 | 4:
                await mount.mkdir(directory)
                return f"mkdir {directory!r}"
            case 5 | 6:
                await mount.rmdir(directory)
                return f"rmdir {directory!r}"
            case 7 | 8:
                path, other = self._file(mount), self._new_name(parent)
                await mount.rename(path, other)
                return f"rename {path!r} {other!r}"
            case _:
                other = self._new_name(parent) if self.has_collisions else self._directory()
                await mount.rename(directory, other)
                return f"rename {directory!r} {other!r}"

    def _file(self, mount: FileSystemHarness) -> bytes:
        """One that is shown. Raises NotFound: there is none."""
        files = [path for path, shown in mount.shown().items() if shown.kind == FILE]
        if not files:
            raise NotFound
        return self.random.choice(files)

    def _new_name(self, parent: bytes) -> bytes:
        self._name_count += 1
        return parent + b"g%d" % self._name_count

    def _directory(self) -> bytes:
        return self.random.choice(PARENTS) + self.random.choice(DIRECTORY_NAMES)


def sizes(mount: FileSystemHarness) -> set[int]:
    """Of the files that are shown."""
    return {shown.size_bytes for shown in mount.shown().values() if shown.kind == FILE}


def staged_sizes(mount: FileSystemHarness) -> set[int]:
    """Of the files that are not at the master."""
    return {node.size_bytes for node, pending in mount.tree.pending.items() if pending.content}


@pytest.mark.parametrize("has_collisions", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_file_that_was_written_is_somewhere(
    master: FakeMaster, run: types.Run, tmp_path: Path, clock: MockClock, seed: int, has_collisions: bool
) -> None:
    programs = Programs(seed, has_collisions=has_collisions)
    master.latency_seconds, master.answer_latency_seconds = programs.random.choice(
        ((0.0, 0.0), (0.01, 0.0), (0.0, 0.02), (0.05, 0.1))
    )
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
                    nursery.start_soon(programs.run, name, mount)
        for mount in mounts.values():
            with suppress(*([CloudAIError] if has_collisions else [])):
                await mount.make_all_durable()
        await trio.sleep(REST_SECONDS)

        fresh = await opened.enter_async_context(
            open_file_system(master.client(USER), run, tmp_path / "fresh", timeo_seconds=20)
        )
        await fresh.sync.load_run(fresh.tree)
        shown = {name: sizes(mount) for name, mount in (*mounts.items(), ("fresh", fresh))}
        if has_collisions:
            # What cannot be placed is shown where it was written, or what is there by now is, and `status` names it.
            shown = {"each": set().union(*shown.values(), *map(staged_sizes, mounts.values()))}
        for name, found in shown.items():
            lost = programs.written - found
            assert not lost, "\n".join([f"{name} has lost {sorted(lost)}", *programs.story])
