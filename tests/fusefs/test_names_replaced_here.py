"""Names that are given up here before the master has heard who has them: what it has under them stays until it has what
was put in its place, and for good where nobody here has replaced it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from cloudai_model.limits import CHUNK_BYTES_MAX
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER, published
from support.two_mounts import open_both

SETTLED_SECONDS = 10.0


Change = Callable[[FileSystemHarness], Awaitable[None]]
Contents = dict[bytes, bytes]


async def replace(mount: FileSystemHarness) -> None:
    """`name`, which the master has, by what it has not."""
    await mount.write_file(b"aside", b"new")
    await mount.rename(b"aside", b"name")


async def rename(mount: FileSystemHarness) -> None:
    await replace(mount)
    await mount.rename(b"name", b"moved")


async def rename_twice(mount: FileSystemHarness) -> None:
    await rename(mount)
    await mount.rename(b"moved", b"name")


async def rename_over_another(mount: FileSystemHarness) -> None:
    await replace(mount)
    await mount.rename(b"name", b"other")


async def rename_and_make_anew(mount: FileSystemHarness) -> None:
    await rename(mount)
    await mount.write_file(b"name", b"newest")


async def replace_again(mount: FileSystemHarness) -> None:
    await replace(mount)
    await mount.write_file(b"aside", b"newest")
    await mount.rename(b"aside", b"name")


async def remove(mount: FileSystemHarness) -> None:
    await replace(mount)
    await mount.unlink(b"name")


async def replace_one_name_of_two(mount: FileSystemHarness) -> None:
    await mount.write_file(b"aside", b"new")
    await mount.rename(b"aside", b"linked")
    await mount.rename(b"linked", b"moved")


async def replace_one_name_of_two_and_write_to_the_other(mount: FileSystemHarness) -> None:
    handle = await mount.open(b"other")
    await mount.write(handle, 0, b"OTHER")
    mount.close_handle(handle)
    await replace_one_name_of_two(mount)


CHANGES: Final[dict[Change, Contents]] = {
    replace: {b"name": b"new", b"other": b"other", b"linked": b"other"},
    rename: {b"moved": b"new", b"other": b"other", b"linked": b"other"},
    rename_twice: {b"name": b"new", b"other": b"other", b"linked": b"other"},
    rename_over_another: {b"other": b"new", b"linked": b"other"},
    rename_and_make_anew: {b"moved": b"new", b"name": b"newest", b"other": b"other", b"linked": b"other"},
    replace_again: {b"name": b"newest", b"other": b"other", b"linked": b"other"},
    remove: {b"other": b"other", b"linked": b"other"},
    replace_one_name_of_two: {b"name": b"old", b"moved": b"new", b"other": b"other"},
    replace_one_name_of_two_and_write_to_the_other: {b"name": b"old", b"moved": b"new", b"other": b"OTHER"},
}
ANY: Final = {b"old", b"new", b"newest", b"other", b"OTHER"}
each_change = pytest.mark.parametrize(
    ("change", "expected"), CHANGES.items(), ids=[change.__name__ for change in CHANGES]
)


async def publish(mount: FileSystemHarness) -> None:
    await mount.sync.load_run(mount.tree)
    await mount.write_file(b"name", b"old")
    await mount.write_file(b"other", b"other")
    await mount.make_all_durable()
    await mount.link(b"other", b"linked")
    await mount.make_all_durable()


@each_change
async def test_replaced_file_is_at_the_master_until_what_replaced_it_is(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    change: Change,
    expected: Contents,
) -> None:
    """D6. A file that is replaced by renaming another over it is replaced as a whole: at the master and on every mount
    there is the old content or the new, never a part.

    Never neither: the workstation may be lost at any moment.
    """
    async with open_file_system(client, run, tmp_path / "mount", timeo_seconds=10) as mount:
        await publish(mount)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, mount)
            with trio.fail_after(SETTLED_SECONDS):
                while (contents := await published(client, run)) != expected:
                    if b"new" in expected.values():
                        assert {b"old", b"new"} & set(contents.values())
                    assert {b"other", b"OTHER"} & set(contents.values())
                    assert set(contents.values()) <= ANY
                    await trio.sleep(0.001)
        assert {path: await mount.read_file(path) for path in mount.shown()} == expected


async def test_directory_is_removed_though_it_held_what_was_replaced_here(
    clock: MockClock, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path / "mount", timeo_seconds=10) as mount:
        await mount.sync.load_run(mount.tree)
        for directory in (b"removed", b"replaced", b"by"):
            await mount.mkdir(directory)
        for directory in (b"removed", b"replaced"):
            await mount.write_file(directory + b"/name", b"old")
        await mount.make_all_durable()
        for directory in (b"removed", b"replaced"):
            await mount.write_file(b"aside", b"new")
            await mount.rename(b"aside", directory + b"/name")
            await mount.rename(directory + b"/name", b"from-" + directory)

        await mount.rmdir(b"removed")
        await mount.rename(b"by", b"replaced")

        await mount.make_all_durable()
        expected = {b"from-removed": b"new", b"from-replaced": b"new"}
        assert await published(client, run) == expected
        assert mount.shown().keys() == expected.keys() | {b"replaced"}


async def test_row_of_what_is_being_replaced_does_not_take_the_name_back_after_a_death(
    clock: MockClock, master: FakeMaster, full_client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """Its mode is changed between the master's doing and its answer."""
    async with open_file_system(full_client, run, tmp_path / "mount", timeo_seconds=10) as mount:
        await publish(mount)
        await mount.write_file(b"aside", b"new")
        await mount.make_all_durable()
        handle = await mount.open(b"name")
        await mount.write(handle, 0, bytes(CHUNK_BYTES_MAX) + b"OLD")
        master.news_latency_seconds = 1.0
        master.answer_latency_seconds = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.rename, b"aside", b"name")
            while not master.call_count["rename"]:
                await trio.sleep(0.001)
            await mount.set_attributes(b"name", mode=0o600)
            mount.copy_state(tmp_path / "next")
        mount.close_handle(handle)
    master.answer_latency_seconds = 0.0

    client = master.client(USER)
    async with open_file_system(client, run, tmp_path / "next", timeo_seconds=10) as mount:
        await mount.make_all_durable()
        assert (await published(client, run))[b"name"] == b"new"


