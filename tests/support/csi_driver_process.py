"""A real `cloudai csi-driver`, and a cluster's calls to it over its socket."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import pytest

from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.mount_table import list_mounted
from cloudai_daemon.places import runtime_dir
from cloudai_daemon.process_identity import ProcessIdentity
from cloudai_daemon.registry import list_live, supervisor_dir
from cloudai_proto.csi.v1 import csi_pb2 as csi
from cloudai_proto.csi.v1 import csi_pb2_grpc
from support.mount_process import COMMAND_SECONDS_MAX, PROGRAM, wait_until

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


BLOCK = csi.VolumeCapability(
    block=csi.VolumeCapability.BlockVolume(), access_mode=MODE(mode=MODE.SINGLE_NODE_WRITER)
)


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """The status and the sentence of a call that is refused."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    error: Any = refused.value
    return error.code().name, error.details()


class CsiDriverProcess:
    """A context: one driver of one node. It may be started again, on the same state.

    Each call has a method here that takes what the tests vary; `call` sends any request.
    """

    def __init__(self, directory: Path, master: str, *arguments: str, within: Sequence[str] = ()) -> None:
        """`within`: words before the command, such as unshare(1)'s."""
        # Not below pytest's folders: a socket's path has at most 107 bytes.
        self._socket_dir = tempfile.TemporaryDirectory(prefix="csi-")
        self.socket_path = Path(self._socket_dir.name) / "csi.sock"
        self.state_dir = directory / "state"
        self.cache_dir = directory / "cache"
        self.log_path = directory / "driver.log"
        self.staging_root = directory / "staging"
        self.target_root = directory / "pods"
        self._arguments = [
            *["csi-driver", "--endpoint", f"unix://{self.socket_path}", "--master", master],
            *["-o", f"insecure,timeo=20,cache_dir={self.cache_dir}", "--state", str(self.state_dir)],
            *arguments,
        ]
        self._command_prefix = list(within)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_bytes_before = 0
        self._channel: grpc.Channel | None = None
        self._stubs: dict[str, Any] = {}

    def __enter__(self) -> CsiDriverProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            assert self.end(signal.SIGTERM) == 0
            assert not self.socket_path.exists()
            assert "Traceback" not in self.log_text(), self.log_text()
        finally:
            self._socket_dir.cleanup()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when it answers."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_bytes_before = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command_prefix, str(PROGRAM), *self._arguments], stderr=log
            )
        self._wait_for_log("are served at", self._process)
        self._channel = grpc.insecure_channel(f"unix://{self.socket_path}")
        self._stubs = {
            "Identity": csi_pb2_grpc.IdentityStub(self._channel),  # type: ignore[no-untyped-call]
            "Controller": csi_pb2_grpc.ControllerStub(self._channel),  # type: ignore[no-untyped-call]
            "Node": csi_pb2_grpc.NodeStub(self._channel),  # type: ignore[no-untyped-call]
        }
        self.call("Identity", csi.ProbeRequest(), wait_for_ready=True)

    def kill(self) -> None:
        """kill -9 of the driver alone. Its socket stays, and says nothing."""
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        os.kill(self._process.pid, number)
        return self._process.wait(COMMAND_SECONDS_MAX)

    def run_second(self) -> subprocess.CompletedProcess[str]:
        """Another one like this, to its end."""
        return subprocess.run(
            [str(PROGRAM), *self._arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )

    def kill_container(self) -> None:
        """kill -9 of the driver and of all that it has started, as when its container is killed."""
        self.kill()
        for process in self.mount_processes():
            process.send_signal(signal.SIGKILL)
            assert process.wait_gone(COMMAND_SECONDS_MAX)

    def mount_processes(self) -> list[ProcessIdentity]:
        """Supervisors, then mount daemons, of what is staged."""
        entries = [*list_live([supervisor_dir(runtime_dir())]), *list_live([runtime_dir()])]
        return [entry.process for entry in entries if entry.mount_point.is_relative_to(self.staging_root)]

    def daemon_of(self, volume_id: str) -> ProcessIdentity | None:
        """The mount daemon of a volume that lives."""
        entry = find_at(self.staging(volume_id))
        return entry.process if entry is not None else None

    def clear(self) -> None:
        """Nothing of it is left, whatever it has left."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        for process in self.mount_processes():
            process.send_signal(signal.SIGKILL)
            process.wait_gone(COMMAND_SECONDS_MAX)
        for tree in reversed(list_mounted()):
            if tree.mount_point.is_relative_to(self.staging_root) or tree.mount_point.is_relative_to(
                self.target_root
            ):
                subprocess.run(["umount", "--lazy", str(tree.mount_point)], capture_output=True, check=False)
        self._socket_dir.cleanup()

    def log_text(self) -> str:
        return self.log_path.read_text()

    def _wait_for_log(self, text: str, process: subprocess.Popen[bytes]) -> None:
        def is_there() -> bool:
            assert process.poll() is None, self.log_text()
            return text in self.log_path.read_bytes()[self._log_bytes_before :].decode()

        wait_until(is_there, f"{text!r} in the driver's log")

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

    def create(self, name: str, token: str, *, task: str = "training", **fields: Any) -> csi.Volume:
        request = csi.CreateVolumeRequest(
            **{
                "name": name,
                "volume_capabilities": [capability()],
                "parameters": {"task": task},
                "secrets": {"token": token},
                **fields,
            }
        )
        response: csi.CreateVolumeResponse = self.call("Controller", request)
        return response.volume

    def delete(self, volume_id: str, token: str) -> None:
        self.call("Controller", csi.DeleteVolumeRequest(volume_id=volume_id, secrets={"token": token}))

    def staging(self, volume_id: str) -> Path:
        return self.staging_root / volume_id / "globalmount"

    def target(self, pod: str) -> Path:
        return self.target_root / pod / "mount"

    def stage(self, volume_id: str, token: str, **wanted: Any) -> Path:
        """Where it is staged, as the kubelet would have it."""
        self.call("Node", self._staging_request(volume_id, token, **wanted))
        return self.staging(volume_id)

    def start_staging(self, volume_id: str, token: str) -> Any:
        """The same without waiting: gRPC's future."""
        request = self._staging_request(volume_id, token)
        return self._stubs["Node"].NodeStageVolume.future(request, timeout=COMMAND_SECONDS_MAX)

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
        request = csi.NodeUnstageVolumeRequest(
            volume_id=volume_id, staging_target_path=str(self.staging(volume_id))
        )
        self.call("Node", request, seconds=seconds)

    def publish(
        self,
        volume_id: str,
        pod: str,
        *,
        readonly: bool = False,
        access: csi.VolumeCapability | None = None,
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
        self.call("Node", request)
        return target

    def unpublish(self, volume_id: str, pod: str, *, seconds: float = COMMAND_SECONDS_MAX) -> None:
        request = csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(self.target(pod)))
        self.call("Node", request, seconds=seconds)
