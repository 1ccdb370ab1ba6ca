"""`cloudai run`: one run around one command.

Makes the run, gives the command its directory, waits until what it wrote is durable, seals the run with
the exit status. Whatever happens after the command has started, what it wrote stays staged or durable.
"""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.foreground_command import CommandNotStarted, check_command, run_in_foreground
from cloudai_daemon.mount_lookup import MountedPath, require_alive
from cloudai_daemon.output_namespace import (
    OUTPUT_DIR,
    NamespaceRefused,
    prepare_output_namespace,
    wrap_in_namespace,
)
from cloudai_daemon.registry import RegistryEntry
from cloudai_daemon.upload_wait import NotDurable, wait_durable
from cloudai_fusefs.mount_control import RunPlace
from cloudai_model.errors import MasterUnavailable

# Between two attempts at sealing while the master is away.
_SEAL_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class TaskRun:
    """An open run that a command writes to."""

    task: str
    place: RunPlace
    mount_point: Path
    source: str
    """Of a mount of this run alone: host:port/user/task/run."""
    is_joined: bool = False
    """Whether somebody else made it, and seals it."""

    @property
    def directory(self) -> Path:
        return self.mount_point / self.place.path

    def environment(self, output_dir: Path) -> dict[str, str]:
        return {**os.environ, **self.variables(output_dir)}

    def variables(self, output_dir: Path) -> dict[str, str]:
        """What tells a command where it is."""
        return {
            "CLOUDAI_OUTPUT": str(output_dir),
            "CLOUDAI_TASK": self.task,
            "CLOUDAI_TASK_ID": self.place.task_id,
            "CLOUDAI_RUN": self.place.path,
        }


def create_run(entry: RegistryEntry, task: str, *, name: str = "", task_id: str = "") -> TaskRun:
    """Raises CommandFailed (125): nothing was started."""
    try:
        with ControlClient.of_living(entry) as client:
            place = client.create_run(task, name=name, task_id=task_id)
    except (DaemonUnreachable, RemoteError) as error:
        raise CommandFailed(ExitCode.NOT_STARTED, f"no run of {task!r} could be made: {error}") from error
    return TaskRun(
        task=task, place=place, mount_point=entry.mount_point, source=_source_of(entry, place.path)
    )


def join_run(place: MountedPath) -> TaskRun:
    """An open run that is there. Raises CommandFailed (125): nothing was started."""
    try:
        with ControlClient.of_living(place.entry) as client:
            found = client.list_runs(place.path)
    except (DaemonUnreachable, RemoteError) as error:
        raise CommandFailed(ExitCode.NOT_STARTED, str(error)) from error
    directory = place.entry.mount_point / place.path
    run = next((run for run in found if run.path == place.path), None)
    if run is None:
        raise CommandFailed(ExitCode.NOT_STARTED, f"{directory}: not a run")
    if run.sealed:
        raise CommandFailed(ExitCode.NOT_STARTED, f"{directory}: the run is sealed")
    source = _source_of(place.entry, run.path)
    return TaskRun(
        task=source.split("/")[2],
        place=RunPlace(path=run.path, task_id=run.task_id),
        mount_point=place.entry.mount_point,
        source=source,
        is_joined=True,
    )


def _source_of(entry: RegistryEntry, path: str) -> str:
    """Whatever part of the tree is mounted, host:port/user/task/run."""
    return "/".join(part for part in (entry.source, path) if part)


def run_command(run: TaskRun, command: Sequence[str], say: Callable[[str], None]) -> int:
    """Runs the command with the run's directory as its output; its exit status, as a shell has it.

    A command that cannot be executed is said so and gives 126 or 127. `say` prints a line for a person.
    """
    try:
        check_command(command)
        try:
            prepare_output_namespace(run.directory)
        except NamespaceRefused as error:
            say(f"no {OUTPUT_DIR} here ({error}): the command finds its directory in $CLOUDAI_OUTPUT")
            return run_in_foreground(command, run.environment(run.directory))
        return run_in_foreground(wrap_in_namespace(command, run.directory), run.environment(OUTPUT_DIR))
    except CommandNotStarted as error:
        say(str(error))
        return error.exit_status


def finish_run(run: TaskRun, exit_status: int, *, upload_seconds_max: float) -> None:
    """Returns when all that was written is durable and the run, unless it was joined, is sealed with the status.

    Raises NotDurable (75) that says how to go on: the time is over, a file needs a person, the mount
    daemon is gone, or a signal interrupted the wait.
    """
    deadline = time.monotonic() + upload_seconds_max
    try:
        with _raising_interrupted():
            wait_durable(run.mount_point, run.place.path, timeout_seconds=upload_seconds_max)
            if not run.is_joined:
                _seal(run, exit_status, deadline)
    except _Interrupted as error:
        raise NotDurable(_how_to_go_on(run, exit_status, "interrupted")) from error
    except NotDurable as error:
        raise NotDurable(_how_to_go_on(run, exit_status, error.line)) from error


def _seal(run: TaskRun, exit_status: int, deadline: float) -> None:
    params = {"path": run.place.path, "exit_status": exit_status}
    while True:
        remaining_seconds = max(1.0, deadline - time.monotonic())
        try:
            with ControlClient(require_alive(run.mount_point)) as client:
                client.call("seal_run", params, remaining_seconds)
                return
        except RemoteError as error:
            if not error.is_a(MasterUnavailable) or time.monotonic() >= deadline:
                raise NotDurable(f"{run.directory}: not sealed: {error}") from error
        except DaemonUnreachable as error:
            raise NotDurable(f"{run.directory}: not sealed: {error}") from error
        time.sleep(_SEAL_RETRY_SECONDS)


def _how_to_go_on(run: TaskRun, exit_status: int, why: str) -> str:
    directory = shlex.quote(str(run.directory))
    seal = f"cloudai seal {directory} --exit-status {exit_status}"
    command = f"cloudai wait {directory}" if run.is_joined else seal
    return f"{why}. Nothing is lost: what is not durable is staged on this machine. Go on with `{command}`"


class _Interrupted(Exception):
    """A signal ended the wait."""


@contextmanager
def _raising_interrupted() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise _Interrupted within the context, one that was held before it too, and
    mean what they did after it.
    """

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        raise _Interrupted(signal.Signals(signal_number).name)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
