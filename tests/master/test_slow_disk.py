"""Chunks that wait for the disk hold up nothing else: over a wire, with a store that stands still."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import grpc

from cloudai_master.rpc import CHUNK_THREADS, RpcServer
from cloudai_master.service import StorageService
from cloudai_master.tokens import Tokens
from cloudai_master.wakeups import Wakeups
from cloudai_model.chunks import digest_of
from cloudai_proto.storage.v1 import chunks_pb2 as chunks
from cloudai_proto.storage.v1 import names_pb2 as names
from fakes.memory_chunk_store import MemoryChunkStore
from support.local_storage import LocalStorage
from support.storage_requests import USER, file_commit, request_id

PUTS = 30
SECONDS_MAX = 20


class StillChunkStore(MemoryChunkStore):
    """Puts end once `goes_on` is set, but for what comes inside a commit."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.waiting_count = 0

    def put(self, owner: str, chunks: Mapping[bytes, bytes | memoryview]) -> None:
        if threading.current_thread().name.startswith("chunk"):
            self.waiting_count += 1
            assert self.goes_on.wait(SECONDS_MAX)
        super().put(owner, chunks)


def test_log_is_committed_while_every_chunk_waits_for_the_disk(storage: LocalStorage) -> None:
    asyncio.run(commit_beside_chunks(storage))


async def commit_beside_chunks(storage: LocalStorage) -> None:
    store = StillChunkStore()
    tokens = Tokens(storage.database, b"k" * 32)
    token = tokens.create(USER, valid_seconds=3600)
    metadata = (("authorization", f"Bearer {token}"),)
    service = StorageService(storage.database, store, tokens)
    server = RpcServer(service, tokens, Wakeups(asyncio.get_running_loop()))
    port = await server.start("127.0.0.1:0", None)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        put: Any = channel.unary_unary("/cloudai.storage.v1.Chunks/PutChunk")
        commit: Any = channel.unary_unary("/cloudai.storage.v1.Names/CommitNodes")
        puts = []
        for number in range(PUTS):
            data = b"%d" % number
            request = chunks.PutChunkRequest(
                task_id=storage.run.task_id, digest=digest_of(data), data=data
            ).SerializeToString()
            puts.append(asyncio.ensure_future(put(request, metadata=metadata, timeout=SECONDS_MAX)))
        while store.waiting_count < CHUNK_THREADS:
            await asyncio.sleep(0.01)
        request = names.CommitNodesRequest(
            request_id=request_id(), task_id=storage.run.task_id, commits=[file_commit(b"train.log", b"line")]
        ).SerializeToString()

        answer = names.CommitNodesResponse.FromString(
            await commit(request, metadata=metadata, timeout=SECONDS_MAX)
        )

        assert [result.node.size_bytes for result in answer.results] == [4]
        assert not any(one.done() for one in puts)
        store.goes_on.set()
        await asyncio.gather(*puts)
    await server.stop(0)
