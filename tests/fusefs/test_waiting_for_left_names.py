"""Who waits for what was renamed while its first commit was under way, and has the name at the master that another has
here: in which order they come, whom a refusal holds up, and what the master has at every moment.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs import commit_composer, commit_sender
from cloudai_fusefs.commit_composer import ComposedCommit
from cloudai_fusefs.commit_order import order_for_commit
from cloudai_fusefs.node import Node
from cloudai_fusefs.recovery import ContentInDoubt
from cloudai_model.errors import DirectoryNotEmpty, NoSpace
from cloudai_model.limits import INLINE_BYTES_MAX
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import HEARTBEAT_SECONDS, FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.lost_power import lose_power
from support.storage_requests import commit_one, directory_commit, published, tree_of
from support.under_way import (
    UNDER_WAY_SECONDS,
    make_directory,
    make_file,
    make_symlink,
    make_two_directories,
    put_on_its_way,
    wait_for_commit,
)


async def test_file_that_is_renamed_to_the_name_while_its_commit_is_composed_comes_after(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await put_on_its_way(file_system, master, make_directory)
    await file_system.rename(b"name", b"moved")
    await file_system.write_file(b"file", b"new")
    node = await file_system.find(b"file")
    compose = commit_composer.compose_commit

    async def compose_and_rename(composed: Node) -> ComposedCommit | None:
        item = await compose(composed)
        if composed is node and node.first_edge == (file_system.tree.root, b"file"):
            await file_system.rename(b"file", b"name")
        return item

    monkeypatch.setattr(commit_sender, "compose_commit", compose_and_rename)
    await file_system.uploader.make_durable([node])

    await file_system.make_all_durable()
    assert await published(client, run) == {b"kept": b"kept", b"name": b"new"}
    assert set(await tree_of(client, run)) == {b"", b"kept", b"name", b"moved"}


async def test_reader_elsewhere_finds_the_name_at_every_moment(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """What was replaced goes when the other is there, and not with the answer that has that under its older name."""
    await put_on_its_way(file_system, master, make_two_directories)
    await file_system.rename(b"one", b"two")
    found: list[bool] = []
    with trio.move_on_after(2 * UNDER_WAY_SECONDS):
        while True:
            found.append(b"two" in await tree_of(client, run))
            await trio.sleep(0.01)

    assert all(found)
    assert set(await tree_of(client, run)) == {b"", b"kept", b"two"}


async def test_of_two_directories_that_wait_for_each_other_one_gets_a_name_beside(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """W16. Of directories that would wait for each other for ever, since several mounts have moved and made them, one
    becomes `NAME.conflict-1`.
    """
    await file_system.namespace.load(file_system.tree.root)
    master.go_away()
    await file_system.mkdir(b"one")
    await file_system.mkdir(b"two")
    await file_system.write_file(b"one/file", b"first")
    await file_system.write_file(b"two/file", b"second")
    await file_system.write_file(b"other", b"other")
    root, left_names = file_system.tree.root, file_system.tree.left_names
    left_names.note(await file_system.find(b"one"), (root, b"two"))
    left_names.note(await file_system.find(b"two"), (root, b"one"))
    master.come_back()

    with trio.fail_after(10):
        await file_system.make_all_durable()

    contents = await published(client, run)
    assert sorted(contents.values()) == [b"first", b"other", b"second"]
    assert sum(b".conflict-1/" in path for path in contents) == 1
    assert {path: shown.content for path, shown in file_system.shown().items()}.keys() == contents.keys() | {
        path.rpartition(b"/")[0] for path in contents if b"/" in path
    }
    assert not left_names


async def test_directory_that_waits_for_what_is_in_it_gets_a_name_beside_also_after_a_death(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path / "one") as one:
        await one.namespace.load(one.tree.root)
        await one.write_file(b"other", b"other")
        await one.make_all_durable()
        await trio.sleep(HEARTBEAT_SECONDS)
        master.latency_seconds = 2.0
        await one.mkdir(b"above")
        await one.mkdir(b"above/below")
        await one.write_file(b"above/below/file", b"content")
        one.tree.left_names.note(await one.find(b"above/below"), (one.tree.root, b"above"))
        with trio.fail_after(10):
            while b"above.conflict-1" not in one.shown():
                await trio.sleep(0.1)
        one.copy_state(tmp_path / "next")
    master.latency_seconds = 0.0

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()

    assert await published(client, run) == {
        b"other": b"other",
        b"above.conflict-1/below/file": b"content",
    }


async def test_refusal_of_what_left_the_name_is_that_of_who_waits_for_it(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await put_on_its_way(file_system, master, make_file)
    await file_system.rename(b"name", b"moved")
    handle = await file_system.open(b"moved")
    await file_system.write(handle, 0, b"more than fits" * INLINE_BYTES_MAX)
    free_bytes, master.store.free_bytes = master.store.free_bytes, 0
    file_system.close_handle(handle)
    await file_system.mkdir(b"name")

    with pytest.raises(NoSpace):
        await file_system.make_all_durable()
    await trio.sleep(2)
    waiting = (await file_system.find(b"name")).pending
    assert waiting is not None
    assert isinstance(waiting.failure, NoSpace)
    master.store.free_bytes = free_bytes
    await trio.sleep(10)
    await file_system.make_all_durable()
    assert set(await tree_of(client, run)) == {b"", b"kept", b"moved", b"name"}


async def test_refused_file_that_left_the_name_is_tried_again_by_itself(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """Although who waits for it is tried again at other times."""
    await put_on_its_way(file_system, master, make_file)
    await file_system.rename(b"name", b"moved")
    handle = await file_system.open(b"moved")
    await file_system.write(handle, 0, b"more than fits" * INLINE_BYTES_MAX)
    free_bytes, master.store.free_bytes = master.store.free_bytes, 0
    file_system.close_handle(handle)
    await file_system.mkdir(b"name")
    await trio.sleep(30)
    master.store.free_bytes = free_bytes

    await trio.sleep(30)

    assert not file_system.tree.pending
    assert set(await tree_of(client, run)) == {b"", b"kept", b"moved", b"name"}


async def test_file_that_stays_open_keeps_its_name_from_another_for_two_seconds_at_most(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """One that is written over is no log, and would be committed when it is closed."""
    await put_on_its_way(file_system, master, make_file)
    await file_system.rename(b"name", b"moved")
    handle = await file_system.open(b"moved")
    data = b"x" * (INLINE_BYTES_MAX + 1)
    await file_system.write(handle, 0, data)
    await file_system.mkdir(b"name")
    await trio.sleep(UNDER_WAY_SECONDS)

    await trio.sleep(2)

    assert set(await tree_of(client, run)) == {b"", b"kept", b"moved", b"name"}
    assert await published(client, run) == {b"kept": b"kept", b"moved": data}
    file_system.close_handle(handle)


async def test_two_that_left_one_name_are_known_until_both_are_there(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await put_on_its_way(file_system, master, make_file)
    await file_system.rename(b"name", b"first")
    await file_system.write_file(b"name", b"new")
    await wait_for_commit(master)
    await file_system.rename(b"first", b"moved")
    await file_system.rename(b"name", b"second")
    await file_system.unlink(b"second")

    await file_system.make_all_durable()

    assert await published(client, run) == {b"kept": b"kept", b"moved": b"old"}
    assert not file_system.tree.left_names
    assert not caplog.records


async def test_a_thousand_directories_may_wait_in_a_row(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster
) -> None:
    """Each took the name of the next while the commits of all were under way."""
    await file_system.namespace.load(file_system.tree.root)
    master.go_away()
    root, left_names = file_system.tree.root, file_system.tree.left_names
    line: list[Node] = []
    for number in range(1100):
        await file_system.mkdir(b"%d" % number)
        line.append(await file_system.find(b"%d" % number))
        if number:
            left_names.note(line[number - 1], (root, b"%d" % number))

    assert order_for_commit(reversed(line)) == line
    assert order_for_commit([line[-1]]) == line
    master.come_back()


async def test_next_mount_does_not_upload_what_a_loss_of_power_may_have_damaged_for_another(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """D8. After a loss of power, content that was not yet uploaded and not known to be on the workstation's disk is not
    uploaded by itself.
    """
    async with open_file_system(client, run, tmp_path / "first") as first:
        await put_on_its_way(first, master, make_file)
        await first.rename(b"name", b"moved")
        handle = await first.open(b"moved")
        await first.write(handle, 0, b"maybe lost")
        await first.mkdir(b"name")
        master.latency_seconds = 100.0
        await trio.sleep(UNDER_WAY_SECONDS)
        first.copy_state(tmp_path / "next")
    master.latency_seconds = 0.0
    lose_power(tmp_path / "next" / "state")
    async with open_file_system(client, run, tmp_path / "next") as mount:
        await trio.sleep(10)
        assert await published(client, run) == {b"kept": b"kept", b"name": b"old"}

        await mount.set_attributes(b"moved", mode=0o600)
        await mount.make_all_durable()
        assert await published(client, run) == {b"kept": b"kept", b"moved": b"maybe lost"}
        assert set(await tree_of(client, run)) == {b"", b"kept", b"moved", b"name"}


async def test_name_of_what_cannot_be_recovered_holds_up_nobody(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path / "first") as first:
        for name in (b"from", b"to"):
            await first.mkdir(name)
        await first.make_all_durable()
        handle = await first.create(b"other")  # open, so that it is not under way with the next
        await first.write(handle, 0, b"other")
        await first.write_file(b"from/name", b"old")
        await wait_for_commit(master)
        await first.rename(b"from/name", b"to/moved")
        await first.rename(b"other", b"from/name")
        node = await first.find(b"to/moved")
        first.copy_state(tmp_path / "next")
    master.answer_latency_seconds = 0.0
    staged = tmp_path / "next" / "state" / "staged" / run.task_id / str(node.node_id)
    staged.unlink()
    staged.mkdir()
    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.unlink(b"from/name")
        with pytest.raises(DirectoryNotEmpty):  # as the master has it
            await mount.rmdir(b"from")
    assert not mount.tree.left_names


@pytest.mark.parametrize("is_renamed", [False, True], ids=["made", "renamed"])
async def test_fsynced_file_is_not_lost_at_the_master_with_the_name_that_it_left(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    is_renamed: bool,
) -> None:
    """D3, also while what was written to it since is on its way and another file has its old name already."""
    await file_system.write_file(b"new", b"new")
    handle = await file_system.create(b"log")
    await file_system.write(handle, 0, b"acknowledged")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file_system.fsync, handle)
        await wait_for_commit(master)
        await file_system.rename(b"log", b"log.1")
    await file_system.write(handle, 12, b"x" * INLINE_BYTES_MAX)
    if is_renamed:
        await file_system.rename(b"new", b"log")
    else:
        await file_system.write_file(b"log", b"new")

    seconds = 0.0
    while (await published(client, run)).get(b"log") != b"new":
        assert any(data.startswith(b"acknowledged") for data in (await published(client, run)).values())
        await trio.sleep(0.05)
        seconds += 0.05
    assert (await published(client, run))[b"log.1"].startswith(b"acknowledged")
    assert seconds < 3
    file_system.close_handle(handle)
    await file_system.make_all_durable()


@pytest.mark.parametrize(
    "made", [make_file, make_symlink, make_directory], ids=["file", "symlink", "directory"]
)
async def test_name_that_was_left_is_not_shown_again_while_what_replaced_its_node_is_under_way(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    made: Callable[[FileSystemHarness], Awaitable[None]],
) -> None:
    """News tell of it there until the commit of the other has arrived."""
    await put_on_its_way(file_system, master, made)
    await file_system.rename(b"name", b"moved")
    if made is make_directory:
        await file_system.mkdir(b"new")
    else:
        await file_system.write_file(b"new", b"new")
    await file_system.rename(b"new", b"moved")
    master.latency_seconds = 2 * UNDER_WAY_SECONDS

    for _ in range(4):
        await trio.sleep(UNDER_WAY_SECONDS / 2)
        assert set(file_system.shown()) == {b"kept", b"moved"}
    assert set(await tree_of(client, run)) == {b"", b"kept", b"name"}
    master.latency_seconds = 0
    await file_system.make_all_durable()
    await file_system.uploader.wait_strays_removed()
    assert set(await tree_of(client, run)) == {b"", b"kept", b"moved"}
    assert set(file_system.shown()) == {b"kept", b"moved"}


async def test_rename_that_replaces_nothing_finds_the_name_free_that_another_has_left(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """`mv -n` would leave the file where it is, and say nothing."""
    await put_on_its_way(file_system, master, make_file)
    await file_system.rename(b"name", b"moved")
    root = file_system.tree.root

    await file_system.rearrangements.rename(root, b"kept", root, b"name", no_replace=True)

    await file_system.make_all_durable()
    assert await published(client, run) == {b"name": b"kept", b"moved": b"old"}
    assert set(file_system.shown()) == {b"name", b"moved"}


async def test_what_comes_along_and_changes_meanwhile_is_on_the_agenda_still(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    tree = file_system.tree
    await put_on_its_way(file_system, master, make_file)
    await file_system.rename(b"name", b"moved")
    await file_system.write_file(b"name", b"new")
    moved = await file_system.find(b"moved")
    # Just before the answer, with which `name` is due, and `moved` not yet.
    await trio.sleep(UNDER_WAY_SECONDS - 0.2)
    async with tree.mutation_lock, trio.open_nursery() as nursery:
        await trio.sleep(0.5)  # `moved` has come along, and waits for the lock
        handle = await file_system.open(b"moved", os.O_RDWR)
        await file_system.write(handle, 0, b"x" * (INLINE_BYTES_MAX + 1))
        file_system.close_handle(handle)
        nursery.start_soon(file_system.uploader.make_durable, [moved])
        await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    with trio.fail_after(100):
        await file_system.uploader.make_durable([moved])
        await file_system.make_all_durable()


async def test_fsynced_file_stays_at_the_master_although_its_new_name_is_refused_there(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """D3."""
    handle = await file_system.create(b"log")
    await file_system.write(handle, 0, b"acknowledged")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file_system.fsync, handle)
        await wait_for_commit(master)
        await file_system.rename(b"log", b"log.1")
    file_system.close_handle(handle)
    await commit_one(client, run, directory_commit(b"log.1"))  # elsewhere
    await file_system.write_file(b"log", b"new")
    for _ in range(100):
        assert b"acknowledged" in (await published(client, run)).values()
        await trio.sleep(0.1)


async def test_what_stays_behind_after_all_keeps_its_name_from_another(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """D3, also of what was given names while a batch was composed."""
    handle = await file_system.create(b"log")
    await file_system.write(handle, 0, b"acknowledged")
    await file_system.write_file(b"d", b"d")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file_system.fsync, handle)
        nursery.start_soon(file_system.uploader.make_durable, [await file_system.find(b"d")])
        await wait_for_commit(master)
        await file_system.rename(b"log", b"log.1")
        await file_system.rename(b"d", b"d.1")
        open_handle = await file_system.open(b"d.1")
        await file_system.write(open_handle, 0, os.urandom(INLINE_BYTES_MAX + 1))
        file_system.close_handle(handle)
    await file_system.write_file(b"tmp", b"new")
    log = await file_system.find(b"log.1")
    compose = commit_composer.compose_commit
    put = FakeMasterClient.put_chunk
    is_renamed = False

    async def compose_and_rename(composed: Node) -> ComposedCommit | None:
        nonlocal is_renamed
        item = await compose(composed)
        if composed is log and not is_renamed:
            is_renamed = True
            await file_system.rename(b"tmp", b"log")
            await file_system.rename(b"log.1", b"d")
        return item

    async def put_slowly(self: FakeMasterClient, task_id: str, digest: bytes, data: bytes) -> None:
        await trio.sleep(8)
        await put(self, task_id, digest, data)

    monkeypatch.setattr(FakeMasterClient, "put_chunk", put_slowly)
    monkeypatch.setattr(commit_sender, "compose_commit", compose_and_rename)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file_system.uploader.make_durable, [await file_system.find(b"tmp"), log])
        for _ in range(200):
            assert b"acknowledged" in (await published(client, run)).values()
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert is_renamed
    file_system.close_handle(open_handle)


@pytest.mark.parametrize("is_directory", [False, True], ids=["file", "directory"])
async def test_files_that_stay_open_keep_their_names_from_others_for_three_seconds_at_most(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    caplog: pytest.LogCaptureFixture,
    is_directory: bool,
) -> None:
    """Also where the second of them has taken the first one's name."""
    await file_system.write_file(b"a", b"a")
    await file_system.write_file(b"b", b"b")
    await wait_for_commit(master)
    await file_system.rename(b"a", b"g")
    await file_system.rename(b"b", b"a")
    for name in (b"g", b"a"):
        await file_system.write(await file_system.open(name), 0, b"x" * (INLINE_BYTES_MAX + 1))
    await (file_system.mkdir(b"b") if is_directory else file_system.write_file(b"b", b"new"))
    with trio.move_on_after(300):
        while file_system.tree.pending:
            await trio.sleep(0.1)
    assert trio.current_time() < UNDER_WAY_SECONDS + 3
    assert not caplog.records


