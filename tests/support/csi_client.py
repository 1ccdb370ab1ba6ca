"""A cluster's calls to a CSI driver over its socket, and the places that its kubelet would choose."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloudai_daemon.mount_table import list_mounted
from cloudai_daemon.places import runtime_dir
from cloudai_daemon.process_identity import ProcessIdentity
from cloudai_daemon.registry import list_live, supervisor_dir
from cloudai_proto.csi.v1 import csi_pb2 as csi
from cloudai_proto.csi.v1 import csi_pb2_grpc
from support.mount_daemons import find_daemon
from support.mount_process import COMMAND_SECONDS_MAX, wait_until

MODE = csi.VolumeCapability.AccessMode


def capability(
    mode: csi.VolumeCapability.AccessMode.Mode = MODE.MULTI_NODE_MULTI_WRITER,
    flags: tuple[str, ...] = (),
    fs_type: str = "",
) -> csi.VolumeCapability:
    return csi.VolumeCapability(
        mount=csi.VolumeCapability.MountVolume(fs_type=fs_type, mount_flags=flags),
        access_mode=MODE(mode=mode),
    )


_RECONNECT_AT_ONCE = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))

BLOCK = csi.VolumeCapability(
    block=csi.VolumeCapability.BlockVolume(), access_mode=MODE(mode=MODE.SINGLE_NODE_WRITER)
)


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """The status and the sentence of a call that is refused."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    error: Any = refused.value
    return error.code().name, error.details()


def repeat(call: Callable[[], object]) -> None:
    """As a cluster does, until it is carried out."""

    def is_done() -> bool:
        try:
            call()
        except grpc.RpcError as error:
            refused: Any = error
            if refused.code().name not in ("ABORTED", "DEADLINE_EXCEEDED", "UNAVAILABLE"):
                raise
            return False
        return True

    wait_until(is_done, "a call that is carried out", seconds_max=COMMAND_SECONDS_MAX)


@dataclass(frozen=True)
class PublishedVolume:
    """One that is staged, and published for one pod."""

    volume_id: str
    run: str
    """user/task/run"""
    staging: Path
    target: Path


