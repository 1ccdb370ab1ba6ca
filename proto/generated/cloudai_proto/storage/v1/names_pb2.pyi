from cloudai_proto.storage.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCapabilitiesResponse(_message.Message):
    __slots__ = ("version", "chunk_bytes_max", "inline_bytes_max", "commit_nodes_max", "user", "admin", "task_id", "expires_at_ns", "now_ns", "keeps_xattrs")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    INLINE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    COMMIT_NODES_MAX_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    ADMIN_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_NS_FIELD_NUMBER: _ClassVar[int]
    NOW_NS_FIELD_NUMBER: _ClassVar[int]
    KEEPS_XATTRS_FIELD_NUMBER: _ClassVar[int]
    version: str
    chunk_bytes_max: int
    inline_bytes_max: int
    commit_nodes_max: int
    user: str
    admin: bool
    task_id: str
    expires_at_ns: int
    now_ns: int
    keeps_xattrs: bool
    def __init__(self, version: _Optional[str] = ..., chunk_bytes_max: _Optional[int] = ..., inline_bytes_max: _Optional[int] = ..., commit_nodes_max: _Optional[int] = ..., user: _Optional[str] = ..., admin: _Optional[bool] = ..., task_id: _Optional[str] = ..., expires_at_ns: _Optional[int] = ..., now_ns: _Optional[int] = ..., keeps_xattrs: _Optional[bool] = ...) -> None: ...

class GetUsageRequest(_message.Message):
    __slots__ = ("user",)
    USER_FIELD_NUMBER: _ClassVar[int]
    user: str
    def __init__(self, user: _Optional[str] = ...) -> None: ...

class GetUsageResponse(_message.Message):
    __slots__ = ("used_bytes", "limit_bytes", "store_free_bytes", "store_size_bytes")
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORE_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORE_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    used_bytes: int
    limit_bytes: int
    store_free_bytes: int
    store_size_bytes: int
    def __init__(self, used_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., store_free_bytes: _Optional[int] = ..., store_size_bytes: _Optional[int] = ...) -> None: ...

class ListUsersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListUsersResponse(_message.Message):
    __slots__ = ("users",)
    USERS_FIELD_NUMBER: _ClassVar[int]
    users: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, users: _Optional[_Iterable[str]] = ...) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ("user",)
    USER_FIELD_NUMBER: _ClassVar[int]
    user: str
    def __init__(self, user: _Optional[str] = ...) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks", "revision")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[_types_pb2.Task]
    revision: int
    def __init__(self, tasks: _Optional[_Iterable[_Union[_types_pb2.Task, _Mapping]]] = ..., revision: _Optional[int] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("user", "task", "page_token")
    USER_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    user: str
    task: str
    page_token: str
    def __init__(self, user: _Optional[str] = ..., task: _Optional[str] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "next_page_token", "revision")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[_types_pb2.Run]
    next_page_token: str
    revision: int
    def __init__(self, runs: _Optional[_Iterable[_Union[_types_pb2.Run, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class CreateTaskRequest(_message.Message):
    __slots__ = ("request_id", "user", "task")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    user: str
    task: str
    def __init__(self, request_id: _Optional[bytes] = ..., user: _Optional[str] = ..., task: _Optional[str] = ...) -> None: ...

class CreateTaskResponse(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: _types_pb2.Task
    def __init__(self, task: _Optional[_Union[_types_pb2.Task, _Mapping]] = ...) -> None: ...

class RemoveTaskRequest(_message.Message):
    __slots__ = ("request_id", "user", "task")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    user: str
    task: str
    def __init__(self, request_id: _Optional[bytes] = ..., user: _Optional[str] = ..., task: _Optional[str] = ...) -> None: ...

class RemoveTaskResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CreateRunRequest(_message.Message):
    __slots__ = ("request_id", "user", "task", "name", "task_id", "attributes")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    user: str
    task: str
    name: str
    task_id: str
    attributes: _types_pb2.Attributes
    def __init__(self, request_id: _Optional[bytes] = ..., user: _Optional[str] = ..., task: _Optional[str] = ..., name: _Optional[str] = ..., task_id: _Optional[str] = ..., attributes: _Optional[_Union[_types_pb2.Attributes, _Mapping]] = ...) -> None: ...

class CreateRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _types_pb2.Run
    def __init__(self, run: _Optional[_Union[_types_pb2.Run, _Mapping]] = ...) -> None: ...

class RemoveRunRequest(_message.Message):
    __slots__ = ("request_id", "task_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    task_id: str
    def __init__(self, request_id: _Optional[bytes] = ..., task_id: _Optional[str] = ...) -> None: ...

class RemoveRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SealRunRequest(_message.Message):
    __slots__ = ("request_id", "task_id", "exit_status")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    EXIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    task_id: str
    exit_status: int
    def __init__(self, request_id: _Optional[bytes] = ..., task_id: _Optional[str] = ..., exit_status: _Optional[int] = ...) -> None: ...

class SealRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _types_pb2.Run
    def __init__(self, run: _Optional[_Union[_types_pb2.Run, _Mapping]] = ...) -> None: ...

class CreateRunTokenRequest(_message.Message):
    __slots__ = ("task_id", "valid_seconds")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    VALID_SECONDS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    valid_seconds: int
    def __init__(self, task_id: _Optional[str] = ..., valid_seconds: _Optional[int] = ...) -> None: ...

class CreateRunTokenResponse(_message.Message):
    __slots__ = ("token", "expires_at_ns")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_NS_FIELD_NUMBER: _ClassVar[int]
    token: str
    expires_at_ns: int
    def __init__(self, token: _Optional[str] = ..., expires_at_ns: _Optional[int] = ...) -> None: ...

class ListTreeRequest(_message.Message):
    __slots__ = ("task_id", "page_token", "takes_changes")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TAKES_CHANGES_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    page_token: str
    takes_changes: bool
    def __init__(self, task_id: _Optional[str] = ..., page_token: _Optional[str] = ..., takes_changes: _Optional[bool] = ...) -> None: ...

class ListTreeResponse(_message.Message):
    __slots__ = ("root", "edges", "next_page_token", "revision", "sealed", "changes")
    ROOT_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    root: _types_pb2.Node
    edges: _containers.RepeatedCompositeFieldContainer[_types_pb2.Edge]
    next_page_token: str
    revision: int
    sealed: bool
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    def __init__(self, root: _Optional[_Union[_types_pb2.Node, _Mapping]] = ..., edges: _Optional[_Iterable[_Union[_types_pb2.Edge, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., revision: _Optional[int] = ..., sealed: _Optional[bool] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ...) -> None: ...

class GetManifestRequest(_message.Message):
    __slots__ = ("task_id", "node_id", "generation", "first_chunk")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    node_id: int
    generation: int
    first_chunk: int
    def __init__(self, task_id: _Optional[str] = ..., node_id: _Optional[int] = ..., generation: _Optional[int] = ..., first_chunk: _Optional[int] = ...) -> None: ...

class GetManifestResponse(_message.Message):
    __slots__ = ("chunks", "chunk_count")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_COUNT_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[_types_pb2.Chunk]
    chunk_count: int
    def __init__(self, chunks: _Optional[_Iterable[_Union[_types_pb2.Chunk, _Mapping]]] = ..., chunk_count: _Optional[int] = ...) -> None: ...

class CommitNodesRequest(_message.Message):
    __slots__ = ("request_id", "task_id", "commits")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    task_id: str
    commits: _containers.RepeatedCompositeFieldContainer[NodeCommit]
    def __init__(self, request_id: _Optional[bytes] = ..., task_id: _Optional[str] = ..., commits: _Optional[_Iterable[_Union[NodeCommit, _Mapping]]] = ...) -> None: ...

class NodeCommit(_message.Message):
    __slots__ = ("node_id", "kind", "path", "place", "attributes", "manifest", "data", "size_bytes", "digest", "symlink_target", "xattrs")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SYMLINK_TARGET_FIELD_NUMBER: _ClassVar[int]
    XATTRS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    kind: _types_pb2.NodeKind
    path: bytes
    place: bool
    attributes: _types_pb2.Attributes
    manifest: _types_pb2.Manifest
    data: bytes
    size_bytes: int
    digest: bytes
    symlink_target: bytes
    xattrs: _types_pb2.Xattrs
    def __init__(self, node_id: _Optional[int] = ..., kind: _Optional[_Union[_types_pb2.NodeKind, str]] = ..., path: _Optional[bytes] = ..., place: _Optional[bool] = ..., attributes: _Optional[_Union[_types_pb2.Attributes, _Mapping]] = ..., manifest: _Optional[_Union[_types_pb2.Manifest, _Mapping]] = ..., data: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., digest: _Optional[bytes] = ..., symlink_target: _Optional[bytes] = ..., xattrs: _Optional[_Union[_types_pb2.Xattrs, _Mapping]] = ...) -> None: ...

class NodeResult(_message.Message):
    __slots__ = ("node", "error", "placed")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PLACED_FIELD_NUMBER: _ClassVar[int]
    node: _types_pb2.Node
    error: _types_pb2.ErrorDetail
    placed: bool
    def __init__(self, node: _Optional[_Union[_types_pb2.Node, _Mapping]] = ..., error: _Optional[_Union[_types_pb2.ErrorDetail, _Mapping]] = ..., placed: _Optional[bool] = ...) -> None: ...

class CommitNodesResponse(_message.Message):
    __slots__ = ("results", "revision")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[NodeResult]
    revision: int
    def __init__(self, results: _Optional[_Iterable[_Union[NodeResult, _Mapping]]] = ..., revision: _Optional[int] = ...) -> None: ...

class AppendFileRequest(_message.Message):
    __slots__ = ("request_id", "task_id", "node_id", "expected_generation", "chunks", "attributes", "size_bytes")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    task_id: str
    node_id: int
    expected_generation: int
    chunks: _containers.RepeatedCompositeFieldContainer[_types_pb2.Chunk]
    attributes: _types_pb2.Attributes
    size_bytes: int
    def __init__(self, request_id: _Optional[bytes] = ..., task_id: _Optional[str] = ..., node_id: _Optional[int] = ..., expected_generation: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[_types_pb2.Chunk, _Mapping]]] = ..., attributes: _Optional[_Union[_types_pb2.Attributes, _Mapping]] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class AppendFileResponse(_message.Message):
    __slots__ = ("node", "revision")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    node: _types_pb2.Node
    revision: int
    def __init__(self, node: _Optional[_Union[_types_pb2.Node, _Mapping]] = ..., revision: _Optional[int] = ...) -> None: ...

class LinkRequest(_message.Message):
    __slots__ = ("request_id", "task_id", "node_id", "parent_node_id", "name", "mtime_ns")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    task_id: str
    node_id: int
    parent_node_id: int
    name: bytes
    mtime_ns: int
    def __init__(self, request_id: _Optional[bytes] = ..., task_id: _Optional[str] = ..., node_id: _Optional[int] = ..., parent_node_id: _Optional[int] = ..., name: _Optional[bytes] = ..., mtime_ns: _Optional[int] = ...) -> None: ...

class LinkResponse(_message.Message):
    __slots__ = ("node", "revision")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    node: _types_pb2.Node
    revision: int
    def __init__(self, node: _Optional[_Union[_types_pb2.Node, _Mapping]] = ..., revision: _Optional[int] = ...) -> None: ...

class RenameRequest(_message.Message):
    __slots__ = ("request_id", "task_id", "node_id", "old_parent_node_id", "old_name", "new_parent_node_id", "new_name", "no_replace", "mtime_ns")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    OLD_PARENT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    OLD_NAME_FIELD_NUMBER: _ClassVar[int]
    NEW_PARENT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_NAME_FIELD_NUMBER: _ClassVar[int]
    NO_REPLACE_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    task_id: str
    node_id: int
    old_parent_node_id: int
    old_name: bytes
    new_parent_node_id: int
    new_name: bytes
    no_replace: bool
    mtime_ns: int
    def __init__(self, request_id: _Optional[bytes] = ..., task_id: _Optional[str] = ..., node_id: _Optional[int] = ..., old_parent_node_id: _Optional[int] = ..., old_name: _Optional[bytes] = ..., new_parent_node_id: _Optional[int] = ..., new_name: _Optional[bytes] = ..., no_replace: _Optional[bool] = ..., mtime_ns: _Optional[int] = ...) -> None: ...

class RenameResponse(_message.Message):
    __slots__ = ("revision", "already_named")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ALREADY_NAMED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    already_named: bool
    def __init__(self, revision: _Optional[int] = ..., already_named: _Optional[bool] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("request_id", "task_id", "node_id", "parent_node_id", "name", "mtime_ns")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    task_id: str
    node_id: int
    parent_node_id: int
    name: bytes
    mtime_ns: int
    def __init__(self, request_id: _Optional[bytes] = ..., task_id: _Optional[str] = ..., node_id: _Optional[int] = ..., parent_node_id: _Optional[int] = ..., name: _Optional[bytes] = ..., mtime_ns: _Optional[int] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class RemoveNodesRequest(_message.Message):
    __slots__ = ("request_id", "task_id", "removals")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    REMOVALS_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    task_id: str
    removals: _containers.RepeatedCompositeFieldContainer[NodeRemoval]
    def __init__(self, request_id: _Optional[bytes] = ..., task_id: _Optional[str] = ..., removals: _Optional[_Iterable[_Union[NodeRemoval, _Mapping]]] = ...) -> None: ...

class NodeRemoval(_message.Message):
    __slots__ = ("node_id", "parent_node_id", "name", "generation", "mtime_ns")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    parent_node_id: int
    name: bytes
    generation: int
    mtime_ns: int
    def __init__(self, node_id: _Optional[int] = ..., parent_node_id: _Optional[int] = ..., name: _Optional[bytes] = ..., generation: _Optional[int] = ..., mtime_ns: _Optional[int] = ...) -> None: ...

class RemovalResult(_message.Message):
    __slots__ = ("removed", "kept", "error")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    removed: bool
    kept: _types_pb2.Node
    error: _types_pb2.ErrorDetail
    def __init__(self, removed: _Optional[bool] = ..., kept: _Optional[_Union[_types_pb2.Node, _Mapping]] = ..., error: _Optional[_Union[_types_pb2.ErrorDetail, _Mapping]] = ...) -> None: ...

class RemoveNodesResponse(_message.Message):
    __slots__ = ("results", "revision")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RemovalResult]
    revision: int
    def __init__(self, results: _Optional[_Iterable[_Union[RemovalResult, _Mapping]]] = ..., revision: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("task_id", "user", "after_revision")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    user: str
    after_revision: int
    def __init__(self, task_id: _Optional[str] = ..., user: _Optional[str] = ..., after_revision: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("changes", "revision", "reload")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    RELOAD_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    revision: int
    reload: bool
    def __init__(self, changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., revision: _Optional[int] = ..., reload: _Optional[bool] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("revision", "edge_set", "edge_removed", "node_changed", "run_changed", "task_changed")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EDGE_SET_FIELD_NUMBER: _ClassVar[int]
    EDGE_REMOVED_FIELD_NUMBER: _ClassVar[int]
    NODE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    RUN_CHANGED_FIELD_NUMBER: _ClassVar[int]
    TASK_CHANGED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    edge_set: _types_pb2.Edge
    edge_removed: EdgeRemoved
    node_changed: _types_pb2.Node
    run_changed: _types_pb2.Run
    task_changed: _types_pb2.Task
    def __init__(self, revision: _Optional[int] = ..., edge_set: _Optional[_Union[_types_pb2.Edge, _Mapping]] = ..., edge_removed: _Optional[_Union[EdgeRemoved, _Mapping]] = ..., node_changed: _Optional[_Union[_types_pb2.Node, _Mapping]] = ..., run_changed: _Optional[_Union[_types_pb2.Run, _Mapping]] = ..., task_changed: _Optional[_Union[_types_pb2.Task, _Mapping]] = ...) -> None: ...

class EdgeRemoved(_message.Message):
    __slots__ = ("parent_node_id", "name", "node_id")
    PARENT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    parent_node_id: int
    name: bytes
    node_id: int
    def __init__(self, parent_node_id: _Optional[int] = ..., name: _Optional[bytes] = ..., node_id: _Optional[int] = ...) -> None: ...
