"""Removals of files: recorded here, sent together, and what becomes of them when somebody else was faster."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cloudai_fusefs import recorded_removals
from cloudai_fusefs.journal import Journal
from cloudai_fusefs.managed_tree import TaskDirectory
from cloudai_fusefs.node import FILE
from cloudai_fusefs.refusals import RETRY_SECONDS_MAX
from cloudai_fusefs.removal_sender import GATHER_SECONDS
from cloudai_fusefs.run_nodes import Invalidation
from cloudai_model.errors import (
    CloudAIError,
    DirectoryNotEmpty,
    NoSpace,
    NotFound,
    NotSupported,
    PermissionRefused,
    RunSealed,
)
from cloudai_model.limits import COMMIT_NODES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.listings import apply_tree
from support.storage_requests import (
    commit_one,
    file_commit,
    link,
    published,
    remove,
    rename,
    request_id,
    seal,
    tree_of,
)

SENT_SECONDS = GATHER_SECONDS * 4
"""After this much of the clock's time what was removed is at the master."""


@pytest.fixture
async def durable(file_system: FileSystemHarness) -> FileSystemHarness:
    """A mount with files that the master has, and whose watch is healthy."""
    await file_system.mkdir(b"d")
    for path in (b"d/one", b"d/two", b"f", b"g"):
        await file_system.write_file(path, b"content of " + path)
    await file_system.make_all_durable()
    await trio.sleep(1)
    assert file_system.tree.watch_is_healthy
    return file_system


def rows(file_system: FileSystemHarness) -> list[bytes]:
    """The names whose removal is in the journal."""
    journal = file_system.staging._journal
    return [record.name for record in journal.removals()]


