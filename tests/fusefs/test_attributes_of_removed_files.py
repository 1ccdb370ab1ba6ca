"""W13. A change of mode, owner, times or extended attributes alone brings no file back that was removed or replaced
elsewhere.

It is made before this mount has heard of that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER, published
from support.two_mounts import open_both

OLD, NEW = b"old", b"new"
SETTLED_SECONDS = 10.0


Change = Callable[[FileSystemHarness], Awaitable[None]]


async def change_mode(mount: FileSystemHarness) -> None:
    await mount.set_attributes(b"f", mode=0o600)


async def change_time(mount: FileSystemHarness) -> None:
    await mount.set_attributes(b"f", mtime_ns=1)


async def change_xattrs(mount: FileSystemHarness) -> None:
    await mount.set_xattr(b"f", b"user.name", b"value")


CHANGES: Final = (change_mode, change_time, change_xattrs)


@pytest.fixture(params=[True, False], ids=["replaced", "removed"])
def is_replaced(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=CHANGES, ids=[change.__name__ for change in CHANGES])
def change(request: pytest.FixtureRequest) -> Change:
    found: Change = request.param
    return found


async def take_name(mount: FileSystemHarness, *, is_replaced: bool) -> dict[bytes, bytes]:
    """The file loses its name; what is at the master afterwards."""
    if is_replaced:
        await mount.write_file(b"aside", NEW)
        await mount.make_all_durable()
        await mount.rename(b"aside", b"f")
    else:
        await mount.unlink(b"f")
    await mount.make_all_durable()
    return {b"f": NEW} if is_replaced else {}


async def check_shown(mount: FileSystemHarness, expected: dict[bytes, bytes]) -> None:
    assert {path: await mount.read_file(path) for path in mount.shown()} == expected


async def test_mode_that_arrives_late_brings_nothing_back(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path, is_replaced: bool, change: Change
) -> None:
    client = master.client(USER)
    async with open_both(client, run, tmp_path) as (one, other):
        await one.write_file(b"f", OLD)
        await one.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)
        master.news_latency_seconds = 5.0
        expected = await take_name(other, is_replaced=is_replaced)
        await change(one)
        await trio.sleep(SETTLED_SECONDS)

        await one.make_all_durable()
        assert await published(client, run) == expected
        for mount in (one, other):
            await check_shown(mount, expected)


async def test_mode_that_a_dead_mount_left_brings_nothing_back(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path, is_replaced: bool, change: Change
) -> None:
    client = master.client(USER)
    async with open_both(client, run, tmp_path) as (one, other):
        await one.write_file(b"f", OLD)
        await one.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)
        await change(one)
        one.copy_state(tmp_path / "next")
        await trio.sleep(SETTLED_SECONDS)
        expected = await take_name(other, is_replaced=is_replaced)

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()
        assert await published(client, run) == expected
        await check_shown(mount, expected)


async def test_content_that_a_dead_mount_had_committed_does_not_come_back_for_its_mode(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path, is_replaced: bool, change: Change
) -> None:
    client = master.client(USER)
    async with open_both(client, run, tmp_path) as (one, other):
        await one.write_file(b"f", OLD)
        master.answer_latency_seconds = 1.0
        while not master.call_count["commit_nodes"]:
            await trio.sleep(0.01)
        await change(one)
        while not any(node.committed for node in one.tree.pending):
            await trio.sleep(0.01)
        one.copy_state(tmp_path / "next")
        master.answer_latency_seconds = 0.0
        await trio.sleep(SETTLED_SECONDS)
        expected = await take_name(other, is_replaced=is_replaced)

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.sync.wait_recovered()
        assert [pending.is_recovered for pending in mount.tree.pending.values()] == [True]
        await mount.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)
        assert await published(client, run) == expected
        await check_shown(mount, expected)
