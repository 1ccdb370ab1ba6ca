"""The token that a container gets: good for its run alone, in a file that only its user can read.

In a file and not in the environment, which `podman inspect` shows to whoever may ask. A program in the container finds
it by $CLOUDAI_TOKEN_FILE, as `cloudai mount` there does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cloudai_daemon.container_users import ContainerUser
from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError
from cloudai_daemon.mount_lookup import require_alive
from cloudai_daemon.places import make_private_dir, runtime_dir
from cloudai_daemon.task_run import TaskRun

TOKEN_FILE: Final = Path("/run/cloudai/token")
"""In the container."""

# A month of training; the master makes it no longer than the mount's own token is valid.
_VALID_SECONDS: Final = 30 * 86_400


@contextmanager
def run_token_file(
    run: TaskRun, user: ContainerUser | None, name: str, say: Callable[[str], None]
) -> Iterator[Path | None]:
    """A file of this machine with a new token of the run, gone afterwards.

    None where there can be no token, as with a master of an older version; `say` then tells a person why.
    """
    token = _ask_for_token(run, say)
    if token is None:
        yield None
        return
    directory = runtime_dir() / "tokens"
    make_private_dir(directory)
    path = directory / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{token}\n")
            if user is not None:
                os.fchown(file.fileno(), user.uid, user.gid)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _ask_for_token(run: TaskRun, say: Callable[[str], None]) -> str | None:
    try:
        with ControlClient(require_alive(run.mount_point)) as client:
            return client.create_run_token(run.place.path, valid_seconds=_VALID_SECONDS)
    except (RemoteError, DaemonUnreachable) as error:
        say(f"the container gets no token of its own: {error}")
        return None
