"""A run that is looked into: listed in one call, followed by a watch, whose first answer is worth a moment."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs import freed_memory, run_tree, tree_sync
from cloudai_fusefs.relisting import UNFOLLOWED_SECONDS_MAX
from cloudai_fusefs.tree_sync import RECONNECT_SECONDS_MAX, WATCH_PATIENCE_SECONDS
from cloudai_master import listings
from cloudai_model.errors import GenerationChanged, MasterUnavailable
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness
from support.storage_requests import USER, commit_one, file_commit, make_run, remove, rename, seal, tree_of

SETTLED_SECONDS = 20

Watch = Callable[[names.WatchRequest], AbstractAsyncContextManager[AsyncIterator[names.WatchResponse]]]


def delay_watches(client: FakeMasterClient, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on each watch is so long on its way."""
    watch: Watch = client.watch

    @asynccontextmanager
    async def late(request: names.WatchRequest) -> AsyncIterator[AsyncIterator[names.WatchResponse]]:
        await trio.sleep(seconds)
        async with watch(request) as messages:
            yield messages

    monkeypatch.setattr(client, "watch", late)


def refuse_watches(client: FakeMasterClient, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each was asked for, by trio's clock."""
    refused_at: list[float] = []

    def refused(
        request: names.WatchRequest,
    ) -> AbstractAsyncContextManager[AsyncIterator[names.WatchResponse]]:
        refused_at.append(trio.current_time())
        raise MasterUnavailable("no stream today")

    monkeypatch.setattr(client, "watch", refused)
    return refused_at


async def load(file_system: FileSystemHarness) -> float:
    """The seconds that it took."""
    began = trio.current_time()
    await file_system.sync.load_run(file_system.tree)
    return trio.current_time() - began


async def test_run_is_followed_from_the_first_look_on(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster
) -> None:
    await trio.sleep(1)  # its user's watch has begun
    master.call_count.clear()
    await load(file_system)
    assert file_system.tree.watch_is_healthy
    assert master.call_count == {"list_tree": 1, "watch": 1}


async def fill(client: FakeMasterClient, run: types.Run, count: int) -> None:
    for number in range(count):
        await commit_one(client, run, file_commit(b"%d" % number, b"content"))


async def test_others_have_a_turn_while_a_large_run_is_taken(
    file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is anybody held up by the listing of a large run, nor is a part of it shown."""
    monkeypatch.setattr(run_tree, "NAMES_IN_A_STEP", 10)
    await fill(client, run, 200)
    turn_count = 0

    async def look() -> None:
        nonlocal turn_count
        while not file_system.tree.is_loaded:
            turn_count += len(file_system.tree.nodes) > 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await load(file_system)
    assert turn_count >= 200 // 10 - 1
    assert len(file_system.tree.root.children or {}) == 200


@pytest.mark.parametrize("has_memory_to_give", [True, False])
async def test_memory_of_a_large_listing_is_given_back(
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
    *,
    has_memory_to_give: bool,
) -> None:
    given_back = threading.Event()
    monkeypatch.setattr(freed_memory, "give_back", given_back.set)
    await fill(client, run, 20)
    monkeypatch.setattr(tree_sync, "LARGE_LISTING_NAMES", 21 if has_memory_to_give else 22)  # with the root

    await load(file_system)

    assert (
        await trio.to_thread.run_sync(given_back.wait, 5 if has_memory_to_give else 0.2) == has_memory_to_give
    )


async def test_run_is_whole_when_whoever_looked_first_was_cancelled(
    file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_tree, "NAMES_IN_A_STEP", 10)
    await fill(client, run, 200)

    async def cancel_in_the_middle(scope: trio.CancelScope) -> None:
        while len(file_system.tree.nodes) < 50:
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_in_the_middle, scope)
            await file_system.sync.load_run(file_system.tree)
    assert scope.cancelled_caught
    assert file_system.tree.is_loaded
    await load(file_system)
    assert len(file_system.tree.root.children or {}) == 200


async def test_watch_that_answers_soon_is_waited_for(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delay_watches(client, monkeypatch, WATCH_PATIENCE_SECONDS / 2)
    assert await load(file_system) == pytest.approx(WATCH_PATIENCE_SECONDS / 2)
    assert file_system.tree.watch_is_healthy


async def test_watch_that_answers_late_keeps_nobody_waiting(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delay_watches(client, monkeypatch, 60)
    assert await load(file_system) == pytest.approx(WATCH_PATIENCE_SECONDS)
    assert not file_system.tree.watch_is_healthy
    assert file_system.tree.is_loaded
    await trio.sleep(61)
    assert file_system.tree.watch_is_healthy


async def test_watch_that_breaks_at_once_keeps_nobody_waiting(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_watches(client, monkeypatch)
    assert await load(file_system) == 0
    assert not file_system.tree.watch_is_healthy


async def test_all_who_look_into_a_run_wait_together(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delay_watches(client, monkeypatch, 60)
    master.call_count.clear()
    began = trio.current_time()
    async with trio.open_nursery() as lookers:
        for _ in range(10):
            lookers.start_soon(file_system.sync.load_run, file_system.tree)
    assert trio.current_time() - began == pytest.approx(WATCH_PATIENCE_SECONDS)
    assert master.call_count["list_tree"] == 1


async def test_look_that_is_cancelled_while_it_waits_leaves_the_run_loaded_and_followed(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delay_watches(client, monkeypatch, 1)
    with trio.move_on_after(WATCH_PATIENCE_SECONDS / 2) as scope:
        await load(file_system)
    assert scope.cancelled_caught
    assert await load(file_system) == 0
    await trio.sleep(1)
    assert file_system.tree.watch_is_healthy


async def test_run_whose_watches_are_refused_is_listed_every_few_seconds(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await trio.sleep(1)
    refuse_watches(client, monkeypatch)
    await load(file_system)

    await commit_one(client, run, file_commit(b"elsewhere", b"content"))
    await trio.sleep(2 * UNFOLLOWED_SECONDS_MAX)

    assert b"elsewhere" in file_system.shown()


async def test_pauses_between_attempts_to_follow_a_run_differ(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many mounts whose streams broke together do not open them together."""
    await trio.sleep(1)
    refused_at = refuse_watches(client, monkeypatch)
    await load(file_system)
    await trio.sleep(20 * RECONNECT_SECONDS_MAX)

    pauses = [after - before for before, after in pairwise(refused_at)]
    assert len(pauses) >= 19
    assert max(pauses) - min(pauses) > 0.1
    assert max(pauses) <= RECONNECT_SECONDS_MAX


async def test_kernel_is_told_what_a_relisting_has_changed(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No news tell it: the kernel would show what it has cached for as long as it may."""
    node = await commit_one(client, run, file_commit(b"old", b"content"))
    await trio.sleep(1)
    refuse_watches(client, monkeypatch)
    await load(file_system)
    root = file_system.tree.root
    old = await file_system.find(b"old")
    file_system.told.clear()

    await remove(client, run, run.root_node_id, b"old", node.node_id)
    await commit_one(client, run, file_commit(b"new", b"content"))
    await trio.sleep(2 * UNFOLLOWED_SECONDS_MAX)

    assert {(item.ino, item.name, item.removed_ino) for item in file_system.told} == {
        (root.ino, b"old", old.ino),
        (root.ino, b"new", 0),
        (root.ino, None, 0),
    }


async def test_change_of_a_file_that_a_relisting_lacks_is_discarded_at_once(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever waits for all of the run does not wait for a master that takes no commits meanwhile."""
    node = await commit_one(client, run, file_commit(b"file", b"content"))
    await trio.sleep(1)
    refuse_watches(client, monkeypatch)
    await load(file_system)
    file = await file_system.find(b"file")

    await remove(client, run, run.root_node_id, b"file", node.node_id)
    monkeypatch.setattr(client, "commit_nodes", answer_never)
    await file_system.set_attributes(b"file", mode=0o600)
    assert file in file_system.tree.pending
    with trio.fail_after(2 * UNFOLLOWED_SECONDS_MAX):
        while file.is_attached:
            await trio.sleep(0.01)

    assert file not in file_system.tree.pending


async def answer_never(request: names.CommitNodesRequest) -> names.CommitNodesResponse:
    await trio.sleep_forever()


async def test_sealed_run_has_no_watch_to_wait_for(
    clock: MockClock,
    client: FakeMasterClient,
    run: types.Run,
    file_system: FileSystemHarness,
    master: FakeMaster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await seal(client, run)
    await trio.sleep(1)
    delay_watches(client, monkeypatch, 60)
    master.call_count.clear()
    assert await load(file_system) == 0
    assert master.call_count == {"list_tree": 1}


async def test_what_came_between_listing_and_watch_is_shown(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delay_watches(client, monkeypatch, WATCH_PATIENCE_SECONDS / 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, file_system)
        await trio.sleep(WATCH_PATIENCE_SECONDS / 4)
        await commit_one(client, run, file_commit(b"late", b"news"))
    assert list(file_system.tree.root.children or {}) == [b"late"]


async def test_run_that_is_listed_again_waits_for_its_new_watch(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tree_sync, "RUN_WATCHES_MAX", 1)
    other = await make_run(client, USER)
    await trio.sleep(1)  # its user's watch has told
    await load(file_system)
    await file_system.sync.load_run(file_system.managed.runs[other.task_id])
    await trio.sleep(tree_sync.UNWATCHED_SECONDS_MAX * 2)
    assert not file_system.tree.watch_is_healthy
    delay_watches(client, monkeypatch, WATCH_PATIENCE_SECONDS / 2)

    assert await load(file_system) == pytest.approx(WATCH_PATIENCE_SECONDS / 2)

    assert file_system.tree.watch_is_healthy


async def test_run_that_is_sealed_while_its_tree_is_in_doubt_is_listed_once_more(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await commit_one(client, run, file_commit(b"file", b"content"))
    await load(file_system)
    tree = file_system.tree
    tree.is_in_doubt = True
    with trio.fail_after(SETTLED_SECONDS):
        while tree.is_in_doubt:
            await trio.sleep(0.01)
    # So soon after a listing the next doubt waits.
    tree.forget_if_unused(tree.detach(tree.root, b"file"))
    tree.is_in_doubt = True

    await seal(client, run)
    await trio.sleep(SETTLED_SECONDS)

    assert (tree.is_sealed, tree.is_in_doubt) == (True, False)
    assert file_system.shown().keys() == {b"file"}


async def test_outage_of_hours_is_a_line_in_the_log_for_each_watch(
    clock: MockClock, master: FakeMaster, file_system: FileSystemHarness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await load(file_system)
    await trio.sleep(SETTLED_SECONDS)

    for number in (1, 2):
        master.go_away()
        await trio.sleep(3 * 3600)
        lines = [record.getMessage() for record in caplog.records if " broke: " in record.getMessage()]
        assert len(lines) == 2 * number, lines  # that of the user and that of the run
        master.come_back()
        await trio.sleep(SETTLED_SECONDS)
        assert file_system.tree.watch_is_healthy


Between = Callable[[], Awaitable[None]]


def do_between_pages(client: FakeMasterClient, monkeypatch: pytest.MonkeyPatch, between: Between) -> None:
    """From now on a page has two names, and something happens before each but the first."""
    monkeypatch.setattr(listings, "TREE_PAGE_EDGES_MAX", 2)
    list_tree = client.list_tree

    async def late(task_id: str, page_token: str = "") -> names.ListTreeResponse:
        if page_token:
            await between()
        return await list_tree(task_id, page_token)

    monkeypatch.setattr(client, "list_tree", late)


async def test_run_whose_directories_never_rest_is_listed_at_once(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    master: FakeMaster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(8):
        await commit_one(client, run, file_commit(b"%d/file" % number, b"x"))
    tree_at_master = await tree_of(client, run)
    first, second = ([run.root_node_id, tree_at_master[b"%d" % number].node_id] for number in (0, 1))
    moved_id = tree_at_master[b"2"].node_id
    place = (run.root_node_id, b"2")

    async def move() -> None:
        nonlocal place
        # To before what was listed, and to behind it.
        new_place = (first[1] if place[0] != first[1] else second[1], b"moved")
        await rename(client, run, moved_id, place, new_place)
        place = new_place

    do_between_pages(client, monkeypatch, move)
    master.call_count.clear()
    await load(file_system)

    assert master.call_count["list_tree"] <= 9  # a second listing would take as many again
    monkeypatch.undo()
    assert file_system.shown().keys() == (await tree_of(client, run)).keys() - {b""}


async def test_run_that_is_sealed_while_it_is_listed_is_listed_again_and_kept(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    master: FakeMaster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await fill(client, run, 3)
    seals = 0

    async def seal_once() -> None:
        nonlocal seals
        seals += 1
        if seals == 1:
            await seal(client, run)

    do_between_pages(client, monkeypatch, seal_once)
    await load(file_system)

    assert file_system.tree.is_sealed
    assert master.call_count["list_tree"] == 4
    assert await file_system.sync.keep_sealed(file_system.tree)
    assert master.call_count["list_tree"] == 4  # it was on disk already


async def test_run_that_is_another_one_in_every_listing_is_not_there_for_now(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await fill(client, run, 3)

    async def forget() -> None:
        raise GenerationChanged("the changes are forgotten")

    do_between_pages(client, monkeypatch, forget)
    with pytest.raises(MasterUnavailable):
        await load(file_system)
