"""Who asks, and what they may see: every call goes through one of these checks before it reads or writes.

What a caller may not see does not exist for them: NOT_FOUND, word for word as for what really is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, select

from cloudai_master.schema import runs, tasks, users
from cloudai_model.errors import NotFound, PermissionRefused, RunSealed


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whom a valid token speaks for."""

    user: str
    admin: bool = False
    task_id: str = ""
    """Not empty: good for this run alone."""
    expires_at_ns: int = 0
    token_id: str = ""

    def sees_user(self, user: str) -> bool:
        return self.admin or self.user == user

    def sees_run(self, user: str, task_id: str) -> bool:
        return self.sees_user(user) and self.task_id in ("", task_id)

    def require_whole_user(self) -> None:
        """Raises PermissionRefused for a token that is good for one run alone."""
        if self.task_id:
            raise PermissionRefused("the token is good for one run alone", task_id=self.task_id)


@dataclass(frozen=True)
class User:
    """A row of users, as the checks return it."""

    user_key: int
    name: str
    revision: int
    used_bytes: int


@dataclass(frozen=True)
class Run:
    """A row of runs with the names above it."""

    run_key: int
    user_key: int
    task_key: int
    user: str
    task: str
    name: str
    task_id: str
    root_node_id: int
    created_at_ns: int
    sealed_at_ns: int | None
    exit_status: int | None
    removed_at_ns: int | None
    revision: int
    forgotten_revision: int

    def require_open(self) -> None:
        """Raises RunSealed."""
        if self.sealed_at_ns is not None:
            raise RunSealed(task_id=self.task_id)


RUN_QUERY: Final[Select[Any]] = select(
    runs.c.run_key,
    runs.c.user_key,
    runs.c.task_key,
    users.c.name.label("user"),
    tasks.c.name.label("task"),
    runs.c.name,
    runs.c.task_id,
    runs.c.root_node_id,
    runs.c.created_at_ns,
    runs.c.sealed_at_ns,
    runs.c.exit_status,
    runs.c.removed_at_ns,
    runs.c.revision,
    runs.c.forgotten_revision,
).select_from(
    runs.join(tasks, tasks.c.task_key == runs.c.task_key).join(users, users.c.user_key == runs.c.user_key)
)
"""The columns of Run, in its order: `Run(*row)`."""


_FIND_RUN: Final = RUN_QUERY.where(runs.c.task_id == bindparam("task_id"), runs.c.removed_at_ns.is_(None))


def find_user(connection: Connection, caller: Caller, user: str) -> User:
    """The user of this name; raises NotFound, also for one that the caller may not see."""
    if caller.sees_user(user):
        row = connection.execute(
            select(users.c.user_key, users.c.name, users.c.revision, users.c.used_bytes).where(
                users.c.name == user
            )
        ).first()
        if row is not None:
            return User(*row)
    raise NotFound("user", user=user)


def find_run(connection: Connection, caller: Caller, task_id: str) -> Run:
    """The run of this task id, sealed or open; raises NotFound, also for one that the caller may not see."""
    row = connection.execute(_FIND_RUN, {"task_id": task_id}).first()
    if row is not None:
        run = Run(*row)
        if caller.sees_run(run.user, run.task_id):
            return run
    raise NotFound("run", task_id=task_id)


def find_open_run(connection: Connection, caller: Caller, task_id: str) -> Run:
    """As find_run; raises RunSealed for a sealed one."""
    run = find_run(connection, caller, task_id)
    run.require_open()
    return run
