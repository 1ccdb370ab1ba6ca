"""Users, tasks and runs: the levels of the tree above the runs' own content (DESIGN: names in the tree).

Functions of one open transaction; each checks the caller first.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Row, insert, select, update

from cloudai_master.attributes import complete_attributes
from cloudai_master.authorization import (
    RUN_QUERY,
    Caller,
    Run,
    User,
    find_run,
    find_user,
)
from cloudai_master.changes import log_run_change, next_user_revision, to_wire
from cloudai_master.database import Transaction
from cloudai_master.run_tree import DIRECTORY_MODE, random_node_id
from cloudai_master.schema import edges, nodes, runs, tasks, users
from cloudai_model.errors import AlreadyExists, DirectoryNotEmpty, InvalidRequest, NotFound
from cloudai_model.names import check_managed_name, check_run_name, check_task_id, name_run
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

RUNS_PAGE_MAX: Final = 1000

# A task that starts runs faster than one a second for this long names them itself.
RUN_NAME_SECONDS_AHEAD_MAX: Final = 3600


def list_users(connection: Connection, caller: Caller) -> names.ListUsersResponse:
    """All users for an administrator, else the caller alone."""
    query = select(users.c.name).order_by(users.c.name)
    if not caller.admin:
        query = query.where(users.c.name == caller.user)
    return names.ListUsersResponse(users=connection.execute(query).scalars())


def list_tasks(
    connection: Connection, caller: Caller, request: names.ListTasksRequest
) -> names.ListTasksResponse:
    user = find_user(connection, caller, request.user)
    query = select(tasks).where(tasks.c.user_key == user.user_key, tasks.c.removed_at_ns.is_(None))
    if caller.task_id:
        run = find_run(connection, caller, caller.task_id)
        query = query.where(tasks.c.task_key == run.task_key)
    rows = connection.execute(query.order_by(tasks.c.name))
    return names.ListTasksResponse(
        tasks=[types.Task(user=user.name, name=row.name, created_at_ns=row.created_at_ns) for row in rows],
        revision=user.revision,
    )


def list_runs(
    connection: Connection, caller: Caller, request: names.ListRunsRequest
) -> names.ListRunsResponse:
    """Runs in the order they were made. The page token is `revision.last run key`."""
    user = find_user(connection, caller, request.user)
    revision, after_key = user.revision, 0
    if request.page_token:
        try:
            revision, after_key = map(int, request.page_token.split("."))
        except ValueError:
            raise InvalidRequest("not a page token") from None
    query = RUN_QUERY.where(
        runs.c.user_key == user.user_key, runs.c.removed_at_ns.is_(None), runs.c.run_key > after_key
    )
    if request.task:
        query = query.where(runs.c.task_key == _find_task(connection, user, request.task).task_key)
    if caller.task_id:
        query = query.where(runs.c.task_id == caller.task_id)
    page = [Run(*row) for row in connection.execute(query.order_by(runs.c.run_key).limit(RUNS_PAGE_MAX))]
    more = len(page) == RUNS_PAGE_MAX
    return names.ListRunsResponse(
        runs=to_wire(connection, page),
        next_page_token=f"{revision}.{page[-1].run_key}" if more else "",
        revision=revision,
    )


def create_task(
    transaction: Transaction, caller: Caller, request: names.CreateTaskRequest
) -> names.CreateTaskResponse:
    """Raises AlreadyExists for a name that is taken."""
    user = find_user(transaction.connection, caller, request.user)
    caller.require_whole_user()
    check_managed_name(request.task)
    if _look_up_task(transaction.connection, user.user_key, request.task) is not None:
        raise AlreadyExists("task", task=request.task)
    _insert_task(transaction, user.user_key, request.task)
    return names.CreateTaskResponse(
        task=types.Task(user=user.name, name=request.task, created_at_ns=transaction.now_ns)
    )


def remove_task(
    transaction: Transaction, caller: Caller, request: names.RemoveTaskRequest
) -> names.RemoveTaskResponse:
    """Raises DirectoryNotEmpty for a task with runs."""
    connection = transaction.connection
    user = find_user(connection, caller, request.user)
    caller.require_whole_user()
    task = _find_task(connection, user, request.task)
    left = select(runs.c.run_key).where(runs.c.task_key == task.task_key, runs.c.removed_at_ns.is_(None))
    if connection.execute(left.limit(1)).first() is not None:
        raise DirectoryNotEmpty("the task has runs", task=request.task)
    connection.execute(
        update(tasks)
        .where(tasks.c.task_key == task.task_key)
        .values(
            removed_at_ns=transaction.now_ns, user_revision=next_user_revision(transaction, user.user_key)
        )
    )
    return names.RemoveTaskResponse()


def create_run(
    transaction: Transaction, caller: Caller, request: names.CreateRunRequest
) -> names.CreateRunResponse:
    """Makes the run, its root directory, and the task when it is not there.

    Raises InvalidRunName, AlreadyExists for a name or a task id that is taken.
    """
    connection = transaction.connection
    user = find_user(connection, caller, request.user)
    caller.require_whole_user()
    check_managed_name(request.task)
    if request.name:
        check_run_name(request.name)
    if request.task_id:
        check_task_id(request.task_id)
    given = request.attributes if request.HasField("attributes") else None
    attributes = complete_attributes(given, DIRECTORY_MODE, transaction.now_ns)
    task = _look_up_task(connection, user.user_key, request.task)
    task_key = _insert_task(transaction, user.user_key, request.task) if task is None else task.task_key
    name = request.name or _next_free_name(connection, task_key, transaction.now_ns)
    taken = select(runs.c.run_key).where(
        runs.c.task_key == task_key, runs.c.name == name, runs.c.removed_at_ns.is_(None)
    )
    if connection.execute(taken).first() is not None:
        raise AlreadyExists("run", task=request.task, name=name)
    task_id = request.task_id or secrets.token_hex(12)
    if connection.execute(select(runs.c.run_key).where(runs.c.task_id == task_id)).first() is not None:
        raise AlreadyExists("task id", task_id=task_id)
    root_node_id = random_node_id()
    connection.execute(
        insert(runs).values(
            user_key=user.user_key,
            task_key=task_key,
            name=name,
            task_id=task_id,
            root_node_id=root_node_id,
            created_at_ns=transaction.now_ns,
            revision=0,
            forgotten_revision=0,
            user_revision=next_user_revision(transaction, user.user_key),
        )
    )
    run = find_run(connection, caller, task_id)
    connection.execute(
        insert(nodes).values(
            run_key=run.run_key,
            node_id=root_node_id,
            kind=types.NODE_KIND_DIRECTORY,
            mode=attributes.mode,
            uid=attributes.uid,
            gid=attributes.gid,
            mtime_ns=attributes.mtime_ns,
            ctime_ns=attributes.ctime_ns,
            atime_ns=attributes.atime_ns,
            size_bytes=0,
            generation=0,
            content_generation=0,
            chunk_count=0,
            digest=b"",
            symlink_target=b"",
            link_count=1,
            revision=0,
        )
    )
    return names.CreateRunResponse(run=to_wire(transaction.connection, [run])[0])


def remove_run(
    transaction: Transaction, caller: Caller, request: names.RemoveRunRequest
) -> names.RemoveRunResponse:
    """Raises RunSealed, DirectoryNotEmpty for a run with entries."""
    connection = transaction.connection
    run = find_run(connection, caller, request.task_id)
    caller.require_whole_user()
    run.require_open()
    entries = select(edges.c.node_id).where(edges.c.run_key == run.run_key).limit(1)
    if connection.execute(entries).first() is not None:
        raise DirectoryNotEmpty("the run has entries", task_id=run.task_id)
    _change_run(transaction, run, removed_at_ns=transaction.now_ns)
    return names.RemoveRunResponse()


def seal_run(
    transaction: Transaction, caller: Caller, request: names.SealRunRequest
) -> names.SealRunResponse:
    """From here on the run never changes. Raises RunSealed when it was sealed before."""
    run = find_run(transaction.connection, caller, request.task_id)
    caller.require_whole_user()
    run.require_open()
    _change_run(transaction, run, sealed_at_ns=transaction.now_ns, exit_status=request.exit_status)
    run = find_run(transaction.connection, caller, request.task_id)
    return names.SealRunResponse(run=to_wire(transaction.connection, [run])[0])


def _change_run(transaction: Transaction, run: Run, **values: int) -> None:
    """Writes columns of the run's row and tells both the run's and the user's watchers."""
    user_revision = next_user_revision(transaction, run.user_key)
    transaction.connection.execute(
        update(runs).where(runs.c.run_key == run.run_key).values(user_revision=user_revision, **values)
    )
    log_run_change(transaction, run.run_key)


