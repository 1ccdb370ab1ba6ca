"""`cloudai csi-driver`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import click

from cloudai_daemon.commands.parameters import DURATION, MOUNT_OPTIONS, PATH, say
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_source import is_loopback, parse_source
from cloudai_daemon.option_sources import gather_options
from cloudai_daemon.options import MountOptions
from cloudai_daemon.places import is_root, runtime_dir, state_home
from cloudai_daemon.unix_sockets import SOCKET_PATH_BYTES_MAX

ENDPOINT_DEFAULT: Final = "unix:///csi/csi.sock"
# Below the two minutes that the kubelet waits for an answer.
_DRAIN_SECONDS_DEFAULT: Final = 90.0
# What is each volume's own.
_OWN_FIELDS: Final = {"state_dir": "state_dir=", "read_only": "ro", "metrics_address": "metrics="}


@click.command("csi-driver")
@click.option(
    "--endpoint",
    default=ENDPOINT_DEFAULT,
    envvar="CSI_ENDPOINT",
    show_default=True,
    help="The socket to serve. [$CSI_ENDPOINT]",
)
@click.option("--master", "source", required=True, metavar="HOST[:PORT]", help="Whose runs are volumes.")
@click.option(
    "--node-id",
    envvar="CSI_NODE_ID",
    help="This node's name; without it no volumes are mounted, only made and deleted. [$CSI_NODE_ID]",
)
@click.option(
    "-o",
    "option_words",
    type=MOUNT_OPTIONS,
    metavar="OPTIONS",
    multiple=True,
    help="Mount options of all volumes, as of `cloudai mount`.",
)
@click.option(
    "--on-delete",
    type=click.Choice(["seal", "keep"]),
    default="seal",
    show_default=True,
    help="What becomes of the run of a volume that is deleted; its files stay.",
)
@click.option(
    "--drain",
    "drain_seconds",
    type=DURATION,
    default=_DRAIN_SECONDS_DEFAULT,
    show_default="90",
    help="How long a request waits for uploads before it is to be repeated.",
)
@click.option(
    "--state",
    "state_dir",
    type=PATH,
    help="What is written and not yet at the master; on a disk. [/var/lib/cloudai/csi]",
)
def csi_driver_command(
    endpoint: str,
    source: str,
    node_id: str | None,
    option_words: tuple[str, ...],
    on_delete: str,
    drain_seconds: float,
    state_dir: Path | None,
) -> None:
    """Serve runs as volumes to Kubernetes (CSI), until SIGTERM.

    A token comes with each call, as the secret `token`, never from here. Mounts are processes of their own: they
    outlive this one, which finds them when it is started again.
    """
    socket_path = _socket_of(endpoint)
    address = _address_of(source)
    options = _check_options(gather_options(",".join(option_words)), address)
    if node_id is not None and not is_root():
        raise CommandFailed(ExitCode.FAILED, "csi-driver mounts for the containers of root: run it as root")
    # A call is to bring its own.
    os.environ.pop("CLOUDAI_TOKEN", None)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # Imported here: gRPC is for no other command.
    from cloudai_daemon.csi.driver import serve_driver

    serve_driver(
        socket_path,
        address=address,
        node_id=node_id,
        options=options,
        on_delete=on_delete,
        drain_seconds=drain_seconds,
        state_dir=(state_dir or state_home() / "csi").absolute(),
        token_dir=runtime_dir() / "csi",
        on_ready=lambda: say(f"volumes of {address} are served at {socket_path}"),
    )
    # Without a wait for calls that were given up: their threads may wait for uploads for long. All that is under way is
    # in the records, as after kill -9.
    logging.shutdown()
    os._exit(ExitCode.OK)


def _socket_of(endpoint: str) -> Path:
    path = Path(endpoint.removeprefix("unix://").removeprefix("unix:"))
    if not path.is_absolute() or len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise CommandFailed(
            ExitCode.USAGE,
            f"--endpoint is unix:// and the absolute path of a socket, at most {SOCKET_PATH_BYTES_MAX} bytes",
        )
    return path


def _address_of(source: str) -> str:
    address, _, path = parse_source(source).partition("/")
    if path:
        raise CommandFailed(
            ExitCode.USAGE, f"--master is HOST[:PORT]: which run is mounted, {path} is not asked"
        )
    return address


def _check_options(options: MountOptions, address: str) -> MountOptions:
    for field, word in _OWN_FIELDS.items():
        if field in options:
            raise CommandFailed(ExitCode.USAGE, f"mount option {word} is each volume's own: leave it out")
    if options.get("insecure") and not is_loopback(address):
        raise CommandFailed(
            ExitCode.USAGE, f"insecure is for a master on this machine only: {address} is not on the loopback"
        )
    # A token that is configured for this machine's mounts is nobody's here.
    options.pop("token_file", None)
    return options
