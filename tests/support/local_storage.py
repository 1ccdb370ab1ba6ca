"""The storage service on a data directory of its own, without a process and without a wire."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, event

from cloudai_fusefs.wire_errors import error_from_detail
from cloudai_master.authorization import Caller
from cloudai_master.data_dir import DataDir
from cloudai_master.database import Database
from cloudai_master.disk_chunk_store import DiskChunkStore
from cloudai_master.service import StorageService
from cloudai_master.tokens import Tokens
from cloudai_model.chunks import digest_of
from cloudai_proto.storage.v1 import chunks_pb2 as chunks
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.storage_requests import OTHER_USER, USER, chunk_of, file_commit, manifest_commit, request_id

CALLER = Caller(user=USER)
OTHER_CALLER = Caller(user=OTHER_USER)


class Answer(NamedTuple):
    """To ReadChunk, decoded."""

    data: bytes
    block_digests: bytes = b""


def decode(encoded: bytes) -> Answer:
    response = chunks.ReadChunkResponse.FromString(encoded)
    return Answer(response.data, response.block_digests)


class LocalStorage:
    """One master's parts; calls are made on the caller's thread, in `run` if they do not name another."""

    run: types.Run

    def __init__(self, path: Path) -> None:
        """Opens the data directory of a master that is not running, or makes it."""
        self.data_dir = DataDir(path)
        self.database: Database = self.data_dir.open_database()
        self.store = DiskChunkStore(path)
        self.service = StorageService(self.database, self.store, Tokens(self.database, b"k" * 32))

    @classmethod
    def with_run(cls, path: Path) -> LocalStorage:
        """A new one, with two users and a run."""
        storage = cls(path)
        tokens = Tokens(storage.database, b"k" * 32)
        for user in (USER, OTHER_USER):
            tokens.create(user, valid_seconds=3600)
        storage.run = storage.make_run()
        return storage

    def close(self) -> None:
        self.database.close()

    def make_run(self, task: str = "task", caller: Caller = CALLER) -> types.Run:
        request = names.CreateRunRequest(request_id=request_id(), user=caller.user, task=task)
        return self.service.create_run(caller, request).run

    def commit(self, commit: names.NodeCommit, run: types.Run | None = None) -> types.Node:
        request = names.CommitNodesRequest(
            request_id=request_id(), task_id=(run or self.run).task_id, commits=[commit]
        )
        (result,) = self.service.commit_nodes(CALLER, request).results
        if result.HasField("error"):
            raise error_from_detail(result.error)
        return result.node

    def put(self, *data: bytes) -> None:
        for chunk in data:
            request = chunks.PutChunkRequest(task_id=self.run.task_id, digest=digest_of(chunk), data=chunk)
            self.service.put_chunk(CALLER, request)

    def commit_batch(self, files: Sequence[tuple[bytes, bytes]]) -> None:
        """Small files, by path, in one call."""
        request = names.CommitNodesRequest(
            request_id=request_id(),
            task_id=self.run.task_id,
            commits=[file_commit(path, data) for path, data in files],
        )
        results = self.service.commit_nodes(CALLER, request).results
        assert not any(result.HasField("error") for result in results)

    def remove(self, *named: tuple[bytes, types.Node]) -> None:
        """Removes these names of files at the top of the run."""
        for name, node in named:
            request = names.RemoveRequest(
                request_id=request_id(),
                task_id=self.run.task_id,
                node_id=node.node_id,
                parent_node_id=self.run.root_node_id,
                name=name,
            )
            self.service.remove(CALLER, request)

    def remove_run(self, *named: tuple[bytes, types.Node]) -> None:
        """Removes these names, which are all there are, and then the run."""
        self.remove(*named)
        request = names.RemoveRunRequest(request_id=request_id(), task_id=self.run.task_id)
        self.service.remove_run(CALLER, request)

    def commit_file(self, path: bytes, *data: bytes, node: int = 0) -> types.Node:
        """A file of these chunks."""
        self.put(*data)
        return self.commit(manifest_commit(path, data, node=node, place=not node))

    def append(self, node: types.Node, *data: bytes) -> types.Node:
        self.put(*data)
        request = names.AppendFileRequest(
            request_id=request_id(),
            task_id=self.run.task_id,
            node_id=node.node_id,
            expected_generation=node.generation,
            chunks=map(chunk_of, data),
            size_bytes=node.size_bytes + sum(map(len, data)),
        )
        return self.service.append_file(CALLER, request).node

    def read_request(
        self, node: types.Node, chunk_index: int = 0, *, generation: int = 0, **fields: Any
    ) -> chunks.ReadChunkRequest:
        return chunks.ReadChunkRequest(
            task_id=self.run.task_id,
            node_id=node.node_id,
            generation=generation or node.generation,
            chunk_index=chunk_index,
            **fields,
        )

    def read(self, node: types.Node, chunk_index: int = 0, **fields: Any) -> Answer:
        request = self.read_request(node, chunk_index, **fields)
        return decode(self.service.read_chunk(CALLER, request))

    def read_at_once(self, node: types.Node, chunk_index: int = 0, **fields: Any) -> Answer | None:
        request = self.read_request(node, chunk_index, **fields)
        answer = self.service.read_chunk_at_once(CALLER, request)
        return None if answer is None else decode(answer)

    def chunk_path(self, data: bytes) -> Path:
        """The file that holds these bytes as a chunk of USER."""
        name = digest_of(data).hex()
        return self.data_dir.path / "chunks" / USER / name[:2] / name

    def damage(self, data: bytes) -> None:
        """Flips a bit of the stored chunk."""
        path = self.chunk_path(data)
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


@contextmanager
def counted_queries() -> Iterator[list[str]]:
    """The SQL statements of any database during the block, without those that begin and end transactions."""
    statements: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if not statement.startswith("BEGIN"):
            statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)
