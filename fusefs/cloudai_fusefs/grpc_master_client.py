"""The MasterClient that speaks gRPC: the one module of the filesystem that imports it.

gRPC's own threads carry the calls; a done-callback wakes the trio task that waits. Import it only in a
process that will not fork afterwards.

Promises: every call ends within its deadline; a watch that is silent for longer than the master promises
ends; cancelling a task cancels its call at the master. Errors are those of cloudai_model.errors, converted
here alone.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final

import grpc
import grpc._common
import trio
from google.rpc.status_pb2 import Status

from cloudai_fusefs.token_source import TokenSource
from cloudai_fusefs.wire_chunks import (
    ChunkAnswer,
    ChunkData,
    chunk_data_from_wire,
    put_chunk_message,
    range_request,
    whole_chunk_from_wire,
    whole_chunk_request,
)
from cloudai_fusefs.wire_errors import error_from_detail
from cloudai_model.errors import (
    CloudAIError,
    InternalError,
    InvalidRequest,
    MasterUnavailable,
    NotSupported,
    Unauthenticated,
)
from cloudai_model.limits import BLOCK_BYTES, FIND_MISSING_DIGESTS_MAX, MESSAGE_BYTES_MAX
from cloudai_proto.storage.v1 import chunks_pb2 as chunks
from cloudai_proto.storage.v1 import chunks_pb2_grpc, names_pb2_grpc
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

DEADLINE_SECONDS_DEFAULT: Final = 30.0

WATCH_SILENCE_SECONDS_MAX: Final = 30.0
"""The master promises a message every ten seconds; two may be late."""

WATCH_MESSAGES_AHEAD_MAX: Final = 4
"""Messages of a watch that wait for their reader; then the stream is held, and by flow control the master."""

THREAD_JOIN_SECONDS: Final = 2.0

# gRPC wakes a thread that waits for a message ten times a second, so that a main thread sees its signals. The threads
# that wait here are none: for each watch that was 0.8 ms of CPU a second.
grpc._common.MAXIMUM_WAIT_TIMEOUT = WATCH_SILENCE_SECONDS_MAX

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", 64 * 1024),
    # A master that is back is noticed within two seconds; gRPC's default is two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A network that swallows packets is noticed in 30 s, also between calls. gRPC holds its pings to a timeout of
    # their own, a minute unless it is set. Not less than 20 s, which is the master's too: on a slow link a ping waits
    # behind a chunk, and with 10 s one of 3 Mbit/s was given up while it worked.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Repeating a call is ours to decide: gRPC's retry buffer holds 256 KiB, a chunk is 4 MiB.
    ("grpc.enable_retries", 0),
    # Each client has connections of its own, so that closing one closes them.
    ("grpc.use_local_subchannel_pool", 1),
)

_ERROR_BY_CODE: Final[dict[grpc.StatusCode, type[CloudAIError]]] = {
    grpc.StatusCode.UNAVAILABLE: MasterUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: MasterUnavailable,
    grpc.StatusCode.CANCELLED: MasterUnavailable,
    # Too many calls at once. (A message over the limit has the same code: see _to_error.)
    grpc.StatusCode.RESOURCE_EXHAUSTED: MasterUnavailable,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}
"""What a status without our details means: it comes from gRPC itself, or from something that is no master."""


class GrpcMasterClient:
    """A MasterClient over one gRPC channel. Used on the trio loop that enters its context, and no other."""

    def __init__(
        self,
        address: str,
        *,
        token_provider: Callable[[], str],
        insecure: bool,
        root_certificates: bytes | None = None,
        call_deadline_seconds: float = DEADLINE_SECONDS_DEFAULT,
    ) -> None:
        """Connects with the first call, not here.

        `token_provider` may block and raise OSError: it is called in a worker thread, at first and whenever the
        master refuses the token. `insecure` sends the token in the clear, for a master on the loopback.
        `root_certificates` are PEM; None is those that gRPC comes with.
        """
        if insecure:
            self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(root_certificates)
            self._channel = grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
        # The generated stubs have no types: the methods below give them back.
        self._names: Any = names_pb2_grpc.NamesStub(self._channel)  # type: ignore[no-untyped-call]
        self._chunks: Any = chunks_pb2_grpc.ChunksStub(self._channel)  # type: ignore[no-untyped-call]
        # Not the stub's: those would copy the chunk out of the message, or into it once more.
        read_request = chunks.ReadChunkRequest.SerializeToString
        self._read_chunk = self._chunk_method("ReadChunk", read_request, whole_chunk_from_wire)
        self._read_range = self._chunk_method("ReadChunk", read_request, chunk_data_from_wire)
        self._put_chunk = self._chunk_method("PutChunk", None, chunks.PutChunkResponse.FromString)
        self._tokens = TokenSource(token_provider)
        self._deadline_seconds = call_deadline_seconds

    def _chunk_method(
        self, name: str, serializer: Callable[[Any], bytes] | None, deserializer: Callable[[bytes], Any]
    ) -> Any:
        """A call of the Chunks service; without a serializer it takes the request encoded."""
        return self._channel.unary_unary(
            f"/{chunks.DESCRIPTOR.services_by_name['Chunks'].full_name}/{name}",
            request_serializer=serializer,
            response_deserializer=deserializer,
        )

    async def __aenter__(self) -> GrpcMasterClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends calls under way with MasterUnavailable and closes the connection. Not cancellable."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._channel.close)

    # Who is there, and the managed levels.

    async def get_capabilities(self) -> names.GetCapabilitiesResponse:
        response: names.GetCapabilitiesResponse = await self._call(
            self._names.GetCapabilities, names.GetCapabilitiesRequest()
        )
        return response

    async def get_usage(self, user: str) -> names.GetUsageResponse:
        response: names.GetUsageResponse = await self._call(
            self._names.GetUsage, names.GetUsageRequest(user=user)
        )
        return response

    async def list_users(self) -> list[str]:
        response: names.ListUsersResponse = await self._call(self._names.ListUsers, names.ListUsersRequest())
        return list(response.users)

    async def list_tasks(self, user: str) -> names.ListTasksResponse:
        response: names.ListTasksResponse = await self._call(
            self._names.ListTasks, names.ListTasksRequest(user=user)
        )
        return response

    async def list_runs(self, user: str, task: str = "") -> tuple[list[types.Run], int]:
        request = names.ListRunsRequest(user=user, task=task)
        found: list[types.Run] = []
        while True:
            page: names.ListRunsResponse = await self._call(self._names.ListRuns, request)
            found.extend(page.runs)
            if not page.next_page_token:
                return found, page.revision
            request.page_token = page.next_page_token

    async def create_task(self, request: names.CreateTaskRequest) -> types.Task:
        response: names.CreateTaskResponse = await self._call(self._names.CreateTask, request)
        return response.task

    async def remove_task(self, request: names.RemoveTaskRequest) -> None:
        await self._call(self._names.RemoveTask, request)

    async def create_run(self, request: names.CreateRunRequest) -> types.Run:
        response: names.CreateRunResponse = await self._call(self._names.CreateRun, request)
        return response.run

    async def remove_run(self, request: names.RemoveRunRequest) -> None:
        await self._call(self._names.RemoveRun, request)

    async def seal_run(self, request: names.SealRunRequest) -> types.Run:
        response: names.SealRunResponse = await self._call(self._names.SealRun, request)
        return response.run

    async def create_run_token(self, request: names.CreateRunTokenRequest) -> names.CreateRunTokenResponse:
        response: names.CreateRunTokenResponse = await self._call(self._names.CreateRunToken, request)
        return response

    # Inside a run.

    async def list_tree(self, task_id: str, page_token: str = "") -> names.ListTreeResponse:
        request = names.ListTreeRequest(task_id=task_id, page_token=page_token, takes_changes=True)
        response: names.ListTreeResponse = await self._call(self._names.ListTree, request)
        return response

    async def get_manifest(self, task_id: str, node_id: int, generation: int) -> list[types.Chunk]:
        found: list[types.Chunk] = []
        while True:
            request = names.GetManifestRequest(
                task_id=task_id, node_id=node_id, generation=generation, first_chunk=len(found)
            )
            page: names.GetManifestResponse = await self._call(self._names.GetManifest, request)
            found.extend(page.chunks)
            if len(found) >= page.chunk_count or not page.chunks:
                return found

    async def commit_nodes(self, request: names.CommitNodesRequest) -> names.CommitNodesResponse:
        response: names.CommitNodesResponse = await self._call(self._names.CommitNodes, request)
        return response

    async def append_file(self, request: names.AppendFileRequest) -> names.AppendFileResponse:
        response: names.AppendFileResponse = await self._call(self._names.AppendFile, request)
        return response

    async def link(self, request: names.LinkRequest) -> names.LinkResponse:
        response: names.LinkResponse = await self._call(self._names.Link, request)
        return response

    async def rename(self, request: names.RenameRequest) -> names.RenameResponse:
        response: names.RenameResponse = await self._call(self._names.Rename, request)
        return response

    async def remove(self, request: names.RemoveRequest) -> names.RemoveResponse:
        response: names.RemoveResponse = await self._call(self._names.Remove, request)
        return response

    async def remove_nodes(self, request: names.RemoveNodesRequest) -> names.RemoveNodesResponse:
        response: names.RemoveNodesResponse = await self._call(self._names.RemoveNodes, request)
        return response

    # Chunks.

    async def find_missing_chunks(self, task_id: str, digests: Sequence[bytes]) -> set[bytes]:
        missing: set[bytes] = set()
        for start in range(0, len(digests), FIND_MISSING_DIGESTS_MAX):
            request = chunks.FindMissingChunksRequest(
                task_id=task_id, digests=digests[start : start + FIND_MISSING_DIGESTS_MAX]
            )
            page: chunks.FindMissingChunksResponse = await self._call(self._chunks.FindMissingChunks, request)
            missing.update(page.missing_digests)
        return missing

    async def put_chunk(self, task_id: str, digest: bytes, data: bytes | memoryview) -> None:
        if len(data) < BLOCK_BYTES:
            message = put_chunk_message(task_id, digest, data)
        else:
            message = await trio.to_thread.run_sync(put_chunk_message, task_id, digest, data)
        await self._call(self._put_chunk, message)

    async def read_chunk(
        self, task_id: str, node_id: int, generation: int, chunk_index: int, *, verify: bool = False
    ) -> ChunkAnswer:
        request = whole_chunk_request(task_id, node_id, generation, chunk_index, verify=verify)
        response: ChunkAnswer = await self._call(self._read_chunk, request)
        return response

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
        response: ChunkData = await self._call(self._read_range, request)
        return response

    async def read_files(self, task_id: str, files: Sequence[tuple[int, int]]) -> list[bytes | None]:
        request = chunks.ReadFilesRequest(task_id=task_id)
        for node_id, generation in files:
            request.files.add(node_id=node_id, generation=generation)
        response: chunks.ReadFilesResponse = await self._call(self._chunks.ReadFiles, request)
        return [None if file.HasField("error") else file.data for file in response.files]

    # Watching.

    @asynccontextmanager
    async def watch(self, request: names.WatchRequest) -> AsyncIterator[AsyncIterator[names.WatchResponse]]:
        """As MasterClient.watch; the first message, or the refusal, has come when the context is entered."""
        token = await self._tokens.current()
        stream = _WatchStream(self._names.Watch(request, metadata=_metadata_of(token)))
        try:
            first = await stream.receive()
            if isinstance(first, Unauthenticated):
                new_token = await self._tokens.another_than(token)
                if new_token is not None:
                    await stream.aclose()
                    stream = _WatchStream(self._names.Watch(request, metadata=_metadata_of(new_token)))
                    first = await stream.receive()
            async with aclosing(_messages(first, stream)) as messages:
                yield messages
        finally:
            await stream.aclose()

    # How a call is made.

    async def _call(self, method: Any, request: Any) -> Any:
        """The response. A refused token is read again, once. Cancelled: so is the call."""
        token = await self._tokens.current()
        try:
            return await self._call_once(method, request, token)
        except Unauthenticated:
            new_token = await self._tokens.another_than(token)
            if new_token is None:
                raise
        return await self._call_once(method, request, new_token)

    async def _call_once(self, method: Any, request: Any, token: str) -> Any:
        loop = trio.lowlevel.current_trio_token()
        answered = trio.Event()

        def wake(_: object) -> None:
            # The loop may be over by now, and the process about to end.
            with suppress(trio.RunFinishedError):
                loop.run_sync_soon(answered.set)

        try:
            call = method.future(
                request,
                timeout=self._deadline_seconds,
                metadata=_metadata_of(token),
                wait_for_ready=False,
            )
        except ValueError as error:
            raise MasterUnavailable("the client is closed") from error
        call.add_done_callback(wake)
        try:
            await answered.wait()
        finally:
            call.cancel()
        try:
            return call.result()
        except grpc.RpcError as error:
            raise _to_error(error) from None
        except grpc.FutureCancelledError:
            raise MasterUnavailable("the client was closed") from None


def _metadata_of(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


class _WatchStream:
    """A server stream read by a thread of its own, a few messages ahead.

    Invariant: at most WATCH_MESSAGES_AHEAD_MAX messages are on their way to the receiver, and one outcome.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._loop = trio.lowlevel.current_trio_token()
        self._slots = threading.Semaphore(WATCH_MESSAGES_AHEAD_MAX)
        self._closing = False
        self._send, self._receive = trio.open_memory_channel[names.WatchResponse | CloudAIError](
            WATCH_MESSAGES_AHEAD_MAX + 1
        )
        self._thread = threading.Thread(target=self._pump, name="watch", daemon=True)
        self._thread.start()

    async def receive(self) -> names.WatchResponse | CloudAIError:
        """The next message, or why there is none. Cancelled: no message is lost."""
        with trio.move_on_after(WATCH_SILENCE_SECONDS_MAX):
            message = await self._receive.receive()
            self._slots.release()
            return message
        return MasterUnavailable("the watch fell silent", seconds=WATCH_SILENCE_SECONDS_MAX)

    async def aclose(self) -> None:
        """Ends the stream and its thread. Not cancellable; bounded by THREAD_JOIN_SECONDS."""
        self._closing = True
        self._call.cancel()
        self._slots.release()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join, THREAD_JOIN_SECONDS)
        self._send.close()
        self._receive.close()

    def _pump(self) -> None:
        outcome: CloudAIError = MasterUnavailable("the watch ended")
        try:
            for message in self._call:
                self._slots.acquire()
                if self._closing:
                    return
                self._deliver(message)
        except grpc.RpcError as error:
            outcome = _to_error(error)
        if not self._closing:
            self._deliver(outcome)

    def _deliver(self, message: names.WatchResponse | CloudAIError) -> None:
        def send() -> None:
            # Closed meanwhile: nobody wants it.
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                self._send.send_nowait(message)

        with suppress(trio.RunFinishedError):
            self._loop.run_sync_soon(send)


async def _messages(
    first: names.WatchResponse | CloudAIError, stream: _WatchStream
) -> AsyncGenerator[names.WatchResponse, None]:
    message = first
    while not isinstance(message, CloudAIError):
        yield message
        message = await stream.receive()
    raise message


def _to_error(error: grpc.RpcError) -> CloudAIError:
    """The error of a failed call: what the master said, or else what gRPC's own status means."""
    # Every RpcError that reaches a caller is a call too; the types do not say so.
    call: Any = error
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for packed in Status.FromString(value).details:
                detail = types.ErrorDetail()
                if packed.Unpack(detail):
                    return error_from_detail(detail)
    code, text = call.code(), call.details() or ""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return InvalidRequest("the message is over the limit", limit_bytes=MESSAGE_BYTES_MAX)
    return _ERROR_BY_CODE.get(code, InternalError)(text[:200], status=code.name)
