"""What the filesystem asks of a master: the port, without a word of how it is reached.

`grpc_master_client` speaks it over the wire, `retrying_master_client` adds patience, and the tests' fake
master answers it from memory; one contract suite holds all of them. Messages are those of the wire, so
their comments in proto/ are the reference for each call.

Every call raises the classes of cloudai_model.errors, MasterUnavailable when no answer came in time (the
call may have been carried out: repeat it with the same request id). Cancelled: the same is true.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cloudai_fusefs.wire_chunks import ChunkAnswer, ChunkData
from cloudai_model.limits import REQUEST_ID_BYTES
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types


def new_request_id() -> bytes:
    """By which the master knows a call again that is repeated."""
    return secrets.token_bytes(REQUEST_ID_BYTES)


class MasterClient(Protocol):
    """A master, as one token sees it."""

    async def get_capabilities(self) -> names.GetCapabilitiesResponse: ...

    async def get_usage(self, user: str) -> names.GetUsageResponse: ...

    async def list_users(self) -> list[str]: ...

    async def list_tasks(self, user: str) -> names.ListTasksResponse: ...

    async def list_runs(self, user: str, task: str = "") -> tuple[list[types.Run], int]:
        """All pages of the runs, and the user's revision before the first was read."""
        ...

    async def create_task(self, request: names.CreateTaskRequest) -> types.Task: ...

    async def remove_task(self, request: names.RemoveTaskRequest) -> None: ...

    async def create_run(self, request: names.CreateRunRequest) -> types.Run: ...

    async def remove_run(self, request: names.RemoveRunRequest) -> None: ...

    async def seal_run(self, request: names.SealRunRequest) -> types.Run: ...

    async def create_run_token(
        self, request: names.CreateRunTokenRequest
    ) -> names.CreateRunTokenResponse: ...

    async def list_tree(self, task_id: str, page_token: str = "") -> names.ListTreeResponse:
        """One page."""
        ...

    async def get_manifest(self, task_id: str, node_id: int, generation: int) -> list[types.Chunk]:
        """All pages of a file's manifest."""
        ...

    async def commit_nodes(self, request: names.CommitNodesRequest) -> names.CommitNodesResponse: ...

    async def append_file(self, request: names.AppendFileRequest) -> names.AppendFileResponse: ...

    async def link(self, request: names.LinkRequest) -> names.LinkResponse: ...

    async def rename(self, request: names.RenameRequest) -> names.RenameResponse: ...

    async def remove(self, request: names.RemoveRequest) -> names.RemoveResponse: ...

    async def remove_nodes(self, request: names.RemoveNodesRequest) -> names.RemoveNodesResponse: ...

    def watch(
        self, request: names.WatchRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[names.WatchResponse]]:
        """The stream, for as long as the context is open.

        The iterator raises MasterUnavailable when the stream breaks or falls silent for longer than the
        master promises, and the other errors as calls do.
        """
        ...

    async def find_missing_chunks(self, task_id: str, digests: Sequence[bytes]) -> set[bytes]: ...

    async def put_chunk(self, task_id: str, digest: bytes, data: bytes | memoryview) -> None: ...

    async def read_chunk(
        self, task_id: str, node_id: int, generation: int, chunk_index: int, *, verify: bool = False
    ) -> ChunkAnswer:
        """One whole chunk as the master sent it, with the digests of its blocks: not yet verified here.

        `verify`: the master compares them with the digest first, and raises ChunkDamaged.
        """
        ...

    async def read_range(
        self,
        task_id: str,
        node_id: int,
        generation: int,
        chunk_index: int,
        offset_bytes: int,
        length_bytes: int,
        *,
        with_block_digests: bool,
    ) -> ChunkData:
        """A range of a chunk, not verified, and on request the digests of all blocks of the chunk."""
        ...

    async def read_files(self, task_id: str, files: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """The contents of files of one chunk each, by (node id, generation), not verified.

        None for one that cannot be read so. Shorter than asked for when the answer was full.
        """
        ...
