"""`cloudai volume-plugin`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import click
import trio

from cloudai_daemon.commands.parameters import PATH, say
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_lookup import choose_mount
from cloudai_daemon.mounting import resolve_mount_point
from cloudai_daemon.places import is_root, runtime_dir, state_home
from cloudai_daemon.volume_driver import VolumeDriver
from cloudai_daemon.volume_records import VolumeRecords

SOCKET_DEFAULT: Final = Path("/run/docker/plugins/cloudai.sock")
"""Where docker looks for a driver called `cloudai`."""


@click.command("volume-plugin")
@click.option(
    "--mount",
    "directory",
    type=PATH,
    envvar="CLOUDAI_MOUNT",
    help="The mount whose runs are volumes. [$CLOUDAI_MOUNT, or the only one]",
)
@click.option(
    "--socket",
    "socket_path",
    type=PATH,
    default=SOCKET_DEFAULT,
    show_default=True,
    help="Where engines ask.",
)
@click.option("--state", "state_dir", type=PATH, help="Where volumes are noted. [/var/lib/cloudai/volumes]")
def volume_plugin_command(directory: Path | None, socket_path: Path, state_dir: Path | None) -> None:
    """Serve runs as volumes to docker and podman, until SIGTERM.

    \b
    podman volume create --driver cloudai -o task=TASK NAME
        -o run=YYYY-MM-DD_HH-MM-SS    this run, made if it is new [a new one]
        -o seal=on-remove             sealed when the volume is removed [never]
        -o uid=UID[:GID]              given to that user [root]
        -o ro                         to be read only

    podman has to be told of the socket in containers.conf: [engine.volume_plugins] cloudai = "SOCKET".
    """
    if not is_root():
        raise CommandFailed(ExitCode.FAILED, "volume-plugin serves the containers of root: run it as root")
    # One that is named may be mounted later.
    mount_point = choose_mount(None).mount_point if directory is None else resolve_mount_point(directory)
    # Imported here: h11 and the rest are for no other command.
    from cloudai_daemon.volume_plugin import serve_volume_plugin

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    driver = VolumeDriver(
        mount_point, VolumeRecords(state_dir or state_home() / "volumes"), runtime_dir() / "volumes"
    )
    trio.run(
        serve_volume_plugin,
        driver,
        socket_path,
        lambda: say(f"volumes of {mount_point} are served at {socket_path}"),
    )
