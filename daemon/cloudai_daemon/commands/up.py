"""`cloudai up` and `cloudai down`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cloudai_daemon.commands.parameters import DURATION, PATH, json_option, print_json
from cloudai_daemon.local_service import LocalService
from cloudai_daemon.places import state_home
from cloudai_fusefs.mount_control import UNMOUNT_DRAIN_SECONDS_DEFAULT

_state_option = click.option(
    "--state",
    "state_dir",
    type=PATH,
    default=state_home,
    show_default="/var/lib/cloudai as root, else ~/.local/state/cloudai",
    help="The folder that holds everything.",
)


@click.command("up")
@click.option("--mount", "directory", type=PATH, default=Path("/mnt/cloudai"), show_default=True)
@_state_option
@click.option("--user", default="", help="Whose tree it is. [your login name]")
@json_option
def up_command(directory: Path, state_dir: Path, user: str, as_json: bool) -> None:
    """Start a master on this machine and mount it; what runs already is left alone."""
    report = LocalService(state_dir).up(directory, user)
    if as_json:
        print_json(asdict(report))
        return
    for name, is_new, place in (
        ("master", report.master_started, f"{report.address}, pid {report.master_pid}, data in {state_dir}"),
        ("mount", report.mount_started, f"{report.mount_point}, pid {report.mount_pid}"),
    ):
        click.echo(f"{name}  {'started' if is_new else 'running'}  {place}")


@click.command("down")
@_state_option
@click.option(
    "--timeout",
    "timeout_seconds",
    type=DURATION,
    default=UNMOUNT_DRAIN_SECONDS_DEFAULT,
    show_default="1h",
    help="How long to wait for uploads; then everything stays up and the exit status is 75.",
)
@json_option
def down_command(state_dir: Path, timeout_seconds: float, as_json: bool) -> None:
    """Wait for uploads, unmount, stop the master. The data stays."""
    stopped = LocalService(state_dir).down(timeout_seconds=timeout_seconds)
    if as_json:
        print_json({"stopped": stopped})
    else:
        click.echo("\n".join(stopped) or "nothing was running")
