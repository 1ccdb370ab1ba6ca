"""A commit without an answer, and names that are changed at the master before it is repeated: whether it was carried
out or not, in the end there is what the last operation made, at the master and on the mount, also after its death.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.node import new_node_id
from cloudai_model.errors import InternalError, NoSpace
from cloudai_model.limits import CHUNK_BYTES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import (
    USER,
    commit_one,
    file_commit,
    published,
    remove,
    request_id,
    seal,
    tree_of,
)
from support.under_way import UNDER_WAY_SECONDS, wait_for_commit

TIMEO_SECONDS = 10
LONG = bytes(CHUNK_BYTES_MAX) + b"the rest"

Contents = dict[bytes, bytes]


async def _replaced(mount: FileSystemHarness) -> None:
    await mount.rename(b"other", b"directory/name")


async def _removed_and_replaced(mount: FileSystemHarness) -> None:
    await mount.unlink(b"directory/name")
    await mount.rename(b"other", b"directory/name")


async def _moved_and_replaced(mount: FileSystemHarness) -> None:
    await mount.rename(b"directory/name", b"moved")
    await mount.rename(b"other", b"directory/name")


async def _removed_with_its_directory(mount: FileSystemHarness) -> None:
    await mount.unlink(b"directory/name")
    await mount.rmdir(b"directory")


@pytest.mark.parametrize("is_carried_out", [True, False], ids=["carried-out", "lost"])
@pytest.mark.parametrize(
    ("change_names", "expected", "directories"),
    [
        (_replaced, {b"directory/name": b"other"}, {b"directory"}),
        (_removed_and_replaced, {b"directory/name": b"other"}, {b"directory"}),
        (_moved_and_replaced, {b"directory/name": b"other", b"moved": LONG}, {b"directory"}),
        (_removed_with_its_directory, {b"other": b"other"}, set()),
    ],
)
async def test_names_changed_before_a_lost_commit_is_repeated_stay_as_they_are(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    change_names: Callable[[FileSystemHarness], Awaitable[None]],
    expected: Contents,
    directories: set[bytes],
    is_carried_out: bool,
) -> None:
    async with open_file_system(client, run, tmp_path / "first", timeo_seconds=TIMEO_SECONDS) as first:
        await first.namespace.load(first.tree.root)
        await first.mkdir(b"directory")
        await first.write_file(b"other", b"other")
        await first.make_all_durable()
        await lose_commit(first, master, b"directory/name", is_carried_out=is_carried_out)

        await change_names(first)

        first.copy_state(tmp_path / "next")
        await first.make_all_durable()
        await first.uploader.wait_strays_removed()
        assert await published(client, run) == expected
        assert await first.shown_contents() == expected
    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()
        await mount.uploader.wait_strays_removed()
        assert await published(client, run) == expected
        assert set(await tree_of(client, run)) - {b""} == expected.keys() | directories
        assert await mount.shown_contents() == expected


async def test_name_that_a_lost_commit_gave_is_not_shown_by_the_next_mount(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path / "first", timeo_seconds=TIMEO_SECONDS) as first:
        await first.namespace.load(first.tree.root)
        await first.write_file(b"name", b"old")
        master.answer_latency_seconds = 1.0
        while not master.call_count["commit_nodes"]:
            await trio.sleep(0.01)
        await trio.sleep(0.5)
        master.go_away()
        await first.rename(b"name", b"moved")
        await first.write_file(b"other", b"new")
        await first.rename(b"other", b"moved")
        first.copy_state(tmp_path / "next")
    master.answer_latency_seconds = 0.0
    master.come_back()
    assert await published(client, run) == {b"name": b"old"}

    async with open_file_system(client, run, tmp_path / "next") as mount:
        assert await mount.shown_contents() == {b"moved": b"new"}
        await mount.make_all_durable()
        await mount.uploader.wait_strays_removed()
        assert await mount.shown_contents() == {b"moved": b"new"}
        assert await published(client, run) == {b"moved": b"new"}


async def test_next_mount_that_takes_up_a_rename_moves_no_time_of_its_directories(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path / "first", timeo_seconds=TIMEO_SECONDS) as first:
        await first.namespace.load(first.tree.root)
        await lose_commit(first, master, b"name", is_carried_out=True)
        await first.rename(b"name", b"moved")
        first.copy_state(tmp_path / "next")

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()
        assert mount.tree.root.mtime_ns == await time_at_master(client, run)


async def test_next_mount_that_makes_a_directory_anew_moves_no_time_of_the_one_above(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path / "first", timeo_seconds=TIMEO_SECONDS) as first:
        await first.namespace.load(first.tree.root)
        await first.mkdir(b"directory")
        await first.make_all_durable()
        await first.write_file(b"directory/name", b"new")
        first.copy_state(tmp_path / "next")
    directory = (await tree_of(client, run))[b"directory"]
    await remove(client, run, run.root_node_id, b"directory", directory.node_id)

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()
        assert await published(client, run) == {b"directory/name": b"new"}
        assert mount.tree.root.mtime_ns == await time_at_master(client, run)


async def time_at_master(client: FakeMasterClient, run: types.Run) -> int:
    """The modification time of the run's own directory."""
    return (await client.list_tree(run.task_id)).root.attributes.mtime_ns


