"""A master in memory, for fast and deterministic tests of what uses a MasterClient.

It fakes the wire, the process and the disks, and keeps the rules: the names are the real ones of
cloudai_master on an SQLite database in memory. Calls are carried out at once on the caller's loop, without a
thread, so an autojump clock works; a test may take it away, slow it, fill its disk, damage its chunks and
count what it was asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TypeVar

import trio
from google.protobuf.message import Message
from sqlalchemy import delete, insert

from cloudai_fusefs.wire_chunks import (
    ChunkAnswer,
    ChunkData,
    chunk_data_from_wire,
    range_request,
    whole_chunk_from_wire,
    whole_chunk_request,
)
from cloudai_fusefs.wire_errors import error_from_detail
from cloudai_master.authorization import Caller
from cloudai_master.database import Database, Transaction, open_sqlite
from cloudai_master.schema import chunks as chunk_rows
from cloudai_master.schema import metadata, users
from cloudai_master.service import StorageService
from cloudai_master.statuses import to_detail
from cloudai_master.tokens import Tokens
from cloudai_model.errors import CloudAIError, InvalidRequest, MasterUnavailable, Unauthenticated
from cloudai_model.limits import FIND_MISSING_DIGESTS_MAX, MESSAGE_BYTES_MAX
from cloudai_proto.storage.v1 import chunks_pb2 as chunks
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.memory_chunk_store import MemoryChunkStore

HEARTBEAT_SECONDS = 5.0
NEVER_NS = (1 << 63) - 1

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message | bytes)


class FakeMaster:
    """The master; `client` gives each user's or token's view of it. Belongs to one trio loop."""

    def __init__(self) -> None:
        self.store = MemoryChunkStore()
        self.is_away = False
        """True: every call raises MasterUnavailable, as do open watches."""
        self.latency_seconds = 0.0
        """Slept before each call."""
        self.answer_latency_seconds = 0.0
        """Slept after a call has been carried out: going away meanwhile loses its answer alone."""
        self.news_latency_seconds = 0.0
        """Slept before each message of a watch, whose content is of before."""
        self.call_count: Counter[str] = Counter()
        """Calls that arrived, by the name of the MasterClient's method."""
        engine = open_sqlite(None)
        self._database = Database(engine, self._announce)
        with self._database.write() as transaction:
            # What the migrations make (tests/master/test_migrations.py), in a hundredth of their time.
            metadata.create_all(transaction.connection)
        self.service = StorageService(self._database, self.store, Tokens(self._database, b"k" * 32))
        self._changed = trio.Event()

    def client(self, user: str = "user-123", *, admin: bool = False, task_id: str = "") -> FakeMasterClient:
        """A client whose token speaks for this user; the user is made when new."""
        with self._database.write() as transaction:
            if user not in self._users(transaction):
                transaction.connection.execute(
                    insert(users).values(name=user, revision=0, used_bytes=0, created_at_ns=0)
                )
        return FakeMasterClient(self, Caller(user=user, admin=admin, task_id=task_id, expires_at_ns=NEVER_NS))

    def go_away(self) -> None:
        """As if the network were cut; `come_back` ends it."""
        self.is_away = True
        self.wake()

    def come_back(self) -> None:
        self.is_away = False

    def damage_chunks(self) -> None:
        """Flips a bit in every stored chunk: the bytes are not those of their digest any more."""
        for key, data in self.store.chunks.items():
            self.store.chunks[key] = bytes([data[0] ^ 1]) + data[1:]

    def forget_chunks(self) -> None:
        """As if all stored chunks had been collected: nothing refers to one."""
        with self._database.write() as transaction:
            transaction.connection.execute(delete(chunk_rows))
        self.store.chunks.clear()

    def wake(self) -> None:
        """Lets the watches look."""
        self._changed.set()
        self._changed = trio.Event()

    def next_change(self) -> trio.Event:
        """What the next commit sets."""
        return self._changed

    def close(self) -> None:
        self._database.close()

    def _announce(self, transaction: Transaction) -> None:
        if transaction.touched_runs or transaction.touched_users:
            self.wake()

    @staticmethod
    def _users(transaction: Transaction) -> set[str]:
        return set(transaction.connection.execute(users.select().with_only_columns(users.c.name)).scalars())


