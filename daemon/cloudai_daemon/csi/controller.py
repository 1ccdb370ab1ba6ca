"""The Controller service: volumes are made and deleted, which is to say runs made and sealed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from google.rpc import code_pb2 as codes

from cloudai_daemon.csi.call_deadline import CallDeadline
from cloudai_daemon.csi.errors import Handler, VolumeFailed, invalid
from cloudai_daemon.csi.requests import (
    RUN_CONTEXT,
    parse_all,
    parse_run,
    require_known_volume_id,
    require_name,
    require_token,
)
from cloudai_daemon.csi.volume_ids import volume_id_of
from cloudai_daemon.csi.volume_runs import VolumeRuns, path_of, task_id_of_name
from cloudai_daemon.csi.volume_turns import VolumeTurns
from cloudai_model.errors import InvalidRequest
from cloudai_model.names import check_managed_name
from cloudai_proto.csi.v1 import csi_pb2 as csi

TASK_PARAMETER: Final = "task"
# What the provisioner adds with --extra-create-metadata.
_METADATA_PREFIX: Final = "csi.storage.k8s.io/"
_CLAIM_PARAMETER: Final = "csi.storage.k8s.io/pvc/name"

_Rpc = csi.ControllerServiceCapability.RPC


class OnDelete(StrEnum):
    """What becomes of the run of a volume that is deleted. Its data stays."""

    SEAL = "seal"
    KEEP = "keep"


class Controller:
    """`is_staged`: whether a volume is on this machine still."""

    def __init__(
        self,
        runs: VolumeRuns,
        turns: VolumeTurns,
        on_delete: OnDelete,
        is_staged: Callable[[str], bool],
    ) -> None:
        self._runs = runs
        self._turns = turns
        self._on_delete = on_delete
        self._is_staged = is_staged

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "CreateVolume": self.create_volume,
            "DeleteVolume": self.delete_volume,
            "ValidateVolumeCapabilities": self.validate_volume_capabilities,
            "ControllerGetCapabilities": self.controller_get_capabilities,
        }

    def create_volume(
        self, request: csi.CreateVolumeRequest, deadline: CallDeadline
    ) -> csi.CreateVolumeResponse:
        name = require_name(request.name)
        parse_all(request.volume_capabilities)
        task = task_of(request.parameters)
        _check_capacity(request.capacity_range)
        if request.HasField("volume_content_source"):
            raise invalid("volume_content_source: a run begins empty: copy into it what is to be there")
        token = require_token(request.secrets)
        with self._turns.take(task_id_of_name(name), deadline):
            run = self._runs.create(token, name, task, deadline)
        volume = csi.Volume(
            volume_id=volume_id_of(run.task_id, run.user), volume_context={RUN_CONTEXT: path_of(run)}
        )
        return csi.CreateVolumeResponse(volume=volume)

    def delete_volume(
        self, request: csi.DeleteVolumeRequest, deadline: CallDeadline
    ) -> csi.DeleteVolumeResponse:
        try:
            volume_id = require_known_volume_id(request.volume_id)
        except VolumeFailed as error:
            if error.code == codes.NOT_FOUND:
                return csi.DeleteVolumeResponse()
            raise
        with self._turns.take(volume_id, deadline):
            if self._is_staged(volume_id):
                raise VolumeFailed(
                    codes.FAILED_PRECONDITION, f"{volume_id} is staged on this node: unstage it first"
                )
            token = require_token(request.secrets)
            if self._on_delete is OnDelete.SEAL:
                self._runs.seal(token, volume_id, deadline)
            else:
                self._runs.require_to_see(token, volume_id, deadline)
        return csi.DeleteVolumeResponse()

    def validate_volume_capabilities(
        self, request: csi.ValidateVolumeCapabilitiesRequest, deadline: CallDeadline
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        volume_id = require_known_volume_id(request.volume_id)
        if not request.volume_capabilities:
            raise invalid("volume_capabilities: is missing")
        user, task, _name = parse_run(request.volume_context) or ("", "", "")
        run = self._runs.find(require_token(request.secrets), volume_id, deadline, user, task)
        try:
            parse_all(request.volume_capabilities)
            if request.parameters:
                task_of(request.parameters)
            if request.volume_context.get(RUN_CONTEXT, path_of(run)) != path_of(run):
                raise invalid(f"volume_context: {RUN_CONTEXT} is {path_of(run)}")
        except VolumeFailed as error:
            return csi.ValidateVolumeCapabilitiesResponse(message=error.sentence)
        return csi.ValidateVolumeCapabilitiesResponse(
            confirmed=csi.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
            )
        )

    def controller_get_capabilities(
        self, request: csi.ControllerGetCapabilitiesRequest, _: CallDeadline
    ) -> csi.ControllerGetCapabilitiesResponse:
        response = csi.ControllerGetCapabilitiesResponse()
        for kind in (_Rpc.CREATE_DELETE_VOLUME, _Rpc.SINGLE_NODE_MULTI_WRITER):
            response.capabilities.add().rpc.type = kind
        return response


def task_of(parameters: Mapping[str, str]) -> str:
    """That a volume is to be a run of. Raises VolumeFailed (INVALID_ARGUMENT)."""
    unknown = sorted(
        name for name in parameters if name != TASK_PARAMETER and not name.startswith(_METADATA_PREFIX)
    )
    if unknown:
        raise invalid(f"parameters: {unknown[0][:80]!r} is not known: there is {TASK_PARAMETER}")
    task = parameters.get(TASK_PARAMETER) or parameters.get(_CLAIM_PARAMETER, "")
    if not task:
        raise invalid(
            f"parameters: {TASK_PARAMETER} is missing; with the provisioner's --extra-create-metadata it is the claim's"
        )
    try:
        check_managed_name(task)
    except InvalidRequest as error:
        raise invalid(f"parameters: {TASK_PARAMETER}: {error}") from error
    return task


def _check_capacity(given: csi.CapacityRange) -> None:
    """A run is as large as what is in it: any size is given, and none promised."""
    if given.required_bytes < 0 or given.limit_bytes < 0:
        raise invalid("capacity_range: is negative")
    if given.limit_bytes and given.required_bytes > given.limit_bytes:
        raise VolumeFailed(codes.OUT_OF_RANGE, "capacity_range: more is required than is the limit")
