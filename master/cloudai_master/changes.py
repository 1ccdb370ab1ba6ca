"""What happened in a run and at a user's managed levels, and reading it after a revision.

A run has a log, a row per change; a user's tasks and runs carry the revision of their last change instead,
since their state is small. Both are read in bounded batches, so a slow watcher costs no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, delete, func, insert, select, tuple_, update

from cloudai_master.authorization import RUN_QUERY, Run
from cloudai_master.database import Transaction
from cloudai_master.schema import changes, nodes, runs, tasks, users
from cloudai_model.errors import NotFound
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

BATCH_CHANGES_MAX: Final = 1000
BATCH_BYTES_MAX: Final = 1024 * 1024

# A watcher that was away for longer lists again: one call.
KEPT_SECONDS: Final = 24 * 3600


def to_wire(connection: Connection, found: Sequence[Run]) -> list[types.Run]:
    """The runs with the attributes of their root directories, in the same order; one query for all."""
    query = select(
        nodes.c.run_key,
        nodes.c.mode,
        nodes.c.uid,
        nodes.c.gid,
        nodes.c.mtime_ns,
        nodes.c.ctime_ns,
        nodes.c.atime_ns,
    ).where(tuple_(nodes.c.run_key, nodes.c.node_id).in_([(run.run_key, run.root_node_id) for run in found]))
    attributes_by_run = {
        run_key: types.Attributes(
            mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, ctime_ns=ctime_ns, atime_ns=atime_ns
        )
        for run_key, mode, uid, gid, mtime_ns, ctime_ns, atime_ns in connection.execute(query)
    }
    return [_to_wire(run, attributes_by_run.get(run.run_key)) for run in found]


def _to_wire(run: Run, attributes: types.Attributes | None) -> types.Run:
    return types.Run(
        user=run.user,
        task=run.task,
        name=run.name,
        task_id=run.task_id,
        root_node_id=run.root_node_id,
        created_at_ns=run.created_at_ns,
        sealed=run.sealed_at_ns is not None,
        sealed_at_ns=run.sealed_at_ns or 0,
        exit_status=run.exit_status or 0,
        revision=run.revision,
        removed=run.removed_at_ns is not None,
        attributes=attributes,
    )


def next_user_revision(transaction: Transaction, user_key: int) -> int:
    """Counts one change of the user's tasks and runs; the caller writes the number into its row."""
    transaction.touched_users.add(user_key)
    transaction.connection.execute(
        update(users).where(users.c.user_key == user_key).values(revision=users.c.revision + 1)
    )
    query = select(users.c.revision).where(users.c.user_key == user_key)
    return int(transaction.connection.execute(query).scalar_one())


def log_run_change(transaction: Transaction, run_key: int) -> None:
    """Tells the run's own watchers of the state of its row, which the caller has just changed."""
    transaction.touched_runs.add(run_key)
    connection = transaction.connection
    connection.execute(update(runs).where(runs.c.run_key == run_key).values(revision=runs.c.revision + 1))
    run = Run(*connection.execute(RUN_QUERY.where(runs.c.run_key == run_key)).one())
    (run_changed,) = to_wire(connection, [run])
    change = names.Change(revision=run.revision, run_changed=run_changed)
    connection.execute(
        insert(changes).values(
            run_key=run_key,
            revision=run.revision,
            change=change.SerializeToString(),
            made_at_ns=transaction.now_ns,
        )
    )


def read_run_changes(connection: Connection, run_key: int, after_revision: int) -> names.WatchResponse:
    """The run's next changes after a revision, at most a batch; none when there are none.

    Answers `reload` with the current revision when the changes in between are not known any more. Raises
    NotFound for a removed run, once the removal itself has been read.
    """
    current, forgotten, removed_at_ns = connection.execute(
        select(runs.c.revision, runs.c.forgotten_revision, runs.c.removed_at_ns).where(
            runs.c.run_key == run_key
        )
    ).one()
    if removed_at_ns is not None and after_revision == current:
        raise NotFound("the run was removed")
    if not forgotten <= after_revision <= current:
        return names.WatchResponse(revision=current, reload=True)
    response = names.WatchResponse(revision=after_revision)
    rows = connection.execute(
        select(changes.c.revision, changes.c.change)
        .where(changes.c.run_key == run_key, changes.c.revision > after_revision)
        .order_by(changes.c.revision)
        .limit(BATCH_CHANGES_MAX)
    ).all()
    batch_bytes = 0
    for revision, change in rows:
        response.changes.append(names.Change.FromString(change))
        response.revision = revision
        batch_bytes += len(change)
        if batch_bytes >= BATCH_BYTES_MAX:
            break
    return response


def read_user_changes(connection: Connection, user_key: int, after_revision: int) -> names.WatchResponse:
    """As read_run_changes, for a user's tasks and runs. Each is told once, in its state now."""
    query = select(users.c.revision, users.c.name).where(users.c.user_key == user_key)
    current, user = connection.execute(query).one()
    if not 0 <= after_revision <= current:
        return names.WatchResponse(revision=current, reload=True)
    found: list[names.Change] = []
    changed_tasks = connection.execute(
        select(tasks)
        .where(tasks.c.user_key == user_key, tasks.c.user_revision > after_revision)
        .order_by(tasks.c.user_revision)
        .limit(BATCH_CHANGES_MAX)
    ).all()
    for row in changed_tasks:
        task = types.Task(
            user=user, name=row.name, created_at_ns=row.created_at_ns, removed=row.removed_at_ns is not None
        )
        found.append(names.Change(revision=row.user_revision, task_changed=task))
    changed_runs = connection.execute(
        RUN_QUERY.add_columns(runs.c.user_revision)
        .where(runs.c.user_key == user_key, runs.c.user_revision > after_revision)
        .order_by(runs.c.user_revision)
        .limit(BATCH_CHANGES_MAX)
    ).all()
    run_messages = to_wire(connection, [Run(*columns) for *columns, _ in changed_runs])
    for (*_, user_revision), run_changed in zip(changed_runs, run_messages, strict=True):
        found.append(names.Change(revision=user_revision, run_changed=run_changed))
    # Each query's rows are complete up to its last one, so the lowest BATCH_CHANGES_MAX of both have no gap.
    found.sort(key=lambda change: change.revision)
    batch = found[:BATCH_CHANGES_MAX]
    revision = batch[-1].revision if len(batch) == BATCH_CHANGES_MAX else current
    return names.WatchResponse(changes=batch, revision=revision)


def forget_old_changes(transaction: Transaction) -> None:
    """Drops what is older than KEPT_SECONDS from the logs, and notes how far each run's log is gone."""
    connection = transaction.connection
    before_ns = transaction.now_ns - KEPT_SECONDS * 1_000_000_000
    old = connection.execute(
        select(changes.c.run_key, func.max(changes.c.revision))
        .where(changes.c.made_at_ns < before_ns)
        .group_by(changes.c.run_key)
    ).all()
    for run_key, revision in old:
        connection.execute(
            delete(changes).where(changes.c.run_key == run_key, changes.c.revision <= revision)
        )
        connection.execute(update(runs).where(runs.c.run_key == run_key).values(forgotten_revision=revision))
