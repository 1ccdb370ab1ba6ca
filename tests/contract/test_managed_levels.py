from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable

import pytest

from cloudai_fusefs.master_client import MasterClient
from cloudai_model import errors
from cloudai_model.limits import CHUNK_BYTES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.storage_requests import (
    OTHER_USER,
    USER,
    commit_one,
    file_commit,
    make_run,
    put,
    request_id,
    seal,
    tree_of,
)

NAME = "2026-11-20_15-04-05"


def new_task() -> str:
    return f"task-{secrets.token_hex(6)}"


def create_task(task: str, user: str = USER) -> names.CreateTaskRequest:
    return names.CreateTaskRequest(request_id=request_id(), user=user, task=task)


def remove_task(task: str) -> names.RemoveTaskRequest:
    return names.RemoveTaskRequest(request_id=request_id(), user=USER, task=task)


def create_run(task: str, name: str = "", task_id: str = "") -> names.CreateRunRequest:
    return names.CreateRunRequest(request_id=request_id(), user=USER, task=task, name=name, task_id=task_id)


async def test_capabilities_say_whom_the_token_speaks_for(client: MasterClient) -> None:
    capabilities = await client.get_capabilities()
    assert (capabilities.user, capabilities.admin, capabilities.task_id) == (USER, False, "")
    assert capabilities.chunk_bytes_max == CHUNK_BYTES_MAX
    assert capabilities.expires_at_ns > 0


async def test_usage_counts_each_stored_chunk_once(client: MasterClient, run: types.Run) -> None:
    chunk = secrets.token_bytes(1000)
    before = (await client.get_usage(USER)).used_bytes
    await put(client, run, chunk, chunk)
    after = await client.get_usage(USER)
    assert after.used_bytes - before == 1000
    assert after.store_size_bytes >= after.store_free_bytes > 0


async def test_made_task_is_listed_until_it_is_removed(client: MasterClient) -> None:
    task = new_task()
    made = await client.create_task(create_task(task))
    assert (made.user, made.name) == (USER, task)
    assert made in (await client.list_tasks(USER)).tasks
    await client.remove_task(remove_task(task))
    assert task not in [listed.name for listed in (await client.list_tasks(USER)).tasks]
    await client.create_task(create_task(task))


async def test_task_is_made_once(client: MasterClient) -> None:
    task = new_task()
    request = create_task(task)
    assert await client.create_task(request) == await client.create_task(request)
    with pytest.raises(errors.AlreadyExists):
        await client.create_task(create_task(task))


@pytest.mark.parametrize("task", ["", ".", "..", ".git", "a/b", "latest", "a\nb", "nul\0", "n" * 256])
async def test_bad_task_name_is_refused(client: MasterClient, task: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        await client.create_task(create_task(task))
    with pytest.raises(errors.InvalidRequest):
        await client.create_run(create_run(task))


async def test_refusal_of_an_endless_name_is_an_answer(client: MasterClient) -> None:
    with pytest.raises(errors.InvalidRequest):
        await client.create_task(create_task("ü/" * 100_000))


async def test_task_with_runs_is_not_removed(client: MasterClient, run: types.Run) -> None:
    with pytest.raises(errors.DirectoryNotEmpty):
        await client.remove_task(remove_task(run.task))
    with pytest.raises(errors.NotFound):
        await client.remove_task(remove_task(new_task()))


async def test_run_without_a_name_gets_the_next_free_second(client: MasterClient) -> None:
    task = new_task()
    made = [await client.create_run(create_run(task)) for _ in range(3)]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.name) for run in made)
    assert len({run.name for run in made}) == 3
    assert len({run.task_id for run in made}) == 3
    listed, revision = await client.list_runs(USER, task)
    assert [run.name for run in listed] == [run.name for run in made]
    assert revision > 0


async def test_run_keeps_the_name_task_id_and_attributes_it_was_given(client: MasterClient) -> None:
    request = create_run(new_task(), NAME, f"id.{secrets.token_hex(6)}")
    request.attributes.CopyFrom(types.Attributes(mode=0o700, uid=5, gid=6, mtime_ns=7))
    run = await client.create_run(request)
    assert (run.name, run.task_id, run.sealed) == (NAME, request.task_id, False)
    root = (await tree_of(client, run))[b""]
    assert (root.node_id, root.attributes) == (run.root_node_id, request.attributes)


async def test_listed_run_carries_the_attributes_of_its_root(client: MasterClient) -> None:
    task = new_task()
    attributes = types.Attributes(mode=0o2750, uid=7, gid=8, mtime_ns=9, ctime_ns=10, atime_ns=11)
    request = names.CreateRunRequest(
        request_id=request_id(), user=USER, task=task, name=NAME, attributes=attributes
    )
    made = await client.create_run(request)

    (listed,), _ = await client.list_runs(USER, task)

    assert made.attributes == attributes
    assert listed.attributes == attributes


