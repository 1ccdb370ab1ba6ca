"""A program that makes, moves and removes under a few names, on a mount whose master answers late, and on a local disk:
each call has the same outcome on both, and in the end there is the same, here and at the master.

LOCAL_SEEDS=1000 tries more seeds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.node import DIRECTORY, FILE, SYMLINK
from cloudai_model.errors import AlreadyExists, CloudAIError, NotFound
from cloudai_model.limits import INLINE_BYTES_MAX
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import published, tree_of

SEEDS: Final = range(20000, 26000)
CALLS: Final = 80
DEATHS: Final = 2

DIRECTORIES: Final = (b"", b"", b"a/", b"b/", b"a/b/")
NAMES: Final = (b"a", b"b", b"c")

LATENCIES_SECONDS: Final = (0.0, 0.05, 0.5, 3.0)
PAUSES_SECONDS: Final = (0.0, 0.0, 0.0, 0.01, 0.1, 0.5)

Call = Callable[[FileSystemHarness], Awaitable[None]]
LocalCall = Callable[[], None]
Seen = dict[bytes, tuple[int, bytes]]
"""By path: the kind, and what a file has in it or a symlink leads to."""


class Script:
    """Calls drawn with a seed, each as the mount's and the local disk's."""

    def __init__(self, random: Random, directory: Path) -> None:
        self._random = random
        self._directory = os.fsencode(directory)
        self._number = 0

    def draw(self) -> tuple[str, Call, LocalCall]:
        """A call, and what it is in words."""
        path, other = self._path(), self._path()
        here, there = self._at(path), self._at(other)
        self._number += 1
        content = b"%d;" % self._number
        if self._random.random() < 0.1:
            content *= INLINE_BYTES_MAX // len(content) + 1
        calls: tuple[tuple[str, Call, LocalCall], ...] = (
            (
                f"create {path!r}",
                lambda mount: mount.write_file(path, content),
                lambda: write_local(here, os.O_CREAT | os.O_EXCL, content),
            ),
            (
                f"append {path!r}",
                lambda mount: append(mount, path, content),
                lambda: write_local(here, os.O_APPEND, content),
            ),
            (f"fsync {path!r}", lambda mount: fsync(mount, path), lambda: write_local(here, 0, b"")),
            (f"mkdir {path!r}", lambda mount: mount.mkdir(path), lambda: os.mkdir(here)),
            (
                f"symlink {path!r}",
                lambda mount: mount.symlink(path, content),
                lambda: os.symlink(content, here),
            ),
            (f"unlink {path!r}", lambda mount: mount.unlink(path), lambda: os.unlink(here)),
            (f"rmdir {path!r}", lambda mount: mount.rmdir(path), lambda: os.rmdir(here)),
            (
                f"link {path!r} {other!r}",
                lambda mount: link(mount, path, other),
                lambda: link_local(here, there),
            ),
            *[
                (
                    f"rename {path!r} {other!r}",
                    lambda mount: mount.rename(path, other),
                    lambda: os.rename(here, there),
                )
            ]
            * 4,
        )
        return self._random.choice(calls)

    def _path(self) -> bytes:
        return self._random.choice(DIRECTORIES) + self._random.choice(NAMES)

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._directory, path)


async def link(mount: FileSystemHarness, path: bytes, new_path: bytes) -> None:
    """As the kernel, which looks for the new name itself."""
    await mount.find(path)
    try:
        await mount.find(new_path)
    except NotFound:
        await mount.link(path, new_path)
    else:
        raise AlreadyExists(name=new_path)


async def append(mount: FileSystemHarness, path: bytes, data: bytes) -> None:
    await check_file(mount, path)
    handle = await mount.open(path)
    try:
        await mount.append(handle, data)
    finally:
        mount.close_handle(handle)


async def fsync(mount: FileSystemHarness, path: bytes) -> None:
    await check_file(mount, path)
    handle = await mount.open(path)
    try:
        await mount.fsync(handle)
    finally:
        mount.close_handle(handle)


async def check_file(mount: FileSystemHarness, path: bytes) -> None:
    """As the kernel, which opens neither of the others for writing here: it follows no symlink to nowhere."""
    node = await mount.find(path)
    if not node.is_file:
        raise CloudAIError("no file")


def write_local(path: bytes, flags: int, data: bytes) -> None:
    if not flags & os.O_CREAT and os.path.islink(path):
        raise FileNotFoundError
    descriptor = os.open(path, os.O_WRONLY | flags)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def link_local(path: bytes, other: bytes) -> None:
    os.link(path, other, follow_symlinks=False)


def seen_locally(directory: Path) -> Seen:
    top = os.fsencode(directory)
    found: Seen = {}
    for place, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(place, name)
            kind, content = DIRECTORY, b""
            if os.path.islink(path):
                kind, content = SYMLINK, os.readlink(path)
            elif stat.S_ISREG(os.lstat(path).st_mode):
                kind, content = FILE, Path(os.fsdecode(path)).read_bytes()
            found[os.path.relpath(path, top)] = kind, content
    return found


async def seen_on(mount: FileSystemHarness) -> Seen:
    await mount.namespace.load(mount.tree.root)
    return {
        path: (node.kind, await mount.read_file(path) if node.kind == FILE else node.content)
        for path, node in mount.shown().items()
    }


async def seen_at_master(client: FakeMasterClient, run: types.Run) -> Seen:
    files = await published(client, run)
    return {
        path: (node.kind, files.get(path, node.symlink_target))
        for path, node in (await tree_of(client, run)).items()
        if path
    }


def differences(seen: Seen, expected: Seen) -> list[str]:
    return [
        f"{path!r}: {brief(seen.get(path))}, on the local disk {brief(expected.get(path))}"
        for path in sorted(seen.keys() | expected.keys())
        if seen.get(path) != expected.get(path)
    ]


def brief(found: tuple[int, bytes] | None) -> str:
    return "nothing" if found is None else f"kind {found[0]}, {found[1][:12]!r}"


@pytest.mark.parametrize("seed", SEEDS)
async def test_same_calls_make_the_same_as_on_a_local_disk(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    seed: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    random = Random(seed)
    local = tmp_path / "local"
    local.mkdir()
    script = Script(random, local)
    story: list[str] = []
    deaths = sorted(random.randrange(CALLS) for _ in range(random.choice((0, DEATHS))))
    async with AsyncExitStack() as mounted:
        mount = await mounted.enter_async_context(open_file_system(client, run, tmp_path / "mount-0"))
        await mount.namespace.load(mount.tree.root)
        for number in range(CALLS):
            if number in deaths:
                story.append("killed")
                mount.copy_state(tmp_path / f"mount-{number + 1}")
                await mounted.aclose()
                mount = await mounted.enter_async_context(
                    open_file_system(client, run, tmp_path / f"mount-{number + 1}")
                )
                await mount.namespace.load(mount.tree.root)
                found = differences(await seen_on(mount), seen_locally(local))
                assert not found, "\n".join([*story, "on the next mount", *found])
            master.answer_latency_seconds = random.choice(LATENCIES_SECONDS)
            master.latency_seconds = random.choice(LATENCIES_SECONDS) / 3
            await trio.sleep(random.choice(PAUSES_SECONDS))
            words, call, local_call = script.draw()
            try:
                local_call()
                expected = "done"
            except OSError as error:
                expected = os.strerror(error.errno or 0)
            try:
                await call(mount)
                outcome = "done"
            except CloudAIError as error:
                outcome = repr(error)
            story.append(f"{trio.current_time():.2f} {words}: {outcome}")
            assert (outcome == "done") == (expected == "done"), "\n".join([*story, expected])
        master.answer_latency_seconds = master.latency_seconds = 0.0
        found = differences(await seen_on(mount), seen_locally(local))
        assert not found, "\n".join([*story, "on the mount", *found])

        await mount.make_all_durable()
        await mount.uploader.wait_removals(mount.uploader.trees)
        await mount.uploader.wait_strays_removed()
        for where, seen in (
            ("on the mount at rest", await seen_on(mount)),
            ("at the master", await seen_at_master(client, run)),
        ):
            found = differences(seen, seen_locally(local))
            assert not found, "\n".join([*story, where, *found])
    warnings = [record.getMessage() for record in caplog.records if record.levelname != "INFO"]
    assert not warnings, "\n".join([*story, *warnings])
