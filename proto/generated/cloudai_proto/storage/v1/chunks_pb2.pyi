from cloudai_proto.storage.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FindMissingChunksRequest(_message.Message):
    __slots__ = ("task_id", "digests")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, task_id: _Optional[str] = ..., digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FindMissingChunksResponse(_message.Message):
    __slots__ = ("missing_digests",)
    MISSING_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    missing_digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, missing_digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PutChunkRequest(_message.Message):
    __slots__ = ("task_id", "digest", "data")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    digest: bytes
    data: bytes
    def __init__(self, task_id: _Optional[str] = ..., digest: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutChunkResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadChunkRequest(_message.Message):
    __slots__ = ("task_id", "node_id", "generation", "chunk_index", "offset_bytes", "length_bytes", "with_block_digests", "verify")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    WITH_BLOCK_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    node_id: int
    generation: int
    chunk_index: int
    offset_bytes: int
    length_bytes: int
    with_block_digests: bool
    verify: bool
    def __init__(self, task_id: _Optional[str] = ..., node_id: _Optional[int] = ..., generation: _Optional[int] = ..., chunk_index: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ..., with_block_digests: _Optional[bool] = ..., verify: _Optional[bool] = ...) -> None: ...

class ReadChunkResponse(_message.Message):
    __slots__ = ("data", "block_digests")
    DATA_FIELD_NUMBER: _ClassVar[int]
    BLOCK_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    block_digests: bytes
    def __init__(self, data: _Optional[bytes] = ..., block_digests: _Optional[bytes] = ...) -> None: ...

class ReadFilesRequest(_message.Message):
    __slots__ = ("task_id", "files")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    files: _containers.RepeatedCompositeFieldContainer[FileVersion]
    def __init__(self, task_id: _Optional[str] = ..., files: _Optional[_Iterable[_Union[FileVersion, _Mapping]]] = ...) -> None: ...

class FileVersion(_message.Message):
    __slots__ = ("node_id", "generation")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    generation: int
    def __init__(self, node_id: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class ReadFilesResponse(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[FileData]
    def __init__(self, files: _Optional[_Iterable[_Union[FileData, _Mapping]]] = ...) -> None: ...

class FileData(_message.Message):
    __slots__ = ("data", "error")
    DATA_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    error: _types_pb2.ErrorDetail
    def __init__(self, data: _Optional[bytes] = ..., error: _Optional[_Union[_types_pb2.ErrorDetail, _Mapping]] = ...) -> None: ...
