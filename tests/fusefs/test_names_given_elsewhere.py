"""What was replaced or removed here while its commit was on its way is removed at the master where that commit has put
it: names that another mount has given it meanwhile are that one's, and stay.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from cloudai_model.errors import NotFound
from cloudai_model.limits import INLINE_BYTES_MAX
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER, published
from support.two_mounts import open_both
from support.under_way import UNDER_WAY_SECONDS, wait_for_commit

SETTLED_SECONDS: Final = 30.0
LONG: Final = bytes(INLINE_BYTES_MAX + 1)

Change = Callable[[FileSystemHarness], Awaitable[None]]
Contents = dict[bytes, bytes]


async def _rename(other: FileSystemHarness) -> None:
    await other.rename(b"name", b"kept")


async def _link_and_write(other: FileSystemHarness) -> None:
    await other.link(b"name", b"kept")
    handle = await other.open(b"kept")
    await other.append(handle, b", and theirs")
    await other.fsync(handle)
    other.close_handle(handle)


async def _replace(mount: FileSystemHarness) -> None:
    await mount.write_file(b"aside", b"new")
    await mount.rename(b"aside", b"name")


async def _move_and_replace(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"moved")
    await mount.write_file(b"aside", b"new")
    await mount.rename(b"aside", b"moved")


async def _unlink(mount: FileSystemHarness) -> None:
    with suppress(NotFound):  # it waits for the answer, and then the news may have told that it was renamed
        await mount.unlink(b"name")


async def _move_and_unlink(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"moved")
    await mount.unlink(b"moved")


async def _move_and_rename_a_published_one_over_it(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"moved")
    await mount.rename(b"published", b"moved")


CHANGES: Final[dict[Change, Contents]] = {
    _replace: {b"name": b"new", b"published": b"published"},
    _move_and_replace: {b"moved": b"new", b"published": b"published"},
    _unlink: {b"published": b"published"},
    _move_and_unlink: {b"published": b"published"},
    _move_and_rename_a_published_one_over_it: {b"moved": b"published"},
}
THEIRS: Final = {_rename: b"old", _link_and_write: b"old, and theirs"}

each_change = pytest.mark.parametrize(
    ("change", "expected"), CHANGES.items(), ids=[change.__name__.strip("_") for change in CHANGES]
)
each_of_theirs = pytest.mark.parametrize(
    ("give_name", "kept"), THEIRS.items(), ids=[give_name.__name__.strip("_") for give_name in THEIRS]
)


async def put_on_its_way(mount: FileSystemHarness, master: FakeMaster) -> None:
    await mount.write_file(b"published", b"published")
    await mount.make_all_durable()
    await mount.write_file(b"name", b"old")
    await wait_for_commit(master)


@each_change
@each_of_theirs
async def test_name_that_another_mount_has_given_stays(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    give_name: Change,
    kept: bytes,
    change: Change,
    expected: Contents,
) -> None:
    """W15. What is replaced or removed while its upload is on its way goes at the master where that upload has put it;
    names that another mount has given it meanwhile stay, with what was written to them.
    """
    async with open_both(client, run, tmp_path) as (one, other):
        await put_on_its_way(one, master)
        await give_name(other)
        await trio.sleep(0.1)  # the news have come

        await change(one)
        await one.make_all_durable()
        await one.uploader.wait_strays_removed()
        await trio.sleep(SETTLED_SECONDS)

        everything = {**expected, b"kept": kept}
        assert await published(client, run) == everything
        for mount in (one, other):
            assert await mount.shown_contents() == everything


@pytest.mark.parametrize("change", [_replace, _move_and_replace], ids=["replaced", "moved-and-replaced"])
@each_of_theirs
async def test_name_that_another_mount_has_given_stays_after_a_death(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    give_name: Change,
    kept: bytes,
    change: Change,
) -> None:
    """Whoever looks into the run while nothing of this mount runs takes what is there for what is to be there."""
    async with open_file_system(client, run, tmp_path / "mount") as mount:
        await mount.sync.load_run(mount.tree)
        await put_on_its_way(mount, master)
        await change(mount)
        mount.copy_state(tmp_path / "next")
        client.is_revoked = True
    async with open_file_system(master.client(USER), run, tmp_path / "other") as other:
        await other.sync.load_run(other.tree)
        await give_name(other)

        async with open_file_system(master.client(USER), run, tmp_path / "next") as mount:
            await mount.sync.load_run(mount.tree)
            everything = {**CHANGES[change], b"kept": kept}
            assert await mount.shown_contents() == everything
            await mount.make_all_durable()
            await mount.uploader.wait_strays_removed()
            await trio.sleep(SETTLED_SECONDS)

            for each in (mount, other):
                assert await each.shown_contents() == everything
        assert await published(master.client(USER), run) == everything


async def test_name_that_another_mount_has_given_stays_where_the_rename_over_what_replaced_it_is_refused(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the replaced file had replaced is gone from its place by then, and not to be removed once more."""
    put_now = client.put_chunk

    async def put_late(task_id: str, digest: bytes, data: bytes | memoryview) -> None:
        await trio.sleep(2 * UNDER_WAY_SECONDS)
        await put_now(task_id, digest, data)

    monkeypatch.setattr(client, "put_chunk", put_late)
    async with open_both(client, run, tmp_path) as (one, other):
        await put_on_its_way(one, master)
        await other.link(b"name", b"kept")
        await trio.sleep(0.1)
        await one.write_file(b"aside", LONG)
        await one.rename(b"aside", b"name")
        master.news_latency_seconds = 3 * UNDER_WAY_SECONDS
        await other.unlink(b"published")

        with pytest.raises(NotFound):
            await one.rename(b"published", b"name")
        await one.make_all_durable()
        await one.uploader.wait_strays_removed()

        assert await published(client, run) == {b"name": LONG, b"kept": b"old"}
