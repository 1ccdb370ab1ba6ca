"""What is on its way to the master: its commit was carried out, and the answer is still to come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from fakes.fake_master import FakeMaster
from support.file_system_harness import FileSystemHarness

UNDER_WAY_SECONDS = 5.0
"""From a commit's arrival to its answer."""

Make = Callable[[FileSystemHarness], Awaitable[None]]


async def make_directory(mount: FileSystemHarness) -> None:
    await mount.mkdir(b"name")


async def make_full_directory(mount: FileSystemHarness) -> None:
    await mount.mkdir(b"name")
    await mount.write_file(b"name/old", b"old")


async def make_file(mount: FileSystemHarness) -> None:
    await mount.write_file(b"name", b"old")


async def make_symlink(mount: FileSystemHarness) -> None:
    await mount.symlink(b"name", b"old")


async def make_two_directories(mount: FileSystemHarness) -> None:
    await mount.mkdir(b"one")
    await mount.mkdir(b"two")


async def put_on_its_way(mount: FileSystemHarness, master: FakeMaster, make: Make) -> None:
    """What this makes, beside a file `kept` that is at the master."""
    await mount.write_file(b"kept", b"kept")
    await mount.make_all_durable()
    await make(mount)
    await wait_for_commit(master)


async def wait_for_commit(master: FakeMaster) -> None:
    """The next commit has arrived, and its answer is still to come."""
    master.answer_latency_seconds = UNDER_WAY_SECONDS
    before = master.call_count["commit_nodes"]
    while master.call_count["commit_nodes"] == before:
        await trio.sleep(0.01)
    await trio.sleep(0.1)
    master.answer_latency_seconds = 0.0  # of the calls after this one
