"""What volumes are called: the task id of the run that one is, and of one that a driver has made a mark of its user.

    0d1b5f2c...~9f86d081

A deletion brings nothing but this and a token, and of somebody else's run the master says that there is none: the mark
tells a volume that is another user's from one that is gone. Pure.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cloudai_model.errors import InvalidRequest

# In no task id, and plain in the name of a file.
_SEPARATOR: Final = "~"
_MARK_BYTES: Final = 4


def volume_id_of(task_id: str, user: str) -> str:
    return f"{task_id}{_SEPARATOR}{_mark_of(user)}"


def task_id_of(volume_id: str) -> str:
    return volume_id.partition(_SEPARATOR)[0]


def check_mark(volume_id: str) -> None:
    """Accepts nothing or a mark behind the task id, whatever that is. Raises InvalidRequest."""
    _, separator, mark = volume_id.partition(_SEPARATOR)
    if separator and not (len(mark) == 2 * _MARK_BYTES and set(mark) <= set("0123456789abcdef")):
        raise InvalidRequest("not a user's mark")


def may_be_of(volume_id: str, user: str) -> bool:
    """Whether it does not say that it is another user's."""
    _, separator, mark = volume_id.partition(_SEPARATOR)
    return not separator or mark == _mark_of(user)


def _mark_of(user: str) -> str:
    return hashlib.blake2b(user.encode(), digest_size=_MARK_BYTES, person=b"cloudai-user").hexdigest()
