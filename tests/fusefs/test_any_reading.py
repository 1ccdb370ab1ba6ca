"""Any sequence of reads gives the files' bytes: whatever memory and disk cache hold, lose, or hold damaged.

The reference is the bytes that were committed. Between reads the mount is made again, its cache is damaged,
truncated, emptied or shared with another mount's, and files are replaced and appended to.
"""

from __future__ import annotations

import os
import random
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from cloudai_fusefs.chunk_memory import ENTRY_BYTES
from cloudai_fusefs.range_reader import RANGE_BYTES_MAX
from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, KIB, MIB
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER, append, commit_one, make_run, manifest_commit, put
from support.threadless import run_threads_work_on_the_loop

# A log's line, inside a commit, one block, too short for ranges, long enough, full.
CHUNK_LENGTHS = [7, 60 * KIB, BLOCK_BYTES, 500 * KIB, 512 * KIB, 900 * KIB + 1, CHUNK_BYTES_MAX]
BYTES = random.Random(11).randbytes(CHUNK_BYTES_MAX + 4096)

MEMORIES = [0, ENTRY_BYTES + 4 * KIB, 300 * KIB, 9 * MIB, 64 * MIB]


class Step(NamedTuple):
    """What happens next, to which file or cache file, and where in it."""

    what: str
    which: int
    place: float
    length_bytes: int


READS = ["jump", "jump", "jump", "on", "on", "end", "together"]
EVENTS = ["remount", "neighbour", "rest", "damage", "truncate", "delete", "append", "replace", "reopen"]

STEPS = st.lists(
    st.builds(
        Step,
        what=st.sampled_from([*READS, *READS, *EVENTS]),
        which=st.integers(0, 9),
        place=st.floats(0, 1, exclude_max=True),
        length_bytes=st.sampled_from([1, 100, 4 * KIB, BLOCK_BYTES, 128 * KIB, RANGE_BYTES_MAX, MIB]),
    ),
    min_size=1,
    max_size=40,
)


