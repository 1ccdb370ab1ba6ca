"""The rules for names, paths inside a run, and the managed levels user / task / run.

Names inside a run are bytes, as in Linux; users and tasks are text, since people type them elsewhere too.
Every rule raises a subclass of InvalidRequest that carries the name.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from typing import Final

from cloudai_model.errors import InvalidName, InvalidRequest, InvalidRunName, NameTooLong
from cloudai_model.limits import (
    NAME_BYTES_MAX,
    NODE_ID_MAX,
    NODE_ID_MIN,
    PATH_BYTES_MAX,
    PATH_DEPTH_MAX,
    SYMLINK_TARGET_BYTES_MAX,
)

LATEST: Final = "latest"
"""The name of the symlink to a task's newest run; no run can be called so, as it is no timestamp."""

_RUN_NAME_FORMAT: Final = "%Y-%m-%d_%H-%M-%S"
_RUN_NAME_PATTERN: Final = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", re.ASCII)
_TASK_ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def check_name(name: bytes) -> None:
    """Accept one component of a path inside a run, by the rules of Linux.

    Raises InvalidName for an empty name, `.`, `..`, and a name with `/` or NUL; NameTooLong over 255 bytes.
    """
    if name in (b"", b".", b".."):
        raise InvalidName(name=name)
    if b"/" in name or b"\0" in name:
        raise InvalidName("'/' and NUL cannot be part of a name", name=name[:NAME_BYTES_MAX])
    if len(name) > NAME_BYTES_MAX:
        raise NameTooLong(name=name[:NAME_BYTES_MAX], size_bytes=len(name))


def split_path(path: bytes) -> list[bytes]:
    """The components of a path relative to a run's root, at least one; the inverse of b"/".join.

    Raises InvalidName for an absolute path, an empty component, `.` or `..`; NameTooLong past the limits.
    """
    if len(path) > PATH_BYTES_MAX:
        raise NameTooLong(path=path[:80], size_bytes=len(path))
    names = path.split(b"/")
    if len(names) > PATH_DEPTH_MAX:
        raise NameTooLong("the path is too deep", path=path[:80], depth=len(names))
    for name in names:
        check_name(name)
    return names


def check_symlink_target(target: bytes) -> None:
    """Accept what symlink(2) accepts: 1 to 4095 bytes without NUL. Dangling and absolute ones are fine."""
    if not target or b"\0" in target:
        raise InvalidName("a symlink's target is 1 to 4095 bytes without NUL")
    if len(target) > SYMLINK_TARGET_BYTES_MAX:
        raise NameTooLong(size_bytes=len(target))


def check_managed_name(name: str) -> None:
    """Accept a user's or a task's name: printable text of at most 255 bytes that does not start with a dot.

    The dot keeps `.git`, `.Trash-1000` and their like, which programs try at the top of any mount, from
    becoming tasks.
    """
    if not name or name.startswith(".") or name == LATEST or "/" in name:
        raise InvalidName(name=name)
    if any(unicodedata.category(character) in ("Cc", "Cs", "Cn") for character in name):
        raise InvalidName("control characters cannot be part of a user or task name", name=name)
    if len(name.encode()) > NAME_BYTES_MAX:
        raise NameTooLong(name=name[:80])


def check_run_name(name: str) -> None:
    """Accept `YYYY-MM-DD_HH-MM-SS` of a time that exists; raises InvalidRunName otherwise."""
    if not _RUN_NAME_PATTERN.fullmatch(name):
        raise InvalidRunName(name=name[:NAME_BYTES_MAX])
    try:
        datetime.strptime(name, _RUN_NAME_FORMAT).replace(tzinfo=UTC)
    except ValueError as error:
        raise InvalidRunName(name=name) from error


def name_run(moment: datetime) -> str:
    """The run name of a moment, which must carry a time zone; whole seconds of UTC."""
    if moment.tzinfo is None:
        raise ValueError("a run's time needs a time zone")
    return moment.astimezone(UTC).strftime(_RUN_NAME_FORMAT)


def check_task_id(task_id: str) -> None:
    """Accept a run's unique task id: 1 to 128 of A-Z a-z 0-9 . _ - (it becomes part of file names)."""
    if not _TASK_ID_PATTERN.fullmatch(task_id):
        raise InvalidRequest("not a valid task id", task_id=task_id[:128])


def check_node_id(node_id: int) -> None:
    """Accept an id in [NODE_ID_MIN, NODE_ID_MAX]."""
    if not NODE_ID_MIN <= node_id <= NODE_ID_MAX:
        raise InvalidRequest("a node id is out of range", node_id=node_id)
