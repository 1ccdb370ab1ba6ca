"""The composition root of the CSI driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cloudai_daemon.csi.controller import Controller, OnDelete
from cloudai_daemon.csi.errors import Handler
from cloudai_daemon.csi.identity import Identity
from cloudai_daemon.csi.keeper import Keeper
from cloudai_daemon.csi.node import Node
from cloudai_daemon.csi.publishing import VolumePublishing
from cloudai_daemon.csi.repairs import Repairs
from cloudai_daemon.csi.server import serve_csi
from cloudai_daemon.csi.staged_records import StagedRecords
from cloudai_daemon.csi.staging import VolumeStaging
from cloudai_daemon.csi.volume_mounts import MountChoices, VolumeMounts
from cloudai_daemon.csi.volume_runs import VolumeRuns
from cloudai_daemon.csi.volume_turns import VolumeTurns
from cloudai_daemon.options import MountOptions


def serve_driver(
    socket_path: Path,
    *,
    address: str,
    node_id: str | None,
    options: MountOptions,
    on_delete: str,
    drain_seconds: float,
    state_dir: Path,
    token_dir: Path,
    on_ready: Callable[[], None],
) -> None:
    """Serves until SIGTERM. Without a node id there is no Node service, and nothing is written to either directory.

    Raises OSError when the socket or a directory cannot be had.
    """
    runs = VolumeRuns(address, insecure=options.get("insecure", False), ca_file=options.get("ca_file"))
    turns = VolumeTurns()
    services: dict[str, Mapping[str, Handler]] = {"Identity": Identity(mounts=node_id is not None).handlers()}
    is_staged: Callable[[str], bool] = _is_nowhere
    keeper = None
    if node_id is not None:
        choices = MountChoices(address=address, options=options, drain_seconds=drain_seconds)
        records = StagedRecords(state_dir, token_dir)
        mounts = VolumeMounts(choices, records)
        staging = VolumeStaging(mounts, records, runs, turns)
        services["Node"] = Node(staging, VolumePublishing(mounts, records, turns), node_id).handlers()
        is_staged = staging.is_staged
        keeper = Keeper(Repairs(mounts, records, turns), mounts)
    services["Controller"] = Controller(runs, turns, OnDelete(on_delete), is_staged).handlers()

    def begin() -> None:
        if keeper is not None:
            keeper.start()
        on_ready()

    serve_csi(services, socket_path, begin)


def _is_nowhere(volume_id: str) -> bool:
    return False
