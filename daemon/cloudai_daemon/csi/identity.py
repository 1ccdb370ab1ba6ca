"""The Identity service: who this driver is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from google.rpc import code_pb2 as codes

from cloudai_daemon.csi.call_deadline import CallDeadline
from cloudai_daemon.csi.errors import Handler, VolumeFailed
from cloudai_fusefs.version import software_version
from cloudai_proto.csi.v1 import csi_pb2 as csi

DRIVER_NAME: Final = "csi.cloudai"
"""As CSIDriver objects and StorageClasses name it."""

_FUSE_DEVICE: Final = "/dev/fuse"


class Identity:
    """`mounts`: whether this driver serves a node, and so needs what mounting needs."""

    def __init__(self, *, mounts: bool) -> None:
        self._mounts = mounts

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "GetPluginInfo": self.get_plugin_info,
            "GetPluginCapabilities": self.get_plugin_capabilities,
            "Probe": self.probe,
        }

    def get_plugin_info(
        self, request: csi.GetPluginInfoRequest, _: CallDeadline
    ) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name=DRIVER_NAME, vendor_version=software_version())

    def get_plugin_capabilities(
        self, request: csi.GetPluginCapabilitiesRequest, _: CallDeadline
    ) -> csi.GetPluginCapabilitiesResponse:
        response = csi.GetPluginCapabilitiesResponse()
        response.capabilities.add().service.type = csi.PluginCapability.Service.CONTROLLER_SERVICE
        return response

    def probe(self, request: csi.ProbeRequest, _: CallDeadline) -> csi.ProbeResponse:
        """That the master is away is no fault of the driver's: calls that need it say so."""
        if self._mounts and not os.access(_FUSE_DEVICE, os.R_OK | os.W_OK):
            raise VolumeFailed(
                codes.FAILED_PRECONDITION,
                f"{_FUSE_DEVICE} is missing or may not be opened: `modprobe fuse` on this node, and run the driver "
                "privileged",
            )
        response = csi.ProbeResponse()
        response.ready.value = True
        return response
