"""The token that a container gets: good for its run alone, in a file that only its user can read.

In a file and not in the environment, which `podman inspect` shows to whoever may ask. A program in the container finds
it by $CLOUDAI_TOKEN_FILE, as `cloudai mount` there does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cloudai_daemon.container_users import ContainerUser
from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
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

    None where there can be no token, as with a master of an older version; `say` then tells a person why. Raises
    CommandFailed (125) where the file cannot be made.
    """
    token = _ask_for_token(run, say)
    if token is None:
        yield None
        return
    path = runtime_dir() / "tokens" / name
    try:
        try:
            _write_token(path, token, user)
        except OSError as error:
            raise CommandFailed(ExitCode.NOT_STARTED, f"{path}: {error.strerror}") from error
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def _write_token(path: Path, token: str, user: ContainerUser | None) -> None:
    make_private_dir(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{token}\n")
        if user is not None:
            os.fchown(file.fileno(), user.uid, user.gid)


def _ask_for_token(run: TaskRun, say: Callable[[str], None]) -> str | None:
    try:
        with ControlClient(require_alive(run.mount_point)) as client:
            return client.create_run_token(run.place.path, valid_seconds=_VALID_SECONDS)
    except (RemoteError, DaemonUnreachable) as error:
        say(f"the container gets no token of its own: {error}")
        return None
