"""The Node service: requests are checked here, and carried out by VolumeStaging and VolumePublishing."""

from __future__ import annotations

from collections.abc import Mapping

from google.rpc import code_pb2 as codes

from cloudai_daemon.csi.call_deadline import CallDeadline
from cloudai_daemon.csi.errors import Handler, VolumeFailed, invalid
from cloudai_daemon.csi.publishing import VolumePublishing
from cloudai_daemon.csi.requests import (
    parse_access,
    parse_run,
    require_known_volume_id,
    require_place,
    require_token,
)
from cloudai_daemon.csi.staging import VolumeStaging
from cloudai_proto.csi.v1 import csi_pb2 as csi

_Rpc = csi.NodeServiceCapability.RPC


class Node:
    """The CSI's word for a machine that has volumes."""

    def __init__(self, staging: VolumeStaging, publishing: VolumePublishing, node_id: str) -> None:
        self._staging = staging
        self._publishing = publishing
        self._node_id = node_id

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "NodeStageVolume": self.node_stage_volume,
            "NodeUnstageVolume": self.node_unstage_volume,
            "NodePublishVolume": self.node_publish_volume,
            "NodeUnpublishVolume": self.node_unpublish_volume,
            "NodeGetVolumeStats": self.node_get_volume_stats,
            "NodeGetCapabilities": self.node_get_capabilities,
            "NodeGetInfo": self.node_get_info,
        }

    def node_stage_volume(
        self, request: csi.NodeStageVolumeRequest, deadline: CallDeadline
    ) -> csi.NodeStageVolumeResponse:
        volume_id = require_known_volume_id(request.volume_id)
        staging = require_place(request.staging_target_path, "staging_target_path")
        access = parse_access(request.volume_capability)
        context = parse_run(request.volume_context)
        token = require_token(request.secrets)
        self._staging.stage(volume_id, staging, access, token, context, deadline)
        return csi.NodeStageVolumeResponse()

    def node_unstage_volume(
        self, request: csi.NodeUnstageVolumeRequest, deadline: CallDeadline
    ) -> csi.NodeUnstageVolumeResponse:
        volume_id = require_known_volume_id(request.volume_id)
        staging = require_place(request.staging_target_path, "staging_target_path")
        self._staging.unstage(volume_id, staging, deadline)
        return csi.NodeUnstageVolumeResponse()

    def node_publish_volume(
        self, request: csi.NodePublishVolumeRequest, deadline: CallDeadline
    ) -> csi.NodePublishVolumeResponse:
        volume_id = require_known_volume_id(request.volume_id)
        place = require_place(request.target_path, "target_path")
        if not request.staging_target_path:
            raise VolumeFailed(
                codes.FAILED_PRECONDITION, "staging_target_path: is missing: a volume is staged first"
            )
        staging = require_place(request.staging_target_path, "staging_target_path")
        access = parse_access(request.volume_capability)
        if place == staging:
            raise invalid("target_path: is the staging path")
        self._publishing.publish(volume_id, staging, place, access, deadline, is_read_only=request.readonly)
        return csi.NodePublishVolumeResponse()

    def node_unpublish_volume(
        self, request: csi.NodeUnpublishVolumeRequest, deadline: CallDeadline
    ) -> csi.NodeUnpublishVolumeResponse:
        volume_id = require_known_volume_id(request.volume_id)
        place = require_place(request.target_path, "target_path")
        self._publishing.unpublish(volume_id, place, deadline)
        return csi.NodeUnpublishVolumeResponse()

    def node_get_volume_stats(
        self, request: csi.NodeGetVolumeStatsRequest, _: CallDeadline
    ) -> csi.NodeGetVolumeStatsResponse:
        volume_id = require_known_volume_id(request.volume_id)
        usage = self._publishing.usage(volume_id, require_place(request.volume_path, "volume_path"))
        total_bytes = usage.f_blocks * usage.f_frsize
        return csi.NodeGetVolumeStatsResponse(
            usage=[
                csi.VolumeUsage(
                    unit=csi.VolumeUsage.BYTES,
                    total=total_bytes,
                    available=usage.f_bavail * usage.f_frsize,
                    used=total_bytes - usage.f_bfree * usage.f_frsize,
                )
            ]
        )

    def node_get_capabilities(
        self, request: csi.NodeGetCapabilitiesRequest, _: CallDeadline
    ) -> csi.NodeGetCapabilitiesResponse:
        response = csi.NodeGetCapabilitiesResponse()
        for kind in (_Rpc.STAGE_UNSTAGE_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.SINGLE_NODE_MULTI_WRITER):
            response.capabilities.add().rpc.type = kind
        return response

    def node_get_info(self, request: csi.NodeGetInfoRequest, _: CallDeadline) -> csi.NodeGetInfoResponse:
        return csi.NodeGetInfoResponse(node_id=self._node_id)