class Reading:
    """Two mounts of one run and one cache directory, and what the files hold."""

    def __init__(self, directory: Path, master: FakeMaster, memory_bytes_max: int) -> None:
        self.directory = directory
        self.client: FakeMasterClient = master.client(USER)
        self.memory_bytes_max = memory_bytes_max
        self.run = types.Run()
        self.nodes: list[types.Node] = []
        self.contents: list[bytes] = []
        self.mounts: list[FileSystemHarness] = []
        self.handles: list[int] = []
        self.ends: list[int] = []
        self._made_count = 0
        self._open_mounts = AsyncExitStack()

    async def prepare(self, files: list[list[int]]) -> None:
        self.run = await make_run(self.client, USER)
        for number, lengths in enumerate(files):
            chunks = [self._new_bytes(length) for length in lengths]
            await put(self.client, self.run, *chunks)
            commit = manifest_commit(b"%d" % number, chunks)
            self.nodes.append(await commit_one(self.client, self.run, commit))
            self.contents.append(b"".join(chunks))
        await self.mount()

    def _new_bytes(self, length_bytes: int) -> bytes:
        self._made_count += 1
        return (self._made_count.to_bytes(4, "big") + BYTES[self._made_count :])[:length_bytes]

    async def mount(self) -> None:
        """Both anew, with a cache that what waited for it may not have reached."""
        await self._open_mounts.aclose()
        self._open_mounts = AsyncExitStack()
        self.mounts = []
        for name in ("one", "other"):
            state_dir = self.directory / name
            state_dir.mkdir(exist_ok=True)
            if not (state_dir / "cache").is_symlink():
                (self.directory / "cache").mkdir(exist_ok=True)
                (state_dir / "cache").symlink_to(self.directory / "cache")
            opened = open_file_system(
                self.client, self.run, state_dir, timeo_seconds=30, memory_bytes_max=self.memory_bytes_max
            )
            self.mounts.append(await self._open_mounts.enter_async_context(opened))
        await self.reopen()

    async def reopen(self) -> None:
        self.handles = [
            await self.mounts[0].open(b"%d" % number, os.O_RDONLY) for number in range(len(self.contents))
        ]
        self.ends = [0] * len(self.contents)

    async def close(self) -> None:
        await self._open_mounts.aclose()

    async def take(self, step: Step) -> None:
        number = step.which % len(self.contents)
        size_bytes = len(self.contents[number])
        match step.what:
            case "jump":
                await self._read(number, int(step.place * (size_bytes + 10)), step.length_bytes)
            case "on":
                await self._read(number, self.ends[number], step.length_bytes)
            case "end":
                await self._read(number, max(0, size_bytes - step.length_bytes // 2), step.length_bytes)
            case "together":
                async with trio.open_nursery() as readers:
                    for part in range(4):
                        offset_bytes = int(step.place * size_bytes) + part * step.length_bytes // 2
                        readers.start_soon(self._read, number, offset_bytes, step.length_bytes)
            case "neighbour":
                assert await self.mounts[1].read_file(b"%d" % number) == self.contents[number]
            case "remount":
                await self.mount()
            case "reopen":
                await self.reopen()
            case "rest":
                await trio.sleep(10)
            case "append":
                await self._append(number, step.length_bytes)
            case "replace":
                await self._replace(number, step.length_bytes)
            case _:
                self._spoil_cache(step)

    async def _read(self, number: int, offset_bytes: int, length_bytes: int) -> None:
        found = await self.mounts[0].read_at(self.handles[number], offset_bytes, length_bytes)
        assert found == self.contents[number][offset_bytes : offset_bytes + length_bytes]
        self.ends[number] = offset_bytes + len(found)
        assert self.mounts[0].reader.memory_bytes <= self.memory_bytes_max

    async def _append(self, number: int, length_bytes: int) -> None:
        line = self._new_bytes(length_bytes)
        self.nodes[number] = await append(self.client, self.run, self.nodes[number], line)
        self.contents[number] += line
        await trio.sleep(1)  # its news

    async def _replace(self, number: int, length_bytes: int) -> None:
        """The same bytes in other chunks and, at the end, some more or fewer: as a log is merged, or cut."""
        whole = self.contents[number][: -length_bytes or None] + self._new_bytes(length_bytes // 3)
        chunks = [whole[start : start + CHUNK_BYTES_MAX] for start in range(0, len(whole), CHUNK_BYTES_MAX)]
        await put(self.client, self.run, *chunks)
        commit = manifest_commit(b"%d" % number, chunks, node=self.nodes[number].node_id, place=False)
        self.nodes[number] = await commit_one(self.client, self.run, commit)
        self.contents[number] = whole
        await trio.sleep(1)

    def _spoil_cache(self, step: Step) -> None:
        paths = sorted(path for path in (self.directory / "cache").rglob("*") if path.is_file())
        if not paths:
            return
        path = paths[step.which % len(paths)]
        stored = bytearray(path.read_bytes())
        place = int(step.place * len(stored))
        if step.what == "delete":
            path.unlink()
        elif step.what == "truncate":
            path.write_bytes(stored[:place])
        elif stored:
            stored[place] ^= 1 + step.which
            path.write_bytes(stored)


FILES = st.lists(
    st.lists(st.sampled_from(CHUNK_LENGTHS), min_size=1, max_size=4), min_size=1, max_size=4
).filter(lambda files: sum(map(sum, files)) < 20 * MIB)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(files=FILES, steps=STEPS, memory_bytes_max=st.sampled_from(MEMORIES))
def test_any_reads_give_the_bytes_of_the_file(
    monkeypatch: pytest.MonkeyPatch, files: list[list[int]], steps: list[Step], memory_bytes_max: int
) -> None:
    async def play(directory: Path) -> None:
        master = FakeMaster()
        reading = Reading(directory, master, memory_bytes_max)
        try:
            await reading.prepare(files)
            for step in steps:
                await reading.take(step)
            for number, content in enumerate(reading.contents):
                for mount in reading.mounts:
                    assert await mount.read_file(b"%d" % number) == content
        finally:
            await reading.close()
            master.close()

    run_threads_work_on_the_loop(monkeypatch)
    with tempfile.TemporaryDirectory() as directory:
        trio.run(play, Path(directory), clock=MockClock(autojump_threshold=0))