async def test_taken_run_name_or_task_id_is_refused(client: MasterClient) -> None:
    task, task_id = new_task(), secrets.token_hex(6)
    await client.create_run(create_run(task, NAME, task_id))
    with pytest.raises(errors.AlreadyExists):
        await client.create_run(create_run(task, NAME))
    with pytest.raises(errors.AlreadyExists):
        await client.create_run(create_run(task, "", task_id))
    assert len((await client.list_runs(USER, task))[0]) == 1


@pytest.mark.parametrize("name", ["today", "2026-13-01_00-00-00", "2026-02-30_00-00-00", NAME + "x", "../x"])
async def test_run_name_that_is_no_timestamp_is_refused(client: MasterClient, name: str) -> None:
    task = new_task()
    with pytest.raises(errors.InvalidRunName):
        await client.create_run(create_run(task, name))
    assert task not in [listed.name for listed in (await client.list_tasks(USER)).tasks]


@pytest.mark.parametrize("task_id", ["a/b", "..", "-x", "ü", "i" * 129])
async def test_bad_task_id_is_refused(client: MasterClient, task_id: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        await client.create_run(create_run(new_task(), NAME, task_id))


async def test_create_run_repeated_with_its_request_id_makes_one(client: MasterClient) -> None:
    request = create_run(new_task())
    assert await client.create_run(request) == await client.create_run(request)
    assert len((await client.list_runs(USER, request.task))[0]) == 1


async def test_empty_open_run_is_removed(client: MasterClient, run: types.Run) -> None:
    await client.remove_run(names.RemoveRunRequest(request_id=request_id(), task_id=run.task_id))
    assert (await client.list_runs(USER, run.task))[0] == []
    with pytest.raises(errors.NotFound):
        await client.list_tree(run.task_id)
    await client.create_run(create_run(run.task, run.name))


async def test_run_with_entries_or_sealed_is_not_removed(client: MasterClient, run: types.Run) -> None:
    await commit_one(client, run, file_commit(b"f", b"x"))
    request = names.RemoveRunRequest(request_id=request_id(), task_id=run.task_id)
    with pytest.raises(errors.DirectoryNotEmpty):
        await client.remove_run(request)
    await seal(client, run)
    with pytest.raises(errors.RunSealed):
        await client.remove_run(request)


async def test_sealed_run_says_so_with_its_status(client: MasterClient, run: types.Run) -> None:
    sealed = await seal(client, run, exit_status=-9)
    assert (sealed.sealed, sealed.exit_status) == (True, -9)
    assert sealed.sealed_at_ns >= sealed.created_at_ns
    assert (await client.list_runs(USER, run.task))[0] == [sealed]
    assert (await client.list_tree(run.task_id)).sealed


async def test_run_is_sealed_once(client: MasterClient, run: types.Run) -> None:
    request = names.SealRunRequest(request_id=request_id(), task_id=run.task_id, exit_status=3)
    assert await client.seal_run(request) == await client.seal_run(request)
    with pytest.raises(errors.RunSealed):
        await seal(client, run, 0)


async def test_garbage_page_token_is_refused(client: MasterClient, run: types.Run) -> None:
    large = "9" * 40
    for token in (
        "garbage",
        "1.2",
        "1.2.zz",
        "x.y.z",
        f"{large}.1.00",
        large,
        "-1",
        f"1.{large}.00",
        f"1.-{large}.00",
    ):
        with pytest.raises((errors.InvalidRequest, errors.GenerationChanged)):
            await client.list_tree(run.task_id, token)


async def test_what_somebody_else_owns_is_not_found(
    client: MasterClient, other: MasterClient, run: types.Run
) -> None:
    node = await commit_one(client, run, file_commit(b"f", b"x"))
    theirs = await make_run(other, OTHER_USER)
    assert await other.list_users() == [OTHER_USER]
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: other.list_tasks(USER),
        lambda: other.list_runs(USER),
        lambda: other.get_usage(USER),
        lambda: other.create_task(create_task(new_task())),
        lambda: other.remove_task(remove_task(run.task)),
        lambda: other.create_run(create_run(run.task)),
        lambda: other.remove_run(names.RemoveRunRequest(request_id=request_id(), task_id=run.task_id)),
        lambda: other.list_tree(run.task_id),
        lambda: other.get_manifest(run.task_id, node.node_id, 1),
        lambda: other.read_chunk(run.task_id, node.node_id, 1, 0),
        lambda: other.find_missing_chunks(run.task_id, [node.digest]),
        lambda: other.put_chunk(run.task_id, node.digest, b"x"),
        lambda: commit_one(other, run, file_commit(b"f", b"x")),
        lambda: seal(other, run),
        # The node's id in a run of one's own is no way in.
        lambda: other.get_manifest(theirs.task_id, node.node_id, 1),
    ]
    for attempt in attempts:
        with pytest.raises(errors.NotFound):
            await attempt()
    texts = set()
    for task_id in (run.task_id, "0" * len(run.task_id)):
        with pytest.raises(errors.NotFound) as caught:
            await other.list_tree(task_id)
        texts.add(str(caught.value).replace(task_id, "ID"))
    assert len(texts) == 1
