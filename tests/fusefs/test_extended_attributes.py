"""Extended attributes of a mount beside what others do: which of them are shown, and which the master gets."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.extended_attributes import NoXattr, XattrsTooLarge
from cloudai_fusefs.mount_control import FileState
from cloudai_fusefs.node import Node
from cloudai_model.errors import MasterUnavailable, NotSupported, Unauthenticated
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.full_journal import full_journal
from support.storage_requests import USER, commit_one, file_commit, remove, seal, tree_of

NEWS_SECONDS = 1.0


@pytest.fixture
async def durable(file_system: FileSystemHarness) -> FileSystemHarness:
    """A mount with a file that the master has, and whose watch is healthy."""
    await file_system.write_file(b"f", b"content")
    await file_system.set_xattr(b"f", b"user.first", b"1")
    await file_system.make_all_durable()
    await trio.sleep(NEWS_SECONDS)
    assert file_system.tree.watch_is_healthy
    return file_system


def xattrs_of(node: types.Node) -> dict[bytes, bytes]:
    return {xattr.name: xattr.value for xattr in node.xattrs.xattrs}


async def set_elsewhere(client: FakeMasterClient, run: types.Run, **values: bytes) -> None:
    """Instead of all that the file has."""
    node = (await tree_of(client, run))[b"f"]
    one = file_commit(b"f", node=node.node_id, place=False)
    for name, value in sorted(values.items()):
        one.xattrs.xattrs.add(name=b"user." + name.encode(), value=value)
    one.xattrs.SetInParent()
    await commit_one(client, run, one)


async def test_change_of_something_else_does_not_undo_what_others_set(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    handle = await durable.open(b"f")
    await durable.append(handle, b", and more")
    await durable.set_attributes(b"f", mode=0o600)
    await set_elsewhere(client, run, other=b"2")
    await trio.sleep(NEWS_SECONDS)
    durable.close_handle(handle)
    await durable.make_all_durable()

    node = (await tree_of(client, run))[b"f"]
    assert (node.attributes.mode, xattrs_of(node)) == (0o600, {b"user.other": b"2"})
    assert durable.shown()[b"f"].xattrs == {b"user.other": b"2"}


async def test_news_do_not_undo_what_was_set_here_and_is_yet_to_be_committed(
    clock: MockClock, durable: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    observer = master.client(USER)
    client.is_revoked = True  # nothing leaves
    await durable.set_xattr(b"f", b"user.here", b"3")
    await set_elsewhere(observer, run, other=b"2")
    client.is_revoked = False
    await trio.sleep(NEWS_SECONDS)
    await durable.make_all_durable()

    expected = {b"user.first": b"1", b"user.here": b"3"}
    assert durable.shown()[b"f"].xattrs == expected
    assert xattrs_of((await tree_of(observer, run))[b"f"]) == expected


async def test_what_is_set_while_a_commit_is_under_way_goes_with_the_next(
    clock: MockClock, durable: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    master.answer_latency_seconds = 1.0
    await durable.set_xattr(b"f", b"user.second", b"2")
    count = master.call_count["commit_nodes"]
    while master.call_count["commit_nodes"] == count:
        await trio.sleep(0.01)
    await durable.remove_xattr(b"f", b"user.first")
    await durable.make_all_durable()

    assert durable.shown()[b"f"].xattrs == {b"user.second": b"2"}
    assert xattrs_of((await tree_of(client, run))[b"f"]) == {b"user.second": b"2"}
    assert master.call_count["commit_nodes"] == count + 2


async def test_repeated_commit_of_something_else_leaves_what_was_sent_to_others(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    """Once acknowledged they are news like any other: the next commit has not a word of them."""
    handle = await durable.open(b"f")
    await durable.set_xattr(b"f", b"user.second", b"2")
    await durable.append(handle, b", and more")
    await trio.sleep(2 * NEWS_SECONDS)  # published while it is open
    await set_elsewhere(client, run, other=b"3")
    await durable.append(handle, b", and more")
    durable.close_handle(handle)
    await durable.make_all_durable()

    assert xattrs_of((await tree_of(client, run))[b"f"]) == {b"user.other": b"3"}


async def test_file_whose_removal_is_refused_has_them_again(
    clock: MockClock, durable: FileSystemHarness, master: FakeMaster, run: types.Run
) -> None:
    await durable.unlink(b"f")
    await seal(master.client(USER), run)
    await trio.sleep(10 * NEWS_SECONDS)

    assert durable.shown()[b"f"].xattrs == {b"user.first": b"1"}


async def test_they_come_back_with_a_file_that_was_removed_elsewhere_and_written_here(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    handle = await durable.open(b"f")
    await durable.append(handle, b", and more")
    await remove(client, run, run.root_node_id, b"f", (await tree_of(client, run))[b"f"].node_id)
    await trio.sleep(NEWS_SECONDS)
    durable.close_handle(handle)
    await durable.make_all_durable()

    assert xattrs_of((await tree_of(client, run))[b"f"]) == {b"user.first": b"1"}


async def test_directory_that_both_made_takes_those_of_the_later_one(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(master.client(USER), run, tmp_path / "other") as other:
        for mount in (file_system, other):
            await mount.sync.load_run(mount.tree)
        for mount, name in ((file_system, b"user.one"), (other, b"user.other")):
            await mount.mkdir(b"d")
            await mount.set_xattr(b"d", name, b"")
        await file_system.make_all_durable()
        await other.make_all_durable()
        await trio.sleep(NEWS_SECONDS)

        for mount in (file_system, other):
            assert mount.shown()[b"d"].xattrs == {b"user.other": b""}


async def test_directory_that_replaces_another_has_none_of_that(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """At the master it becomes that one."""
    await file_system.mkdir(b"old")
    await file_system.set_xattr(b"old", b"user.of", b"old")
    await file_system.make_all_durable()
    await file_system.mkdir(b"new")
    await file_system.rename(b"new", b"old")

    await file_system.make_all_durable()

    assert file_system.shown()[b"old"].xattrs == {}
    assert not (await tree_of(client, run))[b"old"].HasField("xattrs")


async def test_next_mount_gives_a_directory_that_replaced_another_none_of_that(
    clock: MockClock,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
) -> None:
    async with open_file_system(client, run, tmp_path / "first") as first:
        await first.mkdir(b"old")
        await first.set_xattr(b"old", b"user.of", b"old")
        await first.make_all_durable()
        await first.mkdir(b"new")
        await first.rename(b"new", b"old")
        first.copy_state(tmp_path / "next")

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()

        assert mount.shown()[b"old"].xattrs == {}
        assert not (await tree_of(client, run))[b"old"].HasField("xattrs")


async def test_full_disk_refuses_and_changes_nothing(
    clock: MockClock,
    durable: FileSystemHarness,
    monkeypatch: pytest.MonkeyPatch,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    with full_journal(monkeypatch):
        with pytest.raises(OSError, match="No space"):
            await durable.set_xattr(b"f", b"user.second", b"2")
        with pytest.raises(OSError, match="No space"):
            await durable.remove_xattr(b"f", b"user.first")
    assert durable.shown()[b"f"].xattrs == {b"user.first": b"1"}
    await set_elsewhere(client, run, other=b"3")
    await durable.make_all_durable()
    await trio.sleep(NEWS_SECONDS)

    assert durable.shown()[b"f"].xattrs == {b"user.other": b"3"}


async def test_what_is_refused_is_refused_before_anything_changes(durable: FileSystemHarness) -> None:
    with pytest.raises(XattrsTooLarge):
        await durable.set_xattr(b"f", b"user.big", bytes(4096))
    with pytest.raises(NotSupported):
        await durable.set_xattr(b"f", b"trusted.key", b"")
    with pytest.raises(NoXattr):
        await durable.remove_xattr(b"f", b"user.absent")

    assert durable.shown()[b"f"].xattrs == {b"user.first": b"1"}
    assert (await durable.find(b"f")).pending is None


async def test_node_without_any_has_none_of_its_own(durable: FileSystemHarness) -> None:
    await durable.write_file(b"g", b"content")
    await durable.remove_xattr(b"f", b"user.first")

    assert (await durable.find(b"f")).xattrs is (await durable.find(b"g")).xattrs


class OlderMasterClient(FakeMasterClient):
    """Of a master that has not heard of extended attributes."""

    async def commit_nodes(self, request: names.CommitNodesRequest) -> names.CommitNodesResponse:
        heard = names.CommitNodesRequest.FromString(request.SerializeToString())
        for one in heard.commits:
            one.ClearField("xattrs")
        return await super().commit_nodes(heard)


async def test_master_that_lets_them_fall_is_found_out(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path / "mount") as before:
        await before.sync.load_run(before.tree)
        client.is_revoked = True
        await before.write_file(b"f", b"content")
        await before.set_xattr(b"f", b"user.key", b"value")
        before.copy_state(tmp_path / "next")

    older = OlderMasterClient(master, client._caller)
    async with open_file_system(older, run, tmp_path / "next") as file_system:
        with pytest.raises(NotSupported, match="the master keeps no extended attributes"):
            await file_system.make_all_durable()
        (pending,) = file_system.control.status().pending
        assert (pending.state, "extended attributes" in pending.reason) == (FileState.FAILED, True)
        file_system.copy_state(tmp_path / "last")

    async with open_file_system(master.client(USER), run, tmp_path / "last") as file_system:
        await file_system.make_all_durable()
    assert xattrs_of((await tree_of(master.client(USER), run))[b"f"]) == {b"user.key": b"value"}


async def test_file_whose_removal_had_no_answer_comes_back_with_them(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """It was carried out, the mount dies, and what is staged brings the file back: at once with all that it had."""
    async with open_file_system(client, run, tmp_path / "mount", timeo_seconds=2) as before:
        await before.write_file(b"f", b"content")
        await before.set_xattr(b"f", b"user.first", b"1")
        await before.make_all_durable()
        handle = await before.open(b"f")
        await before.append(handle, b", and more")
        master.answer_latency_seconds = 1.0
        asked_count = master.call_count["remove"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_to_unlink, before, b"f")
            while master.call_count["remove"] == asked_count:
                await trio.sleep(0.01)
            await trio.sleep(0.5)
            master.go_away()
        before.copy_state(tmp_path / "next")
    master.answer_latency_seconds = 0.0
    master.come_back()
    assert b"f" not in await tree_of(master.client(USER), run)

    async with open_file_system(master.client(USER), run, tmp_path / "next") as file_system:
        await file_system.namespace.load(file_system.tree.root)
        assert file_system.shown()[b"f"].xattrs == {b"user.first": b"1"}
        await file_system.make_all_durable()
        assert file_system.shown()[b"f"].xattrs == {b"user.first": b"1"}


async def test_file_whose_removal_was_given_up_comes_back_with_them(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """As above: nobody was there any more to see the answer, though the mount lived on."""
    async with open_file_system(client, run, tmp_path / "mount") as before:
        await append_to_durable(before)
        master.answer_latency_seconds = 1.0
        with trio.move_on_after(0.5):
            await before.unlink(b"f")
        before.copy_state(tmp_path / "next")
    master.answer_latency_seconds = 0.0
    assert b"f" not in await tree_of(master.client(USER), run)

    async with open_file_system(master.client(USER), run, tmp_path / "next") as file_system:
        await file_system.namespace.load(file_system.tree.root)
        assert file_system.shown()[b"f"].xattrs == {b"user.first": b"1"}


async def test_file_whose_removal_was_refused_is_committed_without_those_that_it_had(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """What another mount sets after the death of this one is newer, and this one has changed none."""
    async with open_file_system(client, run, tmp_path / "mount") as before:
        await append_to_durable(before)
        client.is_revoked = True
        with pytest.raises(Unauthenticated):
            await before.unlink(b"f")
        before.copy_state(tmp_path / "next")

    await set_after_death_and_expect_to_stay(master, run, tmp_path / "next")


async def test_file_that_has_lost_one_of_two_names_is_committed_without_those_that_it_had(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path / "mount") as before:
        await append_to_durable(before, b"g")
        await before.unlink(b"g")
        before.copy_state(tmp_path / "next")

    await set_after_death_and_expect_to_stay(master, run, tmp_path / "next")


@pytest.mark.parametrize("is_refused", [False, True], ids=["carried-out", "refused"])
async def test_file_that_has_some_is_removed_on_a_full_disk(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_refused: bool,
) -> None:
    def refuse_row(node: Node) -> None:
        raise OSError(errno.ENOSPC, "the test's disk is full")

    async with open_file_system(client, run, tmp_path / "mount") as mount:
        await append_to_durable(mount)
        monkeypatch.setattr(mount.staging.rows, "rewrite", refuse_row)
        client.is_revoked = is_refused
        with pytest.raises(Unauthenticated) if is_refused else nullcontext():
            await mount.unlink(b"f")
    assert (b"f" in await tree_of(master.client(USER), run)) == is_refused


async def append_to_durable(mount: FileSystemHarness, *other_names: bytes) -> None:
    """A file that the master has with an attribute, and of which more is staged."""
    await mount.write_file(b"f", b"content")
    await mount.set_xattr(b"f", b"user.first", b"1")
    await mount.make_all_durable()
    for name in other_names:
        await mount.link(b"f", name)
    handle = await mount.open(b"f")
    await mount.append(handle, b", and more")


async def set_after_death_and_expect_to_stay(master: FakeMaster, run: types.Run, directory: Path) -> None:
    """The mount that goes on there commits what is staged, and leaves what was set elsewhere before it began."""
    client = master.client(USER)
    await set_elsewhere(client, run, first=b"2")
    async with open_file_system(client, run, directory) as file_system:
        await file_system.make_all_durable()
    node = (await tree_of(client, run))[b"f"]
    assert node.size_bytes == len(b"content, and more")
    assert xattrs_of(node) == {b"user.first": b"2"}


async def fail_to_unlink(file_system: FileSystemHarness, path: bytes) -> None:
    with pytest.raises(MasterUnavailable):
        await file_system.unlink(path)
