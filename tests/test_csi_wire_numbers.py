"""What the CSI's messages are on the wire: our own csi.proto against the published one.

The client of the other tests is made from the same file as the driver, and would agree with it in any mistake. The
numbers here were read in the specification's csi.proto (github.com/container-storage-interface/spec, 1.0 and 1.5).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from cloudai_proto.csi.v1 import csi_pb2 as csi

_TEXT, _NUMBER, _TRUTH = "string", "int64", "bool"
_WORDS = "map<string, string>"
_TYPE_NAMES = {
    FieldDescriptor.TYPE_STRING: _TEXT,
    FieldDescriptor.TYPE_INT64: _NUMBER,
    FieldDescriptor.TYPE_BOOL: _TRUTH,
}

FIELDS = {
    "GetPluginInfoRequest": {},
    "GetPluginInfoResponse": {
        1: ("name", _TEXT),
        2: ("vendor_version", _TEXT),
        3: ("manifest", _WORDS),
    },
    "GetPluginCapabilitiesRequest": {},
    "GetPluginCapabilitiesResponse": {1: ("capabilities", "repeated PluginCapability")},
    "PluginCapability": {1: ("service", "PluginCapability.Service")},
    "PluginCapability.Service": {1: ("type", "PluginCapability.Service.Type")},
    "ProbeRequest": {},
    "ProbeResponse": {1: ("ready", "google.protobuf.BoolValue")},
    "CreateVolumeRequest": {
        1: ("name", _TEXT),
        2: ("capacity_range", "CapacityRange"),
        3: ("volume_capabilities", "repeated VolumeCapability"),
        4: ("parameters", _WORDS),
        5: ("secrets", _WORDS),
        6: ("volume_content_source", "VolumeContentSource"),
    },
    "CreateVolumeResponse": {1: ("volume", "Volume")},
    "VolumeContentSource": {
        1: ("snapshot", "VolumeContentSource.SnapshotSource"),
        2: ("volume", "VolumeContentSource.VolumeSource"),
    },
    "VolumeContentSource.SnapshotSource": {1: ("snapshot_id", _TEXT)},
    "VolumeContentSource.VolumeSource": {1: ("volume_id", _TEXT)},
    "VolumeCapability": {
        1: ("block", "VolumeCapability.BlockVolume"),
        2: ("mount", "VolumeCapability.MountVolume"),
        3: ("access_mode", "VolumeCapability.AccessMode"),
    },
    "VolumeCapability.BlockVolume": {},
    "VolumeCapability.MountVolume": {
        1: ("fs_type", _TEXT),
        2: ("mount_flags", "repeated string"),
        3: ("volume_mount_group", _TEXT),
    },
    "VolumeCapability.AccessMode": {1: ("mode", "VolumeCapability.AccessMode.Mode")},
    "CapacityRange": {1: ("required_bytes", _NUMBER), 2: ("limit_bytes", _NUMBER)},
    "Volume": {
        1: ("capacity_bytes", _NUMBER),
        2: ("volume_id", _TEXT),
        3: ("volume_context", _WORDS),
        4: ("content_source", "VolumeContentSource"),
    },
    "DeleteVolumeRequest": {1: ("volume_id", _TEXT), 2: ("secrets", _WORDS)},
    "DeleteVolumeResponse": {},
    "ValidateVolumeCapabilitiesRequest": {
        1: ("volume_id", _TEXT),
        2: ("volume_context", _WORDS),
        3: ("volume_capabilities", "repeated VolumeCapability"),
        4: ("parameters", _WORDS),
        5: ("secrets", _WORDS),
    },
    "ValidateVolumeCapabilitiesResponse": {
        1: ("confirmed", "ValidateVolumeCapabilitiesResponse.Confirmed"),
        2: ("message", _TEXT),
    },
    "ValidateVolumeCapabilitiesResponse.Confirmed": {
        1: ("volume_context", _WORDS),
        2: ("volume_capabilities", "repeated VolumeCapability"),
        3: ("parameters", _WORDS),
    },
    "ControllerGetCapabilitiesRequest": {},
    "ControllerGetCapabilitiesResponse": {1: ("capabilities", "repeated ControllerServiceCapability")},
    "ControllerServiceCapability": {1: ("rpc", "ControllerServiceCapability.RPC")},
    "ControllerServiceCapability.RPC": {1: ("type", "ControllerServiceCapability.RPC.Type")},
    "NodeStageVolumeRequest": {
        1: ("volume_id", _TEXT),
        2: ("publish_context", _WORDS),
        3: ("staging_target_path", _TEXT),
        4: ("volume_capability", "VolumeCapability"),
        5: ("secrets", _WORDS),
        6: ("volume_context", _WORDS),
    },
    "NodeStageVolumeResponse": {},
    "NodeUnstageVolumeRequest": {1: ("volume_id", _TEXT), 2: ("staging_target_path", _TEXT)},
    "NodeUnstageVolumeResponse": {},
    "NodePublishVolumeRequest": {
        1: ("volume_id", _TEXT),
        2: ("publish_context", _WORDS),
        3: ("staging_target_path", _TEXT),
        4: ("target_path", _TEXT),
        5: ("volume_capability", "VolumeCapability"),
        6: ("readonly", _TRUTH),
        7: ("secrets", _WORDS),
        8: ("volume_context", _WORDS),
    },
    "NodePublishVolumeResponse": {},
    "NodeUnpublishVolumeRequest": {1: ("volume_id", _TEXT), 2: ("target_path", _TEXT)},
    "NodeUnpublishVolumeResponse": {},
    "NodeGetVolumeStatsRequest": {
        1: ("volume_id", _TEXT),
        2: ("volume_path", _TEXT),
        3: ("staging_target_path", _TEXT),
    },
    "NodeGetVolumeStatsResponse": {1: ("usage", "repeated VolumeUsage")},
    "VolumeUsage": {
        1: ("available", _NUMBER),
        2: ("total", _NUMBER),
        3: ("used", _NUMBER),
        4: ("unit", "VolumeUsage.Unit"),
    },
    "NodeGetCapabilitiesRequest": {},
    "NodeGetCapabilitiesResponse": {1: ("capabilities", "repeated NodeServiceCapability")},
    "NodeServiceCapability": {1: ("rpc", "NodeServiceCapability.RPC")},
    "NodeServiceCapability.RPC": {1: ("type", "NodeServiceCapability.RPC.Type")},
    "NodeGetInfoRequest": {},
    "NodeGetInfoResponse": {1: ("node_id", _TEXT), 2: ("max_volumes_per_node", _NUMBER)},
}
"""Of each message: what a number means."""

VALUES = {
    "PluginCapability.Service.Type": (
        *("UNKNOWN", "CONTROLLER_SERVICE", "VOLUME_ACCESSIBILITY_CONSTRAINTS"),
    ),
    "VolumeCapability.AccessMode.Mode": (
        *("UNKNOWN", "SINGLE_NODE_WRITER", "SINGLE_NODE_READER_ONLY", "MULTI_NODE_READER_ONLY"),
        *("MULTI_NODE_SINGLE_WRITER", "MULTI_NODE_MULTI_WRITER"),
        *("SINGLE_NODE_SINGLE_WRITER", "SINGLE_NODE_MULTI_WRITER"),
    ),
    "ControllerServiceCapability.RPC.Type": (
        *("UNKNOWN", "CREATE_DELETE_VOLUME", "PUBLISH_UNPUBLISH_VOLUME", "LIST_VOLUMES", "GET_CAPACITY"),
        *("CREATE_DELETE_SNAPSHOT", "LIST_SNAPSHOTS", "CLONE_VOLUME", "PUBLISH_READONLY", "EXPAND_VOLUME"),
        *("LIST_VOLUMES_PUBLISHED_NODES", "VOLUME_CONDITION", "GET_VOLUME", "SINGLE_NODE_MULTI_WRITER"),
    ),
    "VolumeUsage.Unit": ("UNKNOWN", "BYTES", "INODES"),
    "NodeServiceCapability.RPC.Type": (
        *("UNKNOWN", "STAGE_UNSTAGE_VOLUME", "GET_VOLUME_STATS", "EXPAND_VOLUME", "VOLUME_CONDITION"),
        *("SINGLE_NODE_MULTI_WRITER", "VOLUME_MOUNT_GROUP"),
    ),
}
"""Of each enumeration, in the order of their numbers, from 0 on."""

CALLS = {
    "Identity": ("GetPluginInfo", "GetPluginCapabilities", "Probe"),
    "Controller": (
        *("CreateVolume", "DeleteVolume", "ValidateVolumeCapabilities", "ControllerGetCapabilities"),
    ),
    "Node": (
        *("NodeStageVolume", "NodeUnstageVolume", "NodePublishVolume", "NodeUnpublishVolume"),
        *("NodeGetVolumeStats", "NodeGetCapabilities", "NodeGetInfo"),
    ),
}


def short(name: str) -> str:
    return name.removeprefix("csi.v1.")


def messages(within: Descriptor | None = None) -> Iterator[Descriptor]:
    """All of the file, without what stands for the entries of a map."""
    found = csi.DESCRIPTOR.message_types_by_name.values() if within is None else within.nested_types
    for message in found:
        if not message.GetOptions().map_entry:
            yield message
            yield from messages(message)


def enumerations() -> Iterator[EnumDescriptor]:
    yield from csi.DESCRIPTOR.enum_types_by_name.values()
    for message in messages():
        yield from message.enum_types


def type_of(field: FieldDescriptor) -> str:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        of_key, of_value = (message.fields_by_name[name].type for name in ("key", "value"))
        return f"map<{_TYPE_NAMES[of_key]}, {_TYPE_NAMES[of_value]}>"
    named = message or field.enum_type
    name = short(named.full_name) if named is not None else _TYPE_NAMES[field.type]
    return f"repeated {name}" if field.is_repeated else name


def test_all_messages_and_enumerations_are_compared() -> None:
    assert {short(message.full_name) for message in messages()} == set(FIELDS)
    assert {short(found.full_name) for found in enumerations()} == set(VALUES)


@pytest.mark.parametrize("message", list(messages()), ids=lambda message: short(message.full_name))
def test_fields_of_a_message_have_the_numbers_of_the_specification(message: Descriptor) -> None:
    found = {field.number: (field.name, type_of(field)) for field in message.fields}

    assert found == FIELDS[short(message.full_name)]


@pytest.mark.parametrize("enumeration", list(enumerations()), ids=lambda found: short(found.full_name))
def test_values_have_the_numbers_of_the_specification(enumeration: EnumDescriptor) -> None:
    found = {value.number: value.name for value in enumeration.values}

    assert found == dict(enumerate(VALUES[short(enumeration.full_name)]))


def test_calls_have_the_names_of_the_specification() -> None:
    services = csi.DESCRIPTOR.services_by_name

    assert csi.DESCRIPTOR.package == "csi.v1"
    assert {
        name: tuple(method.name for method in service.methods) for name, service in services.items()
    } == CALLS
    for service in services.values():
        for method in service.methods:
            assert short(method.input_type.full_name) == f"{method.name}Request"
            assert short(method.output_type.full_name) == f"{method.name}Response"
