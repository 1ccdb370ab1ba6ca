"""`cloudai seal PATH`."""

from __future__ import annotations

from pathlib import Path

import click

from cloudai_daemon.commands.parameters import DURATION, PATH
from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_lookup import locate
from cloudai_daemon.upload_wait import UPLOAD_SECONDS_MAX_DEFAULT, wait_durable


@click.command("seal")
@click.argument("path", type=PATH)
@click.option("--exit-status", type=click.IntRange(0, 255), default=0, show_default=True)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=DURATION,
    default=UPLOAD_SECONDS_MAX_DEFAULT,
    show_default="1d",
    help="How long to wait for uploads; then nothing is sealed and the exit status is 75.",
)
def seal_command(path: Path, exit_status: int, timeout_seconds: float) -> None:
    """Seal the run at PATH once everything in it is durable. A sealed run never changes again."""
    place = locate(path)
    wait_durable(place.entry.mount_point, place.path, timeout_seconds=timeout_seconds)
    try:
        with ControlClient.of_living(place.entry) as client:
            client.call("seal_run", {"path": place.path, "exit_status": exit_status})
    except (DaemonUnreachable, RemoteError) as error:
        raise CommandFailed(ExitCode.FAILED, f"{path}: not sealed: {error}") from error
