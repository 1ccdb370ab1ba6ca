"""`cloudai install-helper`."""

from __future__ import annotations

from pathlib import Path

import click

from cloudai_daemon.commands.parameters import PATH
from cloudai_daemon.helper_installation import HELPER_DIR, install_helpers, remove_helpers


@click.command("install-helper")
@click.option("--remove", is_flag=True, help="Take them away again.")
@click.option(
    "--directory",
    type=PATH,
    default=HELPER_DIR,
    show_default=True,
    help="Where the helpers go; mount(8) looks in /sbin alone.",
)
def install_helper_command(remove: bool, directory: Path) -> None:
    """Make `mount -t cloudai SOURCE DIR` and lines in /etc/fstab work, as root.

    Writes the small scripts /sbin/mount.cloudai and /sbin/mount.fuse.cloudai, which run this installation. A file
    of that name which is not ours is left alone.
    """
    paths = remove_helpers(directory) if remove else install_helpers(directory)
    verb = "removed" if remove else "wrote"
    click.echo("\n".join(f"{verb} {path}" for path in paths) or "nothing was installed")
