"""`cloudai umount DIR`."""

from __future__ import annotations

from pathlib import Path

import click

from cloudai_daemon.commands.parameters import DURATION, PATH, json_option, print_json
from cloudai_daemon.commands.status import print_pending_files
from cloudai_daemon.control_protocol import StatusReport
from cloudai_daemon.mounting import resolve_mount_point
from cloudai_daemon.unmounting import drain_and_unmount
from cloudai_daemon.upload_wait import describe_backlog, left_unmounted


@click.command("umount")
@click.argument("directory", metavar="DIR", type=PATH)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=DURATION,
    default=None,
    show_default="the mount's drain=, or 1h",
    help="How long to wait for uploads; then it is unmounted all the same, and the exit status is 75.",
)
@click.option("--now", is_flag=True, help="Do not wait: what is staged is sent by the next mount.")
@json_option
def umount_command(directory: Path, timeout_seconds: float | None, now: bool, as_json: bool) -> None:
    """Wait until everything written below DIR is durable, then unmount it.

    What is not durable when the time is over, or needs a person, stays staged on this machine: it is named, the
    exit status is 75, and the next mount with the same state directory goes on with it.
    """
    mount_point = resolve_mount_point(directory)
    left = drain_and_unmount(mount_point, timeout_seconds=0.0 if now else timeout_seconds)
    if as_json:
        print_json(_left_as_json(mount_point, left))
    elif left is not None:
        print_pending_files(left)
    if left is not None and left.pending_count and not now:
        raise left_unmounted(describe_backlog(mount_point, left))


def _left_as_json(mount_point: Path, left: StatusReport | None) -> dict[str, object]:
    report = left.to_json() if left is not None else {"pending": [], "pending_count": 0, "failed_count": 0}
    names = ("pending_count", "failed_count", "pending_bytes", "uploaded_bytes", "pending")
    return {"mount_point": str(mount_point), **{name: report.get(name, 0) for name in names}}