async def test_many_removals_are_one_call(
    clock: MockClock, durable: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    for path in (b"d/one", b"d/two", b"f"):
        await durable.unlink(path)
    assert rows(durable) == [b"one", b"two", b"f"]
    assert sorted(await published(client, run)) == [b"d/one", b"d/two", b"f", b"g"]

    await trio.sleep(SENT_SECONDS)

    assert await published(client, run) == {b"g": b"content of g"}
    assert master.call_count["remove_nodes"] == 1
    assert master.call_count["remove"] == 0
    assert rows(durable) == []
    assert sorted(durable.shown()) == [b"d", b"g"]


async def test_more_than_a_call_may_hold_are_several(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    count = COMMIT_NODES_MAX + 3
    for number in range(count):
        await file_system.symlink(b"%d" % number, b"target")
    await file_system.make_all_durable()
    for number in range(count):
        await file_system.unlink(b"%d" % number)

    await file_system.make_all_durable()

    assert list(await tree_of(client, run)) == [b""]
    assert master.call_count["remove_nodes"] == 2


async def test_removal_outlives_the_mount_that_dies_before_it_is_sent(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    before = (await tree_of(client, run))[b"d"].attributes.mtime_ns
    await durable.unlink(b"d/one")
    removed_at_ns = (await durable.find(b"d")).mtime_ns
    durable.copy_state(tmp_path / "next")
    assert sorted(await published(client, run)) == [b"d/one", b"d/two", b"f", b"g"]

    async with open_file_system(client, run, tmp_path / "next") as following:
        await following.namespace.load(following.tree.root)
        assert sorted(following.shown()) == [b"d", b"d/two", b"f", b"g"]
        await following.make_all_durable()

    tree = await tree_of(client, run)
    assert sorted(tree) == [b"", b"d", b"d/two", b"f", b"g"]
    # The directory's time is that of the removal, not that of the next mount.
    assert before < tree[b"d"].attributes.mtime_ns <= removed_at_ns


async def test_file_that_was_changed_elsewhere_before_the_next_mount_is_shown_by_it(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    node_id = (await tree_of(client, run))[b"f"].node_id
    await durable.unlink(b"f")
    durable.copy_state(tmp_path / "next")
    await commit_one(client, run, file_commit(b"f", b"changed", node=node_id))

    async with open_file_system(client, run, tmp_path / "next") as following:
        assert await following.read_file(b"f") == b"changed"
        await following.make_all_durable()
        assert rows(following) == []

    assert (await published(client, run))[b"f"] == b"changed"


async def test_file_that_was_moved_out_of_its_directory_before_the_next_mount_keeps_its_place(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """Of the directory nothing is left to tell where it was."""
    tree = await tree_of(client, run)
    root, directory = run.root_node_id, tree[b"d"].node_id
    await durable.unlink(b"d/one")
    durable.copy_state(tmp_path / "next")
    await rename(client, run, tree[b"d/one"].node_id, (directory, b"one"), (root, b"one"))
    await remove(client, run, directory, b"two", tree[b"d/two"].node_id)
    await remove(client, run, root, b"d", directory)

    async with open_file_system(client, run, tmp_path / "next") as following:
        await following.make_all_durable()
        assert sorted(following.shown()) == [b"f", b"g", b"one"]
        assert rows(following) == []

    assert sorted(await published(client, run)) == [b"f", b"g", b"one"]


async def test_removal_in_a_run_that_was_sealed_before_the_next_mount_is_taken_back(
    clock: MockClock,
    durable: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await durable.unlink(b"f")
    durable.copy_state(tmp_path / "next")
    await seal(client, run)

    async with open_file_system(client, run, tmp_path / "next") as following:
        assert await following.read_file(b"f") == b"content of f"
        assert rows(following) == []

    assert "f: was removed, and is shown again: the run is sealed" in caplog.text


async def test_file_that_was_changed_elsewhere_is_shown_again(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    node_id = (await tree_of(client, run))[b"f"].node_id
    durable.told.clear()
    await durable.unlink(b"f")
    await commit_one(client, run, file_commit(b"f", b"changed", node=node_id))
    await wait_all_tasks_blocked()  # the news is here, the removal is still to be sent
    assert sorted(durable.shown()) == [b"d", b"d/one", b"d/two", b"g"]

    await trio.sleep(SENT_SECONDS)

    assert await durable.read_file(b"f") == b"changed"
    assert Invalidation(durable.tree.root.ino, b"f") in durable.told
    assert rows(durable) == []
    await durable.unlink(b"f")
    await durable.make_all_durable()
    assert b"f" not in await published(client, run)


async def test_file_that_came_back_elsewhere_after_its_removal_is_shown(
    clock: MockClock, durable: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    """The news overtakes the answer, and is newer."""
    node_id = (await tree_of(client, run))[b"f"].node_id
    await durable.unlink(b"f")
    master.answer_latency_seconds = 1.0
    await trio.sleep(0.5)
    master.answer_latency_seconds = 0.0  # of the next calls: the answer is still on its way
    assert b"f" not in await tree_of(client, run)
    await commit_one(client, run, file_commit(b"f", None, node=node_id))
    await wait_all_tasks_blocked()
    assert b"f" not in durable.shown()
    assert rows(durable) == [b"f"]

    await durable.make_all_durable()

    assert await durable.read_file(b"f") == b"content of f"


async def test_file_that_was_renamed_elsewhere_keeps_its_new_name(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    root = run.root_node_id
    node_id = (await tree_of(client, run))[b"f"].node_id
    await durable.unlink(b"f")
    await rename(client, run, node_id, (root, b"f"), (root, b"renamed"))

    await durable.make_all_durable()
    await trio.sleep(SENT_SECONDS)

    expected = [b"d/one", b"d/two", b"g", b"renamed"]
    assert sorted(await published(client, run)) == expected
    assert sorted(durable.shown()) == [b"d", *expected]
    await durable.unlink(b"renamed")
    await durable.make_all_durable()
    assert b"renamed" not in await published(client, run)


async def test_name_that_was_given_elsewhere_stays(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    node_id = (await tree_of(client, run))[b"f"].node_id
    await durable.unlink(b"f")
    await link(client, run, node_id, run.root_node_id, b"second")

    await durable.make_all_durable()
    await trio.sleep(SENT_SECONDS)

    assert sorted(await published(client, run)) == [b"d/one", b"d/two", b"g", b"second"]
    assert (await durable.find(b"second")).link_count == 1
    with pytest.raises(NotFound):
        await durable.find(b"f")


async def test_name_that_others_took_meanwhile_is_theirs(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    root = run.root_node_id
    node_id = (await tree_of(client, run))[b"f"].node_id
    await durable.unlink(b"f")
    await remove(client, run, root, b"f", node_id)
    await commit_one(client, run, file_commit(b"f", b"theirs"))
    await wait_all_tasks_blocked()
    assert await durable.read_file(b"f") == b"theirs"

    await durable.make_all_durable()

    assert (await published(client, run))[b"f"] == await durable.read_file(b"f") == b"theirs"


async def test_run_that_was_sealed_elsewhere_has_its_files_again(
    clock: MockClock,
    durable: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = durable.shown()
    await durable.unlink(b"d/one")
    await durable.unlink(b"f")
    await seal(client, run)

    await trio.sleep(SENT_SECONDS)

    after = durable.shown()
    assert [after[path] for path in (b"d/one", b"f")] == [before[path] for path in (b"d/one", b"f")]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        len([line for line in warnings if "2 removed files are shown again: the run is sealed" in line]) == 1
    )
    assert await durable.read_file(b"f") == b"content of f"
    assert rows(durable) == []
    with pytest.raises(RunSealed):
        await durable.unlink(b"f")


async def test_fsync_of_the_directory_tells_that_a_removal_was_refused(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    directory = await durable.find(b"d")
    await durable.unlink(b"d/one")
    await seal(client, run)

    with pytest.raises(RunSealed):
        await durable.files.fsync(directory)

    assert b"d/one" in durable.shown()


async def test_fsync_of_the_directory_tells_once_of_a_removal_that_was_refused_before(
    clock: MockClock, durable: FileSystemHarness
) -> None:
    async def refuse(_: FakeMasterClient, request: names.RemoveNodesRequest) -> names.RemoveNodesResponse:
        raise PermissionRefused

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(FakeMasterClient, "remove_nodes", refuse)
        await durable.unlink(b"f")
        await trio.sleep(1)
    assert b"f" in durable.shown()
    root = durable.tree.root

    with pytest.raises(PermissionRefused):
        await durable.files.fsync(root)

    await durable.files.fsync(root)


async def test_fsync_of_the_directory_returns_when_the_removal_is_at_the_master(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    directory = await durable.find(b"d")
    await durable.unlink(b"d/one")

    await durable.files.fsync(directory)

    assert sorted(await published(client, run)) == [b"d/two", b"f", b"g"]


async def test_removals_wait_for_a_master_without_room_and_further_ones_ask_it_first(
    clock: MockClock,
    durable: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(_: FakeMasterClient, request: names.RemoveNodesRequest) -> names.RemoveNodesResponse:
        raise NoSpace

    with monkeypatch.context() as patches:
        patches.setattr(FakeMasterClient, "remove_nodes", refuse)
        await durable.unlink(b"f")
        with pytest.raises(NoSpace):
            await durable.make_all_durable()
        with pytest.raises(NoSpace):
            await durable.unlink(b"g")
        assert sorted(durable.shown()) == [b"d", b"d/one", b"d/two", b"g"]
        counts = await durable.control.upload_counts(f"{durable.tree.path}/f")
        assert (counts.pending_count, counts.failed_count) == (1, 1)

    await durable.make_all_durable()

    assert sorted(await published(client, run)) == [b"d/one", b"d/two", b"g"]
    await durable.unlink(b"g")
    assert rows(durable) == [b"g"]


async def test_master_without_room_is_asked_again_after_a_pause_whatever_changes_meanwhile(
    clock: MockClock, durable: FileSystemHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_at_seconds: list[float] = []

    async def refuse(_: FakeMasterClient, request: names.RemoveNodesRequest) -> names.RemoveNodesResponse:
        asked_at_seconds.append(trio.current_time())
        raise NoSpace

    log = await durable.create(b"log")
    with monkeypatch.context() as patches:
        patches.setattr(FakeMasterClient, "remove_nodes", refuse)
        await durable.unlink(b"f")
        for _ in range(100):
            await durable.append(log, b"line")
            await trio.sleep(RETRY_SECONDS_MAX / 50)
    durable.close_handle(log)

    pauses = [later - earlier for earlier, later in pairwise(asked_at_seconds)]
    assert len(pauses) >= 1
    assert min(pauses) >= RETRY_SECONDS_MAX


async def test_older_master_is_asked_first_once_it_has_refused_a_batch(
    clock: MockClock,
    durable: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(_: FakeMasterClient, request: names.RemoveNodesRequest) -> names.RemoveNodesResponse:
        raise NotSupported

    monkeypatch.setattr(FakeMasterClient, "remove_nodes", refuse)
    await durable.unlink(b"f")
    await trio.sleep(SENT_SECONDS)
    assert b"f" in durable.shown()

    await durable.unlink(b"f")

    assert rows(durable) == []
    assert master.call_count["remove"] == 1
    assert sorted(await published(client, run)) == [b"d/one", b"d/two", b"g"]


async def test_removals_whose_answer_was_lost_are_repeated_with_their_request_id(
    clock: MockClock,
    durable: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests: list[names.RemoveNodesRequest] = []
    remove_nodes = FakeMasterClient.remove_nodes

    async def note(self: FakeMasterClient, request: names.RemoveNodesRequest) -> names.RemoveNodesResponse:
        requests.append(request)
        return await remove_nodes(self, request)

    monkeypatch.setattr(FakeMasterClient, "remove_nodes", note)
    await durable.unlink(b"f")
    master.answer_latency_seconds = 1.0
    await trio.sleep(0.5)
    master.go_away()
    await trio.sleep(60)
    master.answer_latency_seconds = 0
    master.come_back()
    await durable.unlink(b"g")

    await durable.make_all_durable()

    assert sorted(await published(client, run)) == [b"d/one", b"d/two"]
    assert [one.name for one in requests[0].removals] == [b"f"]
    assert len({request.request_id for request in requests if request.removals[0].name == b"f"}) == 1


async def test_removals_wait_for_a_master_that_is_away(
    clock: MockClock, durable: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    await durable.unlink(b"f")
    master.go_away()
    await trio.sleep(100)
    assert sorted(durable.shown()) == [b"d", b"d/one", b"d/two", b"g"]
    assert rows(durable) == [b"f"]
    assert [(file.path.rpartition("/")[2], str(file.state)) for file in durable.control.status().pending][
        -1
    ] == ("f", "removed")
    master.come_back()

    await durable.make_all_durable()

    assert sorted(await published(client, run)) == [b"d/one", b"d/two", b"g"]
    assert sorted(durable.shown()) == [b"d", b"d/one", b"d/two", b"g"]
    assert durable.control.status().pending == []


Make = Callable[[FileSystemHarness], Awaitable[None]]


async def _file(file_system: FileSystemHarness) -> None:
    await file_system.write_file(b"f", b"made anew")


async def _symlink(file_system: FileSystemHarness) -> None:
    await file_system.symlink(b"f", b"g")


async def _directory(file_system: FileSystemHarness) -> None:
    await file_system.mkdir(b"f")
    await file_system.write_file(b"f/inside", b"1")


async def _hard_link(file_system: FileSystemHarness) -> None:
    directory = await file_system.find(b"")
    await file_system.rearrangements.link(await file_system.find(b"g"), directory, b"f")


async def _renamed(file_system: FileSystemHarness) -> None:
    await file_system.rename(b"g", b"f")


async def _renamed_directory(file_system: FileSystemHarness) -> None:
    await file_system.rename(b"d", b"f")


async def _staged_and_renamed(file_system: FileSystemHarness) -> None:
    await file_system.write_file(b"f.tmp", b"saved")
    await file_system.rename(b"f.tmp", b"f")


@pytest.mark.parametrize(
    "make",
    [_file, _symlink, _directory, _hard_link, _renamed, _renamed_directory, _staged_and_renamed],
    ids=lambda make: make.__name__.strip("_"),
)
async def test_name_of_what_was_removed_can_be_taken_at_once(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run, make: Make
) -> None:
    await durable.unlink(b"f")

    await make(durable)

    shown = durable.shown()
    await durable.make_all_durable()
    assert durable.shown().keys() == shown.keys()
    tree = await tree_of(client, run)
    assert tree.keys() - {b""} == shown.keys()
    assert tree[b"f"].kind == shown[b"f"].kind


async def test_name_can_be_taken_and_removed_again_and_again(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    for number in range(20):
        await durable.unlink(b"f")
        await durable.write_file(b"f", b"%d" % number)
        await trio.sleep(GATHER_SECONDS * (number % 4) / 2)
    await durable.make_all_durable()
    assert (await published(client, run))[b"f"] == b"19"
    await durable.unlink(b"f")
    await durable.symlink(b"f", b"g")
    await durable.unlink(b"f")

    await durable.make_all_durable()

    assert sorted(await published(client, run)) == [b"d/one", b"d/two", b"g"]
    assert sorted(durable.shown()) == [b"d", b"d/one", b"d/two", b"g"]


async def test_removal_goes_before_the_commit_that_takes_its_name(
    clock: MockClock, durable: FileSystemHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(name: str) -> Callable[..., Awaitable[object]]:
        call: Callable[..., Awaitable[object]] = getattr(FakeMasterClient, name)

        def note(self: FakeMasterClient, request: object) -> Awaitable[object]:
            order.append(name)
            return call(self, request)

        return note

    for name in ("remove_nodes", "commit_nodes"):
        monkeypatch.setattr(FakeMasterClient, name, noted(name))
    await durable.unlink(b"f")
    handle = await durable.create(b"f")

    await durable.fsync(handle)

    assert order[:2] == ["remove_nodes", "commit_nodes"]
    durable.close_handle(handle)


async def test_emptied_directory_is_removed_after_what_was_in_it(
    clock: MockClock, durable: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    await durable.unlink(b"d/one")
    await durable.unlink(b"d/two")

    await durable.rmdir(b"d")

    assert sorted(await tree_of(client, run)) == [b"", b"f", b"g"]
    assert master.call_count["remove_nodes"] == 1


async def test_directory_whose_file_was_changed_elsewhere_is_not_empty(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    node_id = (await tree_of(client, run))[b"d/one"].node_id
    await durable.unlink(b"d/one")
    await durable.unlink(b"d/two")
    await commit_one(client, run, file_commit(b"d/one", b"changed", node=node_id))

    with pytest.raises(DirectoryNotEmpty):
        await durable.rmdir(b"d")

    assert sorted(durable.shown()) == [b"d", b"d/one", b"f", b"g"]


async def test_emptied_run_is_removed_after_what_was_in_it(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await file_system.write_file(b"f", b"1")
    await file_system.make_all_durable()
    await file_system.unlink(b"f")
    task = file_system.namespace.parent(file_system.tree.root)
    assert isinstance(task, TaskDirectory)

    await file_system.managed_changes.remove_directory(task, run.name.encode())

    with pytest.raises(NotFound):
        await client.list_tree(run.task_id)


async def test_removed_run_takes_its_waiting_removals_along(
    clock: MockClock,
    durable: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tree = durable.tree
    for path in (b"d/one", b"d/two", b"f", b"g"):
        await durable.unlink(path)
    for node in (await tree_of(client, run)).values():
        if node.kind == FILE:
            await client.remove(
                names.RemoveRequest(request_id=request_id(), task_id=run.task_id, node_id=node.node_id)
            )
    directory = (await tree_of(client, run))[b"d"]
    await remove(client, run, run.root_node_id, b"d", directory.node_id)
    await client.remove_run(names.RemoveRunRequest(request_id=request_id(), task_id=run.task_id))

    await trio.sleep(SENT_SECONDS)

    assert rows(durable) == []
    assert len(tree.removals) == 0
    assert "shown again" not in caplog.text


async def test_open_file_is_read_on_before_and_after_its_removal_is_sent(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    handle = await durable.open(b"f", os.O_RDONLY)
    await durable.unlink(b"f")
    assert await durable.read(handle) == b"content of f"

    await durable.make_all_durable()

    assert b"f" not in await published(client, run)
    assert await durable.read(handle) == b"content of f"
    durable.close_handle(handle)


async def test_file_that_is_open_for_writing_is_removed_at_the_master_first(
    clock: MockClock, durable: FileSystemHarness, master: FakeMaster
) -> None:
    handle = await durable.open(b"f", os.O_RDWR)

    await durable.unlink(b"f")

    assert master.call_count["remove"] == 1
    assert rows(durable) == []
    durable.close_handle(handle)


async def test_what_was_written_to_a_file_that_comes_back_is_kept(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    """Who has it open can open it again for writing, by /proc/self/fd."""
    node_id = (await tree_of(client, run))[b"f"].node_id
    node = await durable.find(b"f")
    reading = await durable.open(b"f", os.O_RDONLY)
    await durable.unlink(b"f")
    writing = (await durable.files.open(node, os.O_RDWR)).handle
    await durable.write(writing, 0, b"CONTENT")
    await commit_one(client, run, file_commit(b"f", b"changed", node=node_id))

    await trio.sleep(SENT_SECONDS)
    durable.close_handle(writing)
    durable.close_handle(reading)
    await durable.make_all_durable()

    assert (await published(client, run))[b"f"] == await durable.read_file(b"f") == b"CONTENT of f"


async def test_hard_link_is_removed_at_the_master_first(
    clock: MockClock, durable: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    await _hard_link_of_f(durable)

    await durable.unlink(b"second")

    assert master.call_count["remove"] == 1
    assert b"second" not in await tree_of(client, run)
    await durable.unlink(b"f")
    assert rows(durable) == [b"f"]


async def _hard_link_of_f(file_system: FileSystemHarness) -> None:
    root = await file_system.find(b"")
    await file_system.rearrangements.link(await file_system.find(b"f"), root, b"second")


async def test_beyond_the_limit_a_removal_asks_the_master_first(
    clock: MockClock,
    durable: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorded_removals, "REMOVALS_WAITING_MAX", 2)
    for path in (b"d/one", b"d/two", b"f"):
        await durable.unlink(path)

    assert sorted(await published(client, run)) == [b"g"]
    assert (master.call_count["remove_nodes"], master.call_count["remove"]) == (1, 1)
    await durable.unlink(b"g")
    assert rows(durable) == [b"g"]


async def test_removal_that_a_full_disk_does_not_take_asks_the_master_first(
    clock: MockClock,
    durable: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Journal, removal: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patches:
        patches.setattr(Journal, "put_removal", refuse)
        await durable.unlink(b"f")

    assert b"f" not in durable.shown()
    assert b"f" not in await published(client, run)
    assert (master.call_count["remove_nodes"], master.call_count["remove"]) == (0, 1)


async def test_removal_that_neither_the_disk_nor_the_master_takes_fails_and_changes_nothing(
    clock: MockClock,
    durable: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Journal, removal: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    async def refuse_room(_: FakeMasterClient, request: names.RemoveRequest) -> names.RemoveResponse:
        raise NoSpace

    before = durable.shown()
    with monkeypatch.context() as patches:
        patches.setattr(Journal, "put_removal", refuse)
        patches.setattr(FakeMasterClient, "remove", refuse_room)
        with pytest.raises(NoSpace):
            await durable.unlink(b"f")

    assert durable.shown() == before
    await durable.make_all_durable()
    assert b"f" in await published(client, run)


async def test_row_that_a_full_disk_keeps_goes_when_there_is_room(
    clock: MockClock,
    durable: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Journal, node_ids: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patches:
        patches.setattr(Journal, "remove_removals", refuse)
        await durable.unlink(b"f")
        await durable.make_all_durable()
    assert rows(durable) == [b"f"]
    assert b"f" not in await published(client, run)

    await durable.staging.tidy()

    assert rows(durable) == []


async def test_listing_that_is_older_than_a_removal_does_not_bring_the_file_back(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    pages = [await client.list_tree(run.task_id)]
    await durable.unlink(b"f")

    apply_tree(durable.tree, pages)

    assert b"f" not in durable.shown()


async def test_cancelled_directory_removal_loses_no_removal(
    clock: MockClock, durable: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    await durable.unlink(b"d/one")
    await durable.unlink(b"d/two")
    master.latency_seconds = master.answer_latency_seconds = 1.0
    with trio.move_on_after(1.5) as scope:
        await durable.rmdir(b"d")
    assert scope.cancelled_caught
    master.latency_seconds = master.answer_latency_seconds = 0.0

    await durable.make_all_durable()

    assert sorted(durable.shown()) == [b"d", b"f", b"g"]
    assert sorted(await tree_of(client, run)) == [b"", b"d", b"f", b"g"]
    assert rows(durable) == []


async def test_removal_during_a_rename_of_the_file_does_as_the_rename_has_left_it(
    clock: MockClock, durable: FileSystemHarness, master: FakeMaster, client: FakeMasterClient, run: types.Run
) -> None:
    master.answer_latency_seconds = 1.0
    found: list[CloudAIError] = []

    async def unlink() -> None:
        try:
            await durable.unlink(b"f")
        except CloudAIError as error:
            found.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(durable.rename, b"f", b"renamed")
        await trio.sleep(0.1)
        nursery.start_soon(unlink)

    master.answer_latency_seconds = 0.0
    assert [type(error) for error in found] == [NotFound]
    await durable.make_all_durable()
    assert sorted(await published(client, run)) == [b"d/one", b"d/two", b"g", b"renamed"]


async def test_mount_that_ends_sends_its_removals(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await durable.unlink(b"f")

    status = await durable.control.drain(10)

    assert status.pending == []
    assert b"f" not in await published(client, run)


async def test_sealing_sends_what_was_removed_before(
    clock: MockClock, durable: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await durable.unlink(b"f")

    await durable.control.seal_run(durable.tree.path, 0)

    assert sorted(await published(client, run)) == [b"d/one", b"d/two", b"g"]


async def test_unused_nodes_are_let_go_once_their_removal_is_answered(
    clock: MockClock, durable: FileSystemHarness
) -> None:
    node_id = (await durable.find(b"f")).node_id
    await durable.unlink(b"f")
    assert node_id in durable.tree.nodes

    await durable.make_all_durable()

    assert node_id not in durable.tree.nodes
    assert node_id not in durable.managed.inodes
