"""The attributes of a node, extended ones too, as requests give them: checked, and completed for a new node."""

from __future__ import annotations

from cloudai_model.errors import InvalidRequest
from cloudai_model.limits import XATTR_BYTES_MAX
from cloudai_model.xattrs import check_xattr_name
from cloudai_proto.storage.v1 import types_pb2 as types

MODE_MAX = 0o7777
# What a file system may store of a uid or gid; the highest value means "none" to chown(2).
OWNER_MAX = (1 << 32) - 2


def check_attributes(attributes: types.Attributes) -> None:
    """Raises InvalidRequest for mode bits beyond 07777 or an owner that is none."""
    if attributes.mode > MODE_MAX:
        raise InvalidRequest("a mode is at most 07777", mode=oct(attributes.mode))
    if attributes.uid > OWNER_MAX or attributes.gid > OWNER_MAX:
        raise InvalidRequest("an owner is out of range", uid=attributes.uid, gid=attributes.gid)


def check_xattrs(xattrs: types.Xattrs) -> None:
    """Raises InvalidRequest for names that are none, out of order or there twice, and for more than is kept."""
    before = b""
    size_bytes = 0
    for xattr in xattrs.xattrs:
        check_xattr_name(xattr.name)
        if xattr.name <= before:
            raise InvalidRequest("extended attributes come in the order of their names", name=xattr.name)
        before = xattr.name
        size_bytes += len(xattr.name) + len(xattr.value)
    if size_bytes > XATTR_BYTES_MAX:
        raise InvalidRequest("too much in the extended attributes of one node", size_bytes=size_bytes)


def complete_attributes(given: types.Attributes | None, mode: int, now_ns: int) -> types.Attributes:
    """The attributes of a new node: those given, or this mode, owner 0:0 and the time now."""
    if given is None:
        return types.Attributes(mode=mode, mtime_ns=now_ns, ctime_ns=now_ns, atime_ns=now_ns)
    check_attributes(given)
    return given
