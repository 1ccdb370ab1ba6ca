"""`cloudai ls [PATH]`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from cloudai_daemon.commands.parameters import PATH, json_option, print_json, printable
from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_lookup import MountedPath, choose_mount, locate
from cloudai_fusefs.mount_control import RunStatus


@click.command("ls")
@click.argument("path", required=False, type=PATH)
@click.option("--mount", "directory", type=PATH, help="The mount. [$CLOUDAI_MOUNT, or the only one]")
@json_option
def ls_command(path: Path | None, directory: Path | None, as_json: bool) -> None:
    """List the runs below PATH with their state, or all runs of a mount."""
    place = locate(path) if path else MountedPath(entry=choose_mount(directory), path="")
    try:
        with ControlClient.of_living(place.entry) as client:
            runs = client.list_runs(place.path)
    except (DaemonUnreachable, RemoteError) as error:
        raise CommandFailed(ExitCode.FAILED, str(error)) from error
    if as_json:
        mount_point = str(place.entry.mount_point)
        print_json([{**asdict(run), "mount_point": mount_point} for run in runs])
        return
    for run in runs:
        created = datetime.fromtimestamp(run.created_at_ns / 1e9, UTC)
        state = _describe_state(run)
        click.echo(f"{state:<18}  {created:%Y-%m-%d %H:%M:%S}Z  {printable(run.path or '.')}")


def _describe_state(run: RunStatus) -> str:
    if not run.sealed:
        return "open"
    return f"sealed, status {run.exit_status}"
