"""The operations on extended attributes, of a mount that has them switched on.

Local first, as other attributes. A node's mapping is never changed but replaced by another: which one a commit has
taken along is told by its identity.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloudai_fusefs.namespace import Inode, Namespace
from cloudai_fusefs.node import Node
from cloudai_fusefs.staging import Staging
from cloudai_fusefs.wire_xattrs import NO_XATTRS
from cloudai_model.errors import CloudAIError, NotSupported, PermissionRefused
from cloudai_model.limits import XATTR_BYTES_MAX
from cloudai_model.xattrs import XATTR_PREFIX, check_xattr_name, xattrs_size_bytes


class NoXattr(CloudAIError):
    """The node has no extended attribute of this name."""

    sentence = "no such extended attribute"


class XattrsTooLarge(CloudAIError):
    sentence = "too much in the extended attributes of one file"


class ExtendedAttributes:
    """What getxattr(2) and its like ask for. A name outside of `user.` raises NotSupported before anything is looked
    at, and `user.` alone InvalidName. Cancelled while a run is being looked into: nothing changed.
    """

    def __init__(self, namespace: Namespace, staging: Staging) -> None:
        self._namespace = namespace
        self._staging = staging

    async def get(self, inode: Inode, name: bytes) -> bytes:
        """The value. Raises NoXattr, and the client's errors on a first look into a run."""
        _check_supported(name)
        value = (await self._xattrs_of(inode)).get(name)
        if value is None:
            raise NoXattr(name=name)
        return value

    async def list(self, inode: Inode) -> list[bytes]:
        """The names in the order of their bytes, on each mount the same. Raises as get."""
        return sorted(await self._xattrs_of(inode))

    async def set(self, inode: Inode, name: bytes, value: bytes) -> None:
        """Gives the name this value, whether it was there or not.

        Raises XattrsTooLarge, PermissionRefused above the runs, RunSealed, OSError when it cannot be recorded.
        """
        _check_supported(name)
        node = await self._node_to_change(inode)
        xattrs = {**node.xattrs, name: value}
        size_bytes = xattrs_size_bytes(xattrs)
        if size_bytes > XATTR_BYTES_MAX:
            raise XattrsTooLarge(name=name, size_bytes=size_bytes, limit_bytes=XATTR_BYTES_MAX)
        self._replace(node, xattrs)

    async def remove(self, inode: Inode, name: bytes) -> None:
        """Raises NoXattr, and as set."""
        _check_supported(name)
        node = await self._node_to_change(inode)
        if name not in node.xattrs:
            raise NoXattr(name=name)
        rest = {kept: value for kept, value in node.xattrs.items() if kept != name}
        self._replace(node, rest or NO_XATTRS)

    async def _xattrs_of(self, inode: Inode) -> Mapping[bytes, bytes]:
        if not isinstance(inode, Node):
            return NO_XATTRS
        await self._namespace.load(inode)  # those of a run's root are not in the listing of runs
        return inode.xattrs

    async def _node_to_change(self, inode: Inode) -> Node:
        if not isinstance(inode, Node):
            raise PermissionRefused("users, tasks and `latest` have no extended attributes")
        await self._namespace.load(inode)
        self._namespace.check_open(inode.tree)
        return inode

    def _replace(self, node: Node, xattrs: Mapping[bytes, bytes]) -> None:
        before = node.xattrs, node.attributes
        node.xattrs = xattrs
        node.touch(mtime=False)
        if node.is_attached:
            try:
                self._staging.note_xattrs(node)
            except OSError:
                node.xattrs, node.attributes = before
                raise


def _check_supported(name: bytes) -> None:
    if not name.startswith(XATTR_PREFIX):
        raise NotSupported("of extended attributes only those of `user.` are kept", name=name)
    check_xattr_name(name)