def _look_up_task(connection: Connection, user_key: int, task: str) -> Row[tuple[int]] | None:
    return connection.execute(
        select(tasks.c.task_key).where(
            tasks.c.user_key == user_key, tasks.c.name == task, tasks.c.removed_at_ns.is_(None)
        )
    ).first()


def _find_task(connection: Connection, user: User, task: str) -> Row[tuple[int]]:
    row = _look_up_task(connection, user.user_key, task)
    if row is None:
        raise NotFound("task", task=task)
    return row


def _insert_task(transaction: Transaction, user_key: int, task: str) -> int:
    result = transaction.connection.execute(
        insert(tasks)
        .values(
            user_key=user_key,
            name=task,
            created_at_ns=transaction.now_ns,
            user_revision=next_user_revision(transaction, user_key),
        )
        .returning(tasks.c.task_key)
    )
    return int(result.scalar_one())


def _next_free_name(connection: Connection, task_key: int, now_ns: int) -> str:
    now = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)
    taken = set(
        connection.execute(
            select(runs.c.name).where(
                runs.c.task_key == task_key, runs.c.name >= name_run(now), runs.c.removed_at_ns.is_(None)
            )
        ).scalars()
    )
    for seconds in range(RUN_NAME_SECONDS_AHEAD_MAX):
        name = name_run(now + timedelta(seconds=seconds))
        if name not in taken:
            return name
    raise AlreadyExists("every second of the next hour has a run", task_key=task_key)
