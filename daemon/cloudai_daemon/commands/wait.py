"""`cloudai wait PATH...`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cloudai_daemon.commands.parameters import DURATION, PATH
from cloudai_daemon.mount_lookup import locate
from cloudai_daemon.upload_wait import UPLOAD_SECONDS_MAX_DEFAULT, wait_durable


@click.command("wait")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=DURATION,
    default=UPLOAD_SECONDS_MAX_DEFAULT,
    show_default="1d",
    help="How long to wait; then the exit status is 75.",
)
def wait_command(paths: tuple[Path, ...], timeout_seconds: float) -> None:
    """Return when everything at and below each PATH is durable."""
    deadline = time.monotonic() + timeout_seconds
    for place in [locate(path) for path in paths]:
        remaining_seconds = max(0.0, deadline - time.monotonic())
        wait_durable(place.entry.mount_point, place.path, timeout_seconds=remaining_seconds)
