"""Extended attributes to and from the wire: names to values, in the order of the names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cloudai_proto.storage.v1 import types_pb2 as types

NO_XATTRS: Final[Mapping[bytes, bytes]] = MappingProxyType({})
"""One for all nodes without any."""


def xattrs_from_wire(message: types.Xattrs) -> Mapping[bytes, bytes]:
    return {xattr.name: xattr.value for xattr in message.xattrs} or NO_XATTRS


def xattrs_to_wire(xattrs: Mapping[bytes, bytes]) -> types.Xattrs:
    return types.Xattrs(
        xattrs=[types.Xattr(name=name, value=value) for name, value in sorted(xattrs.items())]
    )
