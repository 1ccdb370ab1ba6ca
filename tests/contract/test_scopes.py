"""What a token may see: a user's, an administrator's, one run's."""

from __future__ import annotations

import pytest

from cloudai_fusefs.master_client import MasterClient
from cloudai_model import errors
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.master_under_test import Master
from support.storage_requests import (
    OTHER_USER,
    USER,
    commit_one,
    file_commit,
    make_run,
    read_file,
    request_id,
    seal,
    tree_of,
)


async def test_run_token_writes_and_reads_its_run(
    master: Master, client: MasterClient, run: types.Run
) -> None:
    async with master.open(USER, task_id=run.task_id) as narrow:
        assert (await narrow.get_capabilities()).task_id == run.task_id
        node = await commit_one(narrow, run, file_commit(b"f", b"x"))
        assert await read_file(narrow, run, node) == b"x"
        assert sorted(await tree_of(client, run)) == [b"", b"f"]


async def test_run_token_sees_the_path_to_its_run_alone(
    master: Master, client: MasterClient, run: types.Run
) -> None:
    sibling = await client.create_run(
        names.CreateRunRequest(request_id=request_id(), user=USER, task=run.task)
    )
    elsewhere = await make_run(client, USER)
    async with master.open(USER, task_id=run.task_id) as narrow:
        assert await narrow.list_users() == [USER]
        assert [task.name for task in (await narrow.list_tasks(USER)).tasks] == [run.task]
        assert [listed.task_id for listed in (await narrow.list_runs(USER))[0]] == [run.task_id]
        for hidden in (sibling, elsewhere):
            with pytest.raises(errors.NotFound):
                await narrow.list_tree(hidden.task_id)
            with pytest.raises(errors.NotFound):
                await commit_one(narrow, hidden, file_commit(b"f", b"x"))


async def test_run_token_changes_nothing_above_its_run(master: Master, run: types.Run) -> None:
    async with master.open(USER, task_id=run.task_id) as narrow:
        for attempt in (
            lambda: make_run(narrow, USER),
            lambda: seal(narrow, run),
            lambda: narrow.remove_run(names.RemoveRunRequest(request_id=request_id(), task_id=run.task_id)),
            lambda: narrow.create_task(
                names.CreateTaskRequest(request_id=request_id(), user=USER, task="new")
            ),
            lambda: narrow.remove_task(
                names.RemoveTaskRequest(request_id=request_id(), user=USER, task=run.task)
            ),
        ):
            with pytest.raises(errors.PermissionRefused):
                await attempt()


async def test_run_token_is_made_by_its_user_and_makes_no_others(
    master: Master, client: MasterClient, other: MasterClient, run: types.Run
) -> None:
    request = names.CreateRunTokenRequest(task_id=run.task_id, valid_seconds=60)
    first, second = [await client.create_run_token(request) for _ in range(2)]
    assert first.token != second.token
    assert 0 < first.expires_at_ns <= (await client.get_capabilities()).expires_at_ns
    with pytest.raises(errors.NotFound):
        await other.create_run_token(request)
    with pytest.raises(errors.InvalidRequest):
        await client.create_run_token(names.CreateRunTokenRequest(task_id=run.task_id))
    async with master.open(USER, task_id=run.task_id) as narrow:
        with pytest.raises(errors.PermissionRefused):
            await narrow.create_run_token(request)


async def test_administrator_sees_and_changes_what_is_any_users(master: Master, run: types.Run) -> None:
    async with master.open(OTHER_USER, admin=True) as admin:
        assert {USER, OTHER_USER} <= set(await admin.list_users())
        await commit_one(admin, run, file_commit(b"f", b"x"))
        assert sorted(await tree_of(admin, run)) == [b"", b"f"]
        with pytest.raises(errors.NotFound):
            await admin.list_tasks("nobody")
