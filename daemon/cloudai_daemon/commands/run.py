"""`cloudai run --task NAME [--image IMAGE] -- COMMAND...`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cloudai_daemon.commands.parameters import DURATION, PATH, say
from cloudai_daemon.container_run import ContainerPlan, plan_container, run_in_container
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.foreground_command import signals_held
from cloudai_daemon.mount_lookup import MountedPath, choose_mount, locate
from cloudai_daemon.registry import RegistryEntry
from cloudai_daemon.task_run import TaskRun, create_run, finish_run, join_run, run_command
from cloudai_daemon.upload_wait import UPLOAD_SECONDS_MAX_DEFAULT


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--task", default="", help="The task that the run belongs to; made if it is new.")
@click.option(
    "--join",
    "joined",
    type=PATH,
    help="In place of --task: an open run to take part in. Who made it seals it.",
)
@click.option("--image", default="", help="Run COMMAND in a container of this image, with podman or docker.")
@click.option("--user", default="", metavar="UID[:GID]", help="Who runs it in the container. [the image's]")
@click.option(
    "--container-option",
    "container_options",
    multiple=True,
    metavar="WORD",
    help="A word for `podman run` or `docker run`, as --container-option=--gpus=all. Repeatable.",
)
@click.option(
    "--mount", "directory", type=PATH, help="The mount to write to. [$CLOUDAI_MOUNT, or the only one]"
)
@click.option("--name", default="", help="The run's name, YYYY-MM-DD_HH-MM-SS. [now, UTC]")
@click.option("--task-id", default="", help="The run's unique id. [the master makes one]")
@click.option(
    "--upload-timeout",
    "upload_seconds_max",
    type=DURATION,
    default=UPLOAD_SECONDS_MAX_DEFAULT,
    show_default="1d",
    help="How long to wait for uploads once the command has ended.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run_task_command(
    task: str,
    joined: Path | None,
    image: str,
    user: str,
    container_options: tuple[str, ...],
    directory: Path | None,
    name: str,
    task_id: str,
    upload_seconds_max: float,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND as a new run of a task.

    What it writes to /output ($CLOUDAI_OUTPUT where /output cannot be had) streams to the master. When it
    has ended, uploads are waited for, the run is sealed with its exit status, and `cloudai run` exits with
    that status: 75 if the output is not durable or the run not sealed, 125 if no run could be made.

    With --image it runs in a container, whose own command is the default. Several containers may write to one run.
    """
    if (not task) == (joined is None):
        raise click.UsageError("one of --task and --join is needed")
    if joined is not None and (name or task_id or directory):
        raise click.UsageError(
            "--join names a run that is there: --name, --task-id and --mount do not go with it"
        )
    if not image and (user or container_options):
        raise click.UsageError("--user and --container-option are for --image")
    if not image and not command:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    entry, place = _find_place(directory, joined)
    plan = plan_container(entry.mount_point, image, user, container_options) if image else None
    run = join_run(place) if place else create_run(entry, task, name=name, task_id=task_id)
    # A signal between the command's end and the wait for its uploads is the wait's.
    with signals_held():
        exit_status = _run(run, plan, command)
        finish_run(run, exit_status, upload_seconds_max=upload_seconds_max)
    if run.is_joined:
        say(f"what was written to {run.directory} is durable; the run stays open")
    else:
        say(f"{run.directory} is sealed with exit status {exit_status}")
    sys.exit(exit_status)


def _find_place(directory: Path | None, joined: Path | None) -> tuple[RegistryEntry, MountedPath | None]:
    try:
        place = locate(joined) if joined is not None else None
        entry = place.entry if place else choose_mount(directory)
    except CommandFailed as error:
        raise CommandFailed(ExitCode.NOT_STARTED, error.line) from error
    return entry, place


def _run(run: TaskRun, plan: ContainerPlan | None, command: tuple[str, ...]) -> int:
    if plan is None:
        return run_command(run, command, say)
    return run_in_container(run, plan, command, say)