async def test_who_waits_by_way_of_another_for_a_long_upload_is_told_of_no_refusal(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put = FakeMasterClient.put_chunk

    async def put_slowly(self: FakeMasterClient, task_id: str, digest: bytes, data: bytes) -> None:
        await trio.sleep(100)
        await put(self, task_id, digest, data)

    async with open_file_system(client, run, tmp_path, timeo_seconds=120) as mount:
        await mount.write_file(b"a", b"a")
        await mount.mkdir(b"n")
        await wait_for_commit(master)
        await mount.rename(b"a", b"g")
        monkeypatch.setattr(FakeMasterClient, "put_chunk", put_slowly)
        handle = await mount.open(b"g")
        await mount.write(handle, 0, os.urandom(INLINE_BYTES_MAX + 1))
        mount.close_handle(handle)
        await mount.rename(b"n", b"a")
        await mount.mkdir(b"n")
        await trio.sleep(90)
        assert mount.tree.pending
        assert [pending.failure for pending in mount.tree.pending.values() if pending.failure] == []
        await mount.make_all_durable()
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


async def _lose_power_beside_a_left_name(
    master: FakeMaster, client: FakeMasterClient, run: types.Run, directory: Path
) -> None:
    async with open_file_system(client, run, directory / "first") as first:
        await first.mkdir(b"dir")
        await first.make_all_durable()
        await first.write_file(b"dir/name", b"old")
        await wait_for_commit(master)
        await first.rename(b"dir/name", b"moved")
        await first.write(await first.open(b"moved"), 0, b"maybe lost")
        first.copy_state(directory / "next")
    master.answer_latency_seconds = 0.0
    lose_power(directory / "next" / "state")


@pytest.mark.parametrize("is_drained", [False, True], ids=["rmdir", "drain"])
async def test_nobody_waits_for_what_a_person_has_to_look_at_although_it_was_renamed(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    is_drained: bool,
) -> None:
    """D8. Its failure says what is to be done; a new name does not."""
    await _lose_power_beside_a_left_name(master, client, run, tmp_path)
    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.rename(b"moved", b"other")
        with trio.fail_after(3000):
            if is_drained:
                await mount.uploader.drain()
            else:
                with pytest.raises(ContentInDoubt):
                    await mount.rearrangements.rmdir(mount.tree.root, b"dir")


async def test_late_news_of_the_first_commit_do_not_show_the_name_that_was_left(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """Those of the second take it away again, but they come later."""
    await put_on_its_way(file_system, master, make_file)
    master.news_latency_seconds = 3 * UNDER_WAY_SECONDS
    await file_system.rename(b"name", b"moved")
    await file_system.make_all_durable()
    assert set(await tree_of(client, run)) == {b"", b"kept", b"moved"}

    for _ in range(100):
        await trio.sleep(UNDER_WAY_SECONDS / 10)
        assert set(file_system.shown()) == {b"kept", b"moved"}
