"""`cloudai install-helper`."""

from __future__ import annotations

from pathlib import Path

import click

from cloudai_daemon.commands.parameters import PATH
from cloudai_daemon.helper_installation import (
    HELPER_DIR,
    UNIT_DIR,
    install_helpers,
    install_units,
    remove_installed,
)


@click.command("install-helper")
@click.option("--systemd", is_flag=True, help="Write systemd's units too.")
@click.option("--remove", is_flag=True, help="Take all of it away again.")
@click.option(
    "--directory",
    "helper_dir",
    type=PATH,
    default=HELPER_DIR,
    show_default=True,
    help="Where the helpers go; mount(8) looks in /sbin alone.",
)
@click.option(
    "--unit-directory",
    "unit_dir",
    type=PATH,
    default=UNIT_DIR,
    show_default=True,
    help="Where the units go.",
)
def install_helper_command(systemd: bool, remove: bool, helper_dir: Path, unit_dir: Path) -> None:
    """Make `mount -t cloudai SOURCE DIR` and lines in /etc/fstab work, as root.

    Writes the small scripts /sbin/mount.cloudai and /sbin/mount.fuse.cloudai, which run this installation; with
    --systemd also cloudai-mount@.service, cloudai-master.service and cloudai-volume-plugin.service, which say in their
    first lines what they want.
    A file of that name which is not ours is left alone.
    """
    if remove:
        removed = remove_installed(helper_dir, unit_dir)
        click.echo("\n".join(f"removed {path}" for path in removed) or "nothing was installed")
        return
    written = install_helpers(helper_dir)
    if systemd:
        written += install_units(unit_dir)
    click.echo("\n".join(f"wrote {path}" for path in written))