class FakeMasterClient:
    """A MasterClient of a FakeMaster."""

    def __init__(self, master: FakeMaster, caller: Caller) -> None:
        self._master = master
        self._service = master.service
        self._caller = caller
        self.is_revoked = False
        """True: the token is refused, in open watches too."""

    async def get_capabilities(self) -> names.GetCapabilitiesResponse:
        request = names.GetCapabilitiesRequest()
        return await self._call("get_capabilities", self._service.get_capabilities, request)

    async def get_usage(self, user: str) -> names.GetUsageResponse:
        return await self._call("get_usage", self._service.get_usage, names.GetUsageRequest(user=user))

    async def list_users(self) -> list[str]:
        response = await self._call("list_users", self._service.list_users, names.ListUsersRequest())
        return list(response.users)

    async def list_tasks(self, user: str) -> names.ListTasksResponse:
        return await self._call("list_tasks", self._service.list_tasks, names.ListTasksRequest(user=user))

    async def list_runs(self, user: str, task: str = "") -> tuple[list[types.Run], int]:
        request = names.ListRunsRequest(user=user, task=task)
        found: list[types.Run] = []
        while True:
            page = await self._call("list_runs", self._service.list_runs, request)
            found.extend(page.runs)
            if not page.next_page_token:
                return found, page.revision
            request.page_token = page.next_page_token

    async def create_task(self, request: names.CreateTaskRequest) -> types.Task:
        return (await self._call("create_task", self._service.create_task, request)).task

    async def remove_task(self, request: names.RemoveTaskRequest) -> None:
        await self._call("remove_task", self._service.remove_task, request)

    async def create_run(self, request: names.CreateRunRequest) -> types.Run:
        return (await self._call("create_run", self._service.create_run, request)).run

    async def remove_run(self, request: names.RemoveRunRequest) -> None:
        await self._call("remove_run", self._service.remove_run, request)

    async def seal_run(self, request: names.SealRunRequest) -> types.Run:
        return (await self._call("seal_run", self._service.seal_run, request)).run

    async def create_run_token(self, request: names.CreateRunTokenRequest) -> names.CreateRunTokenResponse:
        return await self._call("create_run_token", self._service.create_run_token, request)

    async def list_tree(self, task_id: str, page_token: str = "") -> names.ListTreeResponse:
        request = names.ListTreeRequest(task_id=task_id, page_token=page_token, takes_changes=True)
        return await self._call("list_tree", self._service.list_tree, request)

    async def get_manifest(self, task_id: str, node_id: int, generation: int) -> list[types.Chunk]:
        found: list[types.Chunk] = []
        while True:
            request = names.GetManifestRequest(
                task_id=task_id, node_id=node_id, generation=generation, first_chunk=len(found)
            )
            page = await self._call("get_manifest", self._service.get_manifest, request)
            found.extend(page.chunks)
            if len(found) >= page.chunk_count:
                return found

    async def commit_nodes(self, request: names.CommitNodesRequest) -> names.CommitNodesResponse:
        return await self._call("commit_nodes", self._service.commit_nodes, request)

    async def append_file(self, request: names.AppendFileRequest) -> names.AppendFileResponse:
        return await self._call("append_file", self._service.append_file, request)

    async def link(self, request: names.LinkRequest) -> names.LinkResponse:
        return await self._call("link", self._service.link, request)

    async def rename(self, request: names.RenameRequest) -> names.RenameResponse:
        return await self._call("rename", self._service.rename, request)

    async def remove(self, request: names.RemoveRequest) -> names.RemoveResponse:
        return await self._call("remove", self._service.remove, request)

    async def remove_nodes(self, request: names.RemoveNodesRequest) -> names.RemoveNodesResponse:
        return await self._call("remove_nodes", self._service.remove_nodes, request)

    async def find_missing_chunks(self, task_id: str, digests: Sequence[bytes]) -> set[bytes]:
        missing: set[bytes] = set()
        for start in range(0, len(digests), FIND_MISSING_DIGESTS_MAX):
            request = chunks.FindMissingChunksRequest(
                task_id=task_id, digests=digests[start : start + FIND_MISSING_DIGESTS_MAX]
            )
            page = await self._call("find_missing_chunks", self._service.find_missing_chunks, request)
            missing.update(page.missing_digests)
        return missing

    async def put_chunk(self, task_id: str, digest: bytes, data: bytes | memoryview) -> None:
        request = chunks.PutChunkRequest(task_id=task_id, digest=digest, data=bytes(data))
        await self._call("put_chunk", self._service.put_chunk, request)

    async def read_chunk(
        self, task_id: str, node_id: int, generation: int, chunk_index: int, *, verify: bool = False
    ) -> ChunkAnswer:
        request = whole_chunk_request(task_id, node_id, generation, chunk_index, verify=verify)
        return whole_chunk_from_wire(await self._read(request))

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
        request = range_request(
            task_id,
            node_id,
            generation,
            chunk_index,
            offset_bytes,
            length_bytes,
            with_block_digests=with_block_digests,
        )
        return chunk_data_from_wire(await self._read(request))

    async def _read(self, request: chunks.ReadChunkRequest) -> bytes:
        return await self._call("read_chunk", self._service.read_chunk, request)

    async def read_files(self, task_id: str, files: Sequence[tuple[int, int]]) -> list[bytes | None]:
        request = chunks.ReadFilesRequest(task_id=task_id)
        for node_id, generation in files:
            request.files.add(node_id=node_id, generation=generation)
        answer = await self._call("read_files", self._service.read_files, request)
        return [None if file.HasField("error") else file.data for file in answer.files]

    @asynccontextmanager
    async def watch(self, request: names.WatchRequest) -> AsyncIterator[AsyncIterator[names.WatchResponse]]:
        async with aclosing(self._messages(request)) as messages:
            yield messages

    async def _messages(self, request: names.WatchRequest) -> AsyncGenerator[names.WatchResponse, None]:
        await self._arrive("watch")
        revision = request.after_revision
        is_due = True
        with _as_on_the_wire():
            watched = self._service.find_watched(self._caller, request)
        while True:
            changed = self._master.next_change()
            self._require_there()
            with _as_on_the_wire():
                response = self._service.read_changes(watched, revision)
            revision = response.revision
            is_news = bool(response.changes) or response.reload
            if is_news or is_due:
                if self._master.news_latency_seconds:
                    await trio.sleep(self._master.news_latency_seconds)
                yield response
            if is_news:
                is_due = False
                continue
            with trio.move_on_after(HEARTBEAT_SECONDS) as waited:
                await changed.wait()
            is_due = waited.cancelled_caught

    async def _call(
        self, name: str, carry_out: Callable[[Caller, RequestT], ResponseT], request: RequestT
    ) -> ResponseT:
        await self._arrive(name)
        if request.ByteSize() > MESSAGE_BYTES_MAX:
            raise InvalidRequest("the message is over the limit", limit_bytes=MESSAGE_BYTES_MAX)
        with _as_on_the_wire():
            # A copy each way: what a test or the master changes afterwards is its own.
            received = type(request).FromString(request.SerializeToString())
            answer = carry_out(self._caller, received)
            if isinstance(answer, Message):
                answer = type(answer).FromString(answer.SerializeToString())
        if self._master.answer_latency_seconds:
            await trio.sleep(self._master.answer_latency_seconds)
            self._require_there()
        return answer

    async def _arrive(self, name: str) -> None:
        self._master.call_count[name] += 1
        await trio.sleep(self._master.latency_seconds)
        self._require_there()

    def _require_there(self) -> None:
        if self._master.is_away:
            raise MasterUnavailable("the test took the master away")
        if self.is_revoked:
            raise Unauthenticated("the token was revoked")


@contextmanager
def _as_on_the_wire() -> Iterator[None]:
    """Errors keep what the wire keeps of them."""
    try:
        yield
    except CloudAIError as error:
        raise error_from_detail(to_detail(error)) from error
