from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

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
    __slots__ = ("task_id", "node_id", "generation", "chunk_index", "offset_bytes", "length_bytes")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    node_id: int
    generation: int
    chunk_index: int
    offset_bytes: int
    length_bytes: int
    def __init__(self, task_id: _Optional[str] = ..., node_id: _Optional[int] = ..., generation: _Optional[int] = ..., chunk_index: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class ReadChunkResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
