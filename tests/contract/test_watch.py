from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from cloudai_fusefs.master_client import MasterClient
from cloudai_model import errors
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.master_under_test import Master
from support.storage_requests import (
    USER,
    append,
    commit,
    commit_one,
    directory_commit,
    file_commit,
    make_run,
    remove,
    rename,
    request_id,
    seal,
)

SECONDS_MAX = 15.0


async def changes_until(messages: AsyncIterator[names.WatchResponse], revision: int) -> list[names.Change]:
    """All changes up to this revision, which is awaited."""
    found: list[names.Change] = []
    with trio.fail_after(SECONDS_MAX):
        async for message in messages:
            assert not message.reload
            found.extend(message.changes)
            if message.revision >= revision:
                return found
    raise AssertionError("the watch ended")


def kinds(changes: list[names.Change]) -> list[str | None]:
    return [change.WhichOneof("change") for change in changes]


def of_run(run: types.Run, after_revision: int = 0) -> names.WatchRequest:
    return names.WatchRequest(task_id=run.task_id, after_revision=after_revision)


async def test_first_message_comes_at_once(client: MasterClient, run: types.Run) -> None:
    async with client.watch(of_run(run)) as messages:
        with trio.fail_after(SECONDS_MAX):
            message = await anext(messages)
    assert (list(message.changes), message.revision, message.reload) == ([], 0, False)


async def test_silence_is_broken_by_empty_messages(client: MasterClient, run: types.Run) -> None:
    async with client.watch(of_run(run)) as messages:
        await anext(messages)
        with trio.fail_after(10):
            message = await anext(messages)
    assert list(message.changes) == []


async def test_changes_come_as_they_happen(client: MasterClient, run: types.Run) -> None:
    async with client.watch(of_run(run)) as messages:
        await anext(messages)
        node = await commit_one(client, run, file_commit(b"d/f", b"x"))
        made = await changes_until(messages, 2)
        grown = await append(client, run, node, b"y")
        appended = await changes_until(messages, 3)
    assert kinds(made) == ["edge_set", "edge_set"]
    assert [change.revision for change in made] == [1, 2]
    assert made[0].edge_set.parent_node_id == run.root_node_id
    assert made[1].edge_set.parent_node_id == made[0].edge_set.node.node_id
    assert made[1].edge_set.node == node
    assert kinds(appended) == ["node_changed"]
    assert appended[0].node_changed == grown


async def test_watch_goes_on_after_a_revision(client: MasterClient, run: types.Run) -> None:
    first = await commit(client, run, file_commit(b"f", b"x"))
    second = await commit(client, run, file_commit(b"g", b"x"))
    async with client.watch(of_run(run, first.revision)) as messages:
        changes = await changes_until(messages, second.revision)
    assert [change.edge_set.name for change in changes] == [b"g"]


async def test_rename_tells_the_new_name_before_the_old_is_gone(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, directory_commit(b"d"))
    root = run.root_node_id
    await rename(client, run, node.node_id, (root, b"d"), (root, b"e"))
    async with client.watch(of_run(run, node.revision)) as messages:
        changes = await changes_until(messages, node.revision + 3)
    assert kinds(changes) == ["edge_set", "edge_removed", "node_changed"]
    assert (changes[0].edge_set.name, changes[0].edge_set.node.link_count) == (b"e", 1)
    assert (changes[1].edge_removed.name, changes[1].edge_removed.node_id) == (b"d", node.node_id)
    assert changes[2].node_changed.node_id == root


async def test_removal_names_what_is_gone(client: MasterClient, run: types.Run) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    await remove(client, run, run.root_node_id, b"f", node.node_id)
    async with client.watch(of_run(run, node.revision)) as messages:
        changes = await changes_until(messages, node.revision + 2)
    assert kinds(changes) == ["edge_removed", "node_changed"]


async def test_large_backlog_comes_whole_and_in_order(client: MasterClient, run: types.Run) -> None:
    for start in range(0, 3000, 1000):
        await commit(client, run, *(file_commit(b"f%d" % i, b"x") for i in range(start, start + 1000)))
    async with client.watch(of_run(run)) as messages:
        changes = await changes_until(messages, 3000)
    assert [change.revision for change in changes] == list(range(1, 3001))


async def test_revision_that_never_was_asks_to_reload(client: MasterClient, run: types.Run) -> None:
    async with client.watch(of_run(run, 1000)) as messages:
        message = await anext(messages)
    assert (message.reload, message.revision) == (True, 0)


async def test_sealing_reaches_the_watchers_of_run_and_user(client: MasterClient, run: types.Run) -> None:
    of_user = names.WatchRequest(user=USER, after_revision=(await client.list_tasks(USER)).revision)
    async with client.watch(of_run(run)) as run_messages, client.watch(of_user) as user_messages:
        sealed = await seal(client, run, 5)
        (of_its_own,) = await changes_until(run_messages, 1)
        of_users = await changes_until(user_messages, of_user.after_revision + 1)
    assert of_its_own.run_changed == sealed
    assert [change.run_changed for change in of_users] == [sealed]


async def test_users_watch_tells_of_tasks_and_runs(client: MasterClient) -> None:
    revision = (await client.list_tasks(USER)).revision
    run = await make_run(client, USER)
    await client.remove_run(names.RemoveRunRequest(request_id=request_id(), task_id=run.task_id))
    request = names.WatchRequest(user=USER, after_revision=revision)
    async with client.watch(request) as messages:
        changes = await changes_until(messages, revision + 3)
    assert kinds(changes) == ["task_changed", "run_changed"]
    assert (changes[0].task_changed.name, changes[0].task_changed.removed) == (run.task, False)
    assert (changes[1].run_changed.task_id, changes[1].run_changed.removed) == (run.task_id, True)


async def test_watch_of_a_removed_run_ends(client: MasterClient, run: types.Run) -> None:
    async with client.watch(of_run(run)) as messages:
        await anext(messages)
        await client.remove_run(names.RemoveRunRequest(request_id=request_id(), task_id=run.task_id))
        (removed,) = await changes_until(messages, 1)
        assert removed.run_changed.removed
        with trio.fail_after(SECONDS_MAX), pytest.raises(errors.NotFound):
            async for message in messages:
                assert list(message.changes) == []


async def test_watch_of_somebody_elses_run_is_not_found(other: MasterClient, run: types.Run) -> None:
    for request in (of_run(run), names.WatchRequest(user=USER)):
        with trio.fail_after(SECONDS_MAX), pytest.raises(errors.NotFound):
            async with other.watch(request) as messages:
                await anext(messages)


async def test_watch_of_nothing_is_refused(client: MasterClient) -> None:
    with trio.fail_after(SECONDS_MAX), pytest.raises(errors.InvalidRequest):
        async with client.watch(names.WatchRequest()) as messages:
            await anext(messages)


async def test_run_token_watches_its_run_alone(master: Master, client: MasterClient, run: types.Run) -> None:
    revision = (await client.list_tasks(USER)).revision
    async with master.open(USER, task_id=run.task_id) as narrow:
        await make_run(client, USER)
        sealed = await seal(client, run)
        async with narrow.watch(names.WatchRequest(user=USER, after_revision=revision)) as messages:
            changes = await changes_until(messages, revision + 3)
    assert [change.run_changed for change in changes] == [sealed]


async def test_cancelled_watch_leaves_the_client_usable(client: MasterClient, run: types.Run) -> None:
    with trio.move_on_after(0.2):
        async with client.watch(of_run(run)) as messages:
            async for _ in messages:
                pass
    assert (await client.get_capabilities()).user == USER
