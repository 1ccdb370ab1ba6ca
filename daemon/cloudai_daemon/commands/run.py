"""`cloudai run --task NAME -- COMMAND...`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cloudai_daemon.commands.parameters import DURATION, PATH, say
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.foreground_command import signals_held
from cloudai_daemon.mount_lookup import choose_mount
from cloudai_daemon.task_run import create_run, finish_run, run_command
from cloudai_daemon.upload_wait import UPLOAD_SECONDS_MAX_DEFAULT


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--task", required=True, help="The task that the run belongs to; made if it is new.")
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
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_task_command(
    task: str,
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
    """
    try:
        entry = choose_mount(directory)
    except CommandFailed as error:
        raise CommandFailed(ExitCode.NOT_STARTED, error.line) from error
    run = create_run(entry, task, name=name, task_id=task_id)
    # A signal between the command's end and the wait for its uploads is the wait's.
    with signals_held():
        exit_status = run_command(run, command, say)
        finish_run(run, exit_status, upload_seconds_max=upload_seconds_max)
    say(f"{run.directory} is sealed with exit status {exit_status}")
    sys.exit(exit_status)