async def test_replaced_file_that_was_moved_elsewhere_before_stays_there(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    client = master.client(USER)
    async with open_both(client, run, tmp_path) as (one, other):
        await one.write_file(b"name", b"old")
        await one.make_all_durable()
        await trio.sleep(1)
        master.news_latency_seconds = 2.0
        await other.rename(b"name", b"kept")
        await rename(one)
        await trio.sleep(SETTLED_SECONDS)

        expected = {b"kept": b"old", b"moved": b"new"}
        assert await published(client, run) == expected
        for mount in (one, other):
            assert {path: await mount.read_file(path) for path in mount.shown()} == expected


async def test_file_made_elsewhere_under_a_name_that_is_left_here_stays(
    clock: MockClock, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """W12. A file that another mount made under the same name stays when the one here is renamed or removed before it
    is at the master and before its mount has died.
    """
    async with (
        open_file_system(client, run, tmp_path / "one", timeo_seconds=10) as one,
        open_file_system(client, run, tmp_path / "other", timeo_seconds=10) as other,
    ):
        for mount in (one, other):
            await mount.sync.load_run(mount.tree)
        for name in (b"moved", b"removed"):
            await other.write_file(name, b"theirs")
        await trio.sleep(0.04)
        handles = {name: await one.create(name) for name in (b"moved", b"removed")}
        await other.make_all_durable()
        await trio.sleep(0.01)  # the news have come
        for handle in handles.values():
            await one.write(handle, 0, b"ours")
            one.close_handle(handle)

        await one.rename(b"moved", b"result")
        await one.unlink(b"removed")
        await one.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)

        expected = {b"moved": b"theirs", b"removed": b"theirs", b"result": b"ours"}
        assert await published(client, run) == expected
        for mount in (one, other):
            assert {path: await mount.read_file(path) for path in mount.shown()} == expected


@pytest.mark.parametrize("is_on_its_way", [False, True], ids=["staged", "on-its-way"])
async def test_file_takes_the_place_of_what_has_replaced_another_of_its_names(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    is_on_its_way: bool,
) -> None:
    """At the master both names are its own until the other has come: to rename one to the other does nothing."""
    await file_system.write_file(b"one", b"linked")
    await file_system.link(b"one", b"two")
    await file_system.make_all_durable()
    await file_system.write_file(b"new", b"new")
    await file_system.rename(b"new", b"two")
    if is_on_its_way:
        master.latency_seconds = 0.5
        await trio.sleep(0.2)

    await file_system.rename(b"one", b"two")

    await file_system.make_all_durable()
    assert await published(client, run) == {b"two": b"linked"}
    assert set(file_system.shown()) == {b"two"}