class CsiClient:
    """Of one driver. Each call has a method here that takes what the tests vary; `call` sends any request."""

    def __init__(self, socket_path: Path, directory: Path) -> None:
        self.socket_path = socket_path
        self.staging_root = directory / "staging"
        self.target_root = directory / "pods"
        self._channel: grpc.Channel | None = None
        self._stubs: dict[str, Any] = {}

    def connect(self) -> None:
        """Returns when the driver answers."""
        self._channel = grpc.insecure_channel(f"unix://{self.socket_path}", options=_RECONNECT_AT_ONCE)
        self._stubs = {
            "Identity": csi_pb2_grpc.IdentityStub(self._channel),  # type: ignore[no-untyped-call]
            "Controller": csi_pb2_grpc.ControllerStub(self._channel),  # type: ignore[no-untyped-call]
            "Node": csi_pb2_grpc.NodeStub(self._channel),  # type: ignore[no-untyped-call]
        }
        self.call("Identity", csi.ProbeRequest(), wait_for_ready=True)

    def disconnect(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def call(
        self,
        service: str,
        request: Any,
        *,
        seconds: float = COMMAND_SECONDS_MAX,
        wait_for_ready: bool = False,
    ) -> Any:
        """The response to a request, whose type says which call it is. Raises grpc.RpcError."""
        name = type(request).__name__.removesuffix("Request")
        return getattr(self._stubs[service], name)(request, timeout=seconds, wait_for_ready=wait_for_ready)

    def create(
        self,
        name: str,
        token: str,
        *,
        task: str = "training",
        seconds: float = COMMAND_SECONDS_MAX,
        **fields: Any,
    ) -> csi.Volume:
        request = csi.CreateVolumeRequest(
            **{
                "name": name,
                "volume_capabilities": [capability()],
                "parameters": {"task": task},
                "secrets": {"token": token},
                **fields,
            }
        )
        response: csi.CreateVolumeResponse = self.call("Controller", request, seconds=seconds)
        return response.volume

    def delete(self, volume_id: str, token: str, *, seconds: float = COMMAND_SECONDS_MAX) -> None:
        request = csi.DeleteVolumeRequest(volume_id=volume_id, secrets={"token": token})
        self.call("Controller", request, seconds=seconds)

    def staging(self, volume_id: str) -> Path:
        return self.staging_root / volume_id / "globalmount"

    def target(self, pod: str) -> Path:
        return self.target_root / pod / "mount"

    def stage(
        self, volume_id: str, token: str, *, seconds: float = COMMAND_SECONDS_MAX, **wanted: Any
    ) -> Path:
        """Where it is staged, as the kubelet would have it."""
        self.call("Node", self._staging_request(volume_id, token, **wanted), seconds=seconds)
        return self.staging(volume_id)

    def start_staging(self, volume_id: str, token: str, *, seconds: float = COMMAND_SECONDS_MAX) -> Any:
        """The same without waiting: gRPC's future."""
        request = self._staging_request(volume_id, token)
        return self._stubs["Node"].NodeStageVolume.future(request, timeout=seconds)

    def _staging_request(
        self,
        volume_id: str,
        token: str,
        *,
        context: Mapping[str, str] | None = None,
        access: csi.VolumeCapability | None = None,
        **fields: Any,
    ) -> csi.NodeStageVolumeRequest:
        staging = self.staging(volume_id)
        if "staging_target_path" not in fields:
            staging.mkdir(parents=True, exist_ok=True)
        return csi.NodeStageVolumeRequest(
            **{
                "volume_id": volume_id,
                "staging_target_path": str(staging),
                "volume_capability": access or capability(),
                "secrets": {"token": token},
                "volume_context": context or {},
                **fields,
            }
        )

    def unstage(self, volume_id: str, *, seconds: float = COMMAND_SECONDS_MAX) -> None:
        self.call("Node", self._unstaging_request(volume_id), seconds=seconds)

    def start_unstaging(self, volume_id: str) -> Any:
        """The same without waiting: gRPC's future."""
        request = self._unstaging_request(volume_id)
        return self._stubs["Node"].NodeUnstageVolume.future(request, timeout=COMMAND_SECONDS_MAX)

    def _unstaging_request(self, volume_id: str) -> csi.NodeUnstageVolumeRequest:
        return csi.NodeUnstageVolumeRequest(
            volume_id=volume_id, staging_target_path=str(self.staging(volume_id))
        )

    def publish(
        self,
        volume_id: str,
        pod: str,
        *,
        readonly: bool = False,
        access: csi.VolumeCapability | None = None,
        seconds: float = COMMAND_SECONDS_MAX,
    ) -> Path:
        """Where it is published: the kubelet makes the directory above."""
        target = self.target(pod)
        target.parent.mkdir(parents=True, exist_ok=True)
        request = csi.NodePublishVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(self.staging(volume_id)),
            target_path=str(target),
            volume_capability=access or capability(),
            readonly=readonly,
        )
        self.call("Node", request, seconds=seconds)
        return target

    def unpublish(self, volume_id: str, pod: str, *, seconds: float = COMMAND_SECONDS_MAX) -> None:
        request = csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(self.target(pod)))
        self.call("Node", request, seconds=seconds)

    def start_unpublishing(self, volume_id: str, pod: str) -> Any:
        """The same without waiting: gRPC's future."""
        request = csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(self.target(pod)))
        return self._stubs["Node"].NodeUnpublishVolume.future(request, timeout=COMMAND_SECONDS_MAX)

    def stage_new(self, name: str, token: str, **wanted: Any) -> csi.Volume:
        """A volume of this name, made and staged."""
        volume = self.create(name, token)
        self.stage(volume.volume_id, token, **wanted)
        return volume

    def publish_new(self, token: str, name: str = "pvc", pod: str = "pod") -> PublishedVolume:
        """A volume of this name: made, staged and published."""
        volume = self.stage_new(name, token)
        return PublishedVolume(
            volume_id=volume.volume_id,
            run=volume.volume_context["run"],
            staging=self.staging(volume.volume_id),
            target=self.publish(volume.volume_id, pod),
        )

    def mount_processes(self) -> list[ProcessIdentity]:
        """Supervisors, then mount daemons, of what is staged."""
        entries = [*list_live([supervisor_dir(runtime_dir())]), *list_live([runtime_dir()])]
        return [entry.process for entry in entries if entry.mount_point.is_relative_to(self.staging_root)]

    def daemon_of(self, volume_id: str) -> ProcessIdentity | None:
        """The mount daemon of a volume that lives."""
        return find_daemon(self.staging(volume_id))

    def clear(self) -> None:
        """Nothing is left of what was staged and published, whatever became of the driver."""
        self.disconnect()
        for process in self.mount_processes():
            process.send_signal(signal.SIGKILL)
            process.wait_gone(COMMAND_SECONDS_MAX)
        for tree in reversed(list_mounted()):
            if any(tree.mount_point.is_relative_to(root) for root in (self.staging_root, self.target_root)):
                subprocess.run(["umount", "--lazy", str(tree.mount_point)], capture_output=True, check=False)
