from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_KIND_UNSPECIFIED: _ClassVar[NodeKind]
    NODE_KIND_FILE: _ClassVar[NodeKind]
    NODE_KIND_DIRECTORY: _ClassVar[NodeKind]
    NODE_KIND_SYMLINK: _ClassVar[NodeKind]
NODE_KIND_UNSPECIFIED: NodeKind
NODE_KIND_FILE: NodeKind
NODE_KIND_DIRECTORY: NodeKind
NODE_KIND_SYMLINK: NodeKind

class Attributes(_message.Message):
    __slots__ = ("mode", "uid", "gid", "mtime_ns", "ctime_ns", "atime_ns")
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    def __init__(self, mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., atime_ns: _Optional[int] = ...) -> None: ...

class Xattr(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    value: bytes
    def __init__(self, name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class Xattrs(_message.Message):
    __slots__ = ("xattrs",)
    XATTRS_FIELD_NUMBER: _ClassVar[int]
    xattrs: _containers.RepeatedCompositeFieldContainer[Xattr]
    def __init__(self, xattrs: _Optional[_Iterable[_Union[Xattr, _Mapping]]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("node_id", "kind", "attributes", "size_bytes", "generation", "link_count", "symlink_target", "digest", "revision", "xattrs")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    LINK_COUNT_FIELD_NUMBER: _ClassVar[int]
    SYMLINK_TARGET_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    XATTRS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    kind: NodeKind
    attributes: Attributes
    size_bytes: int
    generation: int
    link_count: int
    symlink_target: bytes
    digest: bytes
    revision: int
    xattrs: Xattrs
    def __init__(self, node_id: _Optional[int] = ..., kind: _Optional[_Union[NodeKind, str]] = ..., attributes: _Optional[_Union[Attributes, _Mapping]] = ..., size_bytes: _Optional[int] = ..., generation: _Optional[int] = ..., link_count: _Optional[int] = ..., symlink_target: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., revision: _Optional[int] = ..., xattrs: _Optional[_Union[Xattrs, _Mapping]] = ...) -> None: ...

class Edge(_message.Message):
    __slots__ = ("parent_node_id", "name", "node")
    PARENT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    parent_node_id: int
    name: bytes
    node: Node
    def __init__(self, parent_node_id: _Optional[int] = ..., name: _Optional[bytes] = ..., node: _Optional[_Union[Node, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("length_bytes", "digest")
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    length_bytes: int
    digest: bytes
    def __init__(self, length_bytes: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("chunks",)
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    def __init__(self, chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("user", "task", "name", "task_id", "root_node_id", "created_at_ns", "sealed", "sealed_at_ns", "exit_status", "revision", "removed", "attributes")
    USER_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ROOT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    SEALED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    EXIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    user: str
    task: str
    name: str
    task_id: str
    root_node_id: int
    created_at_ns: int
    sealed: bool
    sealed_at_ns: int
    exit_status: int
    revision: int
    removed: bool
    attributes: Attributes
    def __init__(self, user: _Optional[str] = ..., task: _Optional[str] = ..., name: _Optional[str] = ..., task_id: _Optional[str] = ..., root_node_id: _Optional[int] = ..., created_at_ns: _Optional[int] = ..., sealed: _Optional[bool] = ..., sealed_at_ns: _Optional[int] = ..., exit_status: _Optional[int] = ..., revision: _Optional[int] = ..., removed: _Optional[bool] = ..., attributes: _Optional[_Union[Attributes, _Mapping]] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("user", "name", "created_at_ns", "removed")
    USER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    user: str
    name: str
    created_at_ns: int
    removed: bool
    def __init__(self, user: _Optional[str] = ..., name: _Optional[str] = ..., created_at_ns: _Optional[int] = ..., removed: _Optional[bool] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("reason", "message", "missing_digests", "now_ns")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MISSING_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    NOW_NS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    missing_digests: _containers.RepeatedScalarFieldContainer[bytes]
    now_ns: int
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., missing_digests: _Optional[_Iterable[bytes]] = ..., now_ns: _Optional[int] = ...) -> None: ...
