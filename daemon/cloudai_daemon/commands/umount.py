"""`cloudai umount DIR`."""

from __future__ import annotations

from pathlib import Path

import click

from cloudai_daemon.commands.parameters import DURATION, PATH
from cloudai_daemon.mounting import resolve_mount_point
from cloudai_daemon.unmounting import UNMOUNT_WAIT_SECONDS_DEFAULT, unmount_in_order, unmount_now


@click.command("umount")
@click.argument("directory", metavar="DIR", type=PATH)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=DURATION,
    default=UNMOUNT_WAIT_SECONDS_DEFAULT,
    show_default="1h",
    help="How long to wait for uploads; then the mount stays and the exit status is 75.",
)
@click.option("--now", is_flag=True, help="Do not wait: what is staged is sent by the next mount.")
def umount_command(directory: Path, timeout_seconds: float, now: bool) -> None:
    """Wait until everything written below DIR is durable, then unmount it."""
    mount_point = resolve_mount_point(directory)
    if now:
        unmount_now(mount_point)
    else:
        unmount_in_order(mount_point, timeout_seconds=timeout_seconds)