async def lose_commit(
    file_system: FileSystemHarness, master: FakeMaster, path: bytes, *, is_carried_out: bool
) -> None:
    """Writes a new file; the master is away when its commit arrives, or goes away before it answers. It is back now."""
    # Its directory's time is acknowledged before: nothing but the file itself is on its way.
    handle = await file_system.create(path)
    await file_system.write(handle, 0, LONG)
    while any(node.is_directory for node in file_system.tree.pending):
        await trio.sleep(0.01)
    before = master.call_count["commit_nodes"]
    if is_carried_out:
        master.answer_latency_seconds = 1.0
    else:
        master.latency_seconds = 1.0
    file_system.close_handle(handle)
    while master.call_count["commit_nodes"] == before:
        await trio.sleep(0.01)
    await trio.sleep(0.5)
    master.go_away()
    # Until the mount has given up: for so long nobody else could change names.
    await trio.sleep(3 * TIMEO_SECONDS)
    master.latency_seconds = master.answer_latency_seconds = 0.0
    master.come_back()


async def test_stray_whose_removal_is_refused_is_shown_again(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refuse(request: names.RemoveRequest) -> names.RemoveResponse:
        raise InternalError("not today")

    monkeypatch.setattr(client, "remove", refuse)
    await file_system.sync.load_run(file_system.tree)
    node_id = new_node_id()
    file_system.tree.stray_names.note_anywhere(node_id)
    file_system.tree.stray_ids.append(node_id)
    await commit_one(client, run, file_commit(b"stray", b"content", node=node_id))
    await trio.sleep(1)
    assert file_system.shown().keys() == set()

    file_system.uploader.note_change(file_system.tree.root)
    await file_system.uploader.wait_strays_removed()
    await trio.sleep(10)

    assert file_system.shown().keys() == {b"stray"}
    assert "what was removed may still be there" in caplog.text


async def test_stray_that_a_full_master_does_not_remove_is_removed_once_there_is_room(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing else is pending that would wake the uploads."""
    remove_now, refused_count = client.remove, 0

    async def refuse_twice(request: names.RemoveRequest) -> names.RemoveResponse:
        nonlocal refused_count
        if refused_count == 2:
            return await remove_now(request)
        refused_count += 1
        raise NoSpace

    monkeypatch.setattr(client, "remove", refuse_twice)
    await file_system.sync.load_run(file_system.tree)
    await file_system.write_file(b"name", b"first")
    await wait_for_commit(master)
    await file_system.rename(b"name", b"moved")
    await file_system.write_file(b"aside", b"second")
    await file_system.rename(b"aside", b"moved")

    await file_system.uploader.drain()
    with pytest.raises(NoSpace), trio.fail_after(60):
        await file_system.uploader.wait_strays_removed()
    await trio.sleep(60)

    assert refused_count == 2
    await file_system.uploader.wait_strays_removed()
    assert await published(client, run) == {b"moved": b"second"} == await file_system.shown_contents()


async def test_full_master_is_asked_to_remove_a_stray_every_few_seconds_whatever_is_written_meanwhile(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused_count = 0

    async def refuse(request: names.RemoveRequest) -> names.RemoveResponse:
        nonlocal refused_count
        refused_count += 1
        raise NoSpace

    monkeypatch.setattr(client, "remove", refuse)
    await file_system.sync.load_run(file_system.tree)
    await file_system.write_file(b"name", b"first")
    await wait_for_commit(master)
    await file_system.rename(b"name", b"moved")
    await file_system.write_file(b"aside", b"second")
    await file_system.rename(b"aside", b"moved")
    handle = await file_system.create(b"log")

    for _ in range(300):
        await file_system.append(handle, b"a line")
        await trio.sleep(0.1)

    file_system.close_handle(handle)
    assert 2 <= refused_count <= 12


async def test_further_name_from_elsewhere_is_renamed_at_the_master_before_a_lost_commit_is_repeated(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """The next mount does not know whether the file is there: its commit would place it under its first name alone."""
    async with open_file_system(client, run, tmp_path / "mount", timeo_seconds=TIMEO_SECONDS) as mount:
        await mount.sync.load_run(mount.tree)
        await mount.write_file(b"name", b"content")
        await wait_for_commit(master)
        mount.copy_state(tmp_path / "next")
        client.is_revoked = True
    observer = master.client(USER)
    name = (await tree_of(observer, run))[b"name"]
    await observer.link(
        names.LinkRequest(
            request_id=request_id(),
            task_id=run.task_id,
            node_id=name.node_id,
            parent_node_id=run.root_node_id,
            name=b"theirs",
        )
    )

    async with open_file_system(observer, run, tmp_path / "next", timeo_seconds=TIMEO_SECONDS) as mount:
        await mount.sync.load_run(mount.tree)
        await mount.rename(b"theirs", b"moved")
        await mount.make_all_durable()

        expected = {b"name": b"content", b"moved": b"content"}
        assert await published(observer, run) == expected == await mount.shown_contents()


@pytest.mark.parametrize("dies", [False, True], ids=["alive", "died"])
async def test_stray_that_is_still_there_when_its_run_is_sealed_is_shown_again(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dies: bool,
) -> None:
    """D11. A file that was changed elsewhere, or whose run was sealed, before its removal reached the master is shown
    again.
    """
    remove_now, is_sealed = client.remove, trio.Event()

    async def remove_later(request: names.RemoveRequest) -> names.RemoveResponse:
        await is_sealed.wait()
        return await remove_now(request)

    monkeypatch.setattr(client, "remove", remove_later)
    async with open_file_system(client, run, tmp_path / "mount", timeo_seconds=TIMEO_SECONDS) as mount:
        await mount.sync.load_run(mount.tree)
        await mount.write_file(b"name", b"first")
        await wait_for_commit(master)
        await mount.rename(b"name", b"moved")
        await mount.write_file(b"aside", b"second")
        await mount.rename(b"aside", b"moved")
        await trio.sleep(2 * UNDER_WAY_SECONDS)
        mount.copy_state(tmp_path / "next")
        if not dies:
            await seal(master.client(USER), run)
            await trio.sleep(1)
            is_sealed.set()
            await trio.sleep(1)
            assert await mount.shown_contents() == {b"name": b"first", b"moved": b"second"}
    if dies:
        await seal(master.client(USER), run)
        observer = master.client(USER)
        async with open_file_system(observer, run, tmp_path / "next", timeo_seconds=TIMEO_SECONDS) as mount:
            assert await mount.shown_contents() == {b"name": b"first", b"moved": b"second"}
