"""The wire: the .proto's services on grpc.aio. The one module that knows gRPC, with `server` which starts it.

The handlers are made from the services' descriptors: each call's token is checked, then its request is taken (to
gRPC, a stream of one message: of other calls it takes the message first), and its method of StorageService runs in
a worker thread; what it raises becomes a status. The event loop itself never blocks.

Promises: a call that is refused says why in google.rpc.Status details; an unexpected error is one traceback
in the log and INTERNAL at the client; a watcher that reads slowly costs one batch of memory.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from cloudai_master.authorization import Caller
from cloudai_master.chunk_messages import decode_put_chunk_request
from cloudai_master.database import CONNECTIONS_MAX
from cloudai_master.file_reader import AT_ONCE_ANSWER_BYTES_MAX, read_chunk_bytes_max
from cloudai_master.intake import Intake, NoMessage
from cloudai_master.message_budget import MessageBudget
from cloudai_master.service import StorageService, Watched
from cloudai_master.statuses import to_status
from cloudai_master.tokens import Tokens
from cloudai_master.wakeups import Wakeups
from cloudai_model.errors import CloudAIError, InternalError, InvalidRequest, MasterUnavailable
from cloudai_model.limits import (
    CHUNK_BYTES_MAX,
    DIGEST_BYTES,
    MANIFEST_PAGE_CHUNKS_MAX,
    MESSAGE_BYTES_MAX,
    MIB,
    READ_FILES_BYTES_MAX,
    TREE_PAGE_BYTES_MAX,
)
from cloudai_proto.storage.v1 import chunks_pb2, names_pb2

log = logging.getLogger(__name__)

SERVICES: Final[tuple[ServiceDescriptor, ...]] = (
    names_pb2.DESCRIPTOR.services_by_name["Names"],
    chunks_pb2.DESCRIPTOR.services_by_name["Chunks"],
)

WORKER_THREADS: Final = 16
"""Enough to keep a disk busy with syncs; fewer than the database's connections."""

CHUNK_THREADS: Final = 12
"""Of PutChunk, which waits for the disk: what is published, read or asked does not stand behind a checkpoint."""

assert WORKER_THREADS + CHUNK_THREADS < CONNECTIONS_MAX

CALLS_MAX: Final = 1024
"""Open calls, watch streams among them. What comes beyond is refused as unavailable, not queued."""

CALLS_PER_CONNECTION_MAX: Final = 256
"""A mount has 64 of open runs, some dozens for contents, and one for each of its handlers that asks for names: of 512
seldom many. The next one waits at its own end."""

assert 2 * CALLS_PER_CONNECTION_MAX < CALLS_MAX

HEARTBEAT_SECONDS: Final = 5.0
"""The .proto promises a message every ten seconds; half of it leaves room for a slow network."""

WATCH_REST_SECONDS: Final = 0.05
"""After a message of a run's changes, what comes meanwhile is one message: `rm -r` of 2,000 files is not so many. Of
a user's, where a mount cannot tell late news from new ones, each is sent at once."""

TOKEN_CHECK_SECONDS: Final = 1.0
"""How often an open stream looks whether its token was revoked."""

# A read that is answered at once is counted by nobody: this is what all of them can hold.
assert CALLS_MAX * AT_ONCE_ANSWER_BYTES_MAX < 67 * MIB

LONG_ANSWERS: Final = {
    "ReadFiles": READ_FILES_BYTES_MAX,
    "ListTree": TREE_PAGE_BYTES_MAX,
    "GetManifest": MANIFEST_PAGE_CHUNKS_MAX * (DIGEST_BYTES + 16),
}
"""The calls whose answers are counted while they are in memory, and how long they are, about, at most. So are those
of ReadChunk, each by its request. Those of others are so short that CALLS_MAX of them are no burden."""

ANSWERS_BYTES_MAX: Final = 96 * MIB
"""Of them as they are sent; gRPC holds each a second time while it sends it."""

ANSWERS_SHARE_OF_FREE: Final = 1 / 4
"""What a connection may hold: alone it has room for five full chunks, and a dozen of them that take nothing still leave
room for others."""

assert CHUNK_BYTES_MAX < ANSWERS_BYTES_MAX

METADATA_BYTES_MAX: Final = 64 * 1024

CALLS_WAITING_MAX: Final = 1024
"""Calls that the event loop has not come to yet; more are refused by gRPC."""

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    # One client cannot take all there are.
    ("grpc.max_concurrent_streams", CALLS_PER_CONNECTION_MAX),
    ("grpc.server.max_pending_requests_hard_limit", CALLS_WAITING_MAX),
    # Else a peer that is quick raises the window of each of its calls, up to 1 GiB that nobody has asked for. A
    # message that is asked for has a window of 1 MiB all the same.
    ("grpc.http2.bdp_probe", 0),
    # Two masters on one port would each get some of the calls.
    ("grpc.so_reuseport", 0),
    # Mounts ping every ten seconds to notice a dead network; gRPC's default ends such connections.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # A client that is gone or stands still is noticed within half a minute, and its answers leave the memory.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
)

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class RpcServer:
    """A gRPC server of the storage service, with health and reflection."""

    def __init__(self, service: StorageService, tokens: Tokens, wakeups: Wakeups) -> None:
        self._service = service
        self._tokens = tokens
        self._wakeups = wakeups
        self._workers = ThreadPoolExecutor(WORKER_THREADS, thread_name_prefix="call")
        self._chunk_workers = ThreadPoolExecutor(CHUNK_THREADS, thread_name_prefix="chunk")
        self._answers = MessageBudget(ANSWERS_BYTES_MAX, share_of_free=ANSWERS_SHARE_OF_FREE)
        self._intake = Intake()
        self._stopping = False
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)
        self._server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=CALLS_MAX)
        self._health = health.aio.HealthServicer()
        for descriptor in SERVICES:
            handlers = {method.name: self._handler(method) for method in descriptor.methods}
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(descriptor.full_name, handlers),)
            )
        names = (*(one.full_name for one in SERVICES), health.SERVICE_NAME, reflection.SERVICE_NAME)
        self._add_open_service(health_pb2.DESCRIPTOR.services_by_name["Health"], self._health)
        self._add_open_service(
            reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
            reflection.aio.ReflectionServicer(names),
        )

    async def start(self, address: str, certificate: tuple[bytes, bytes] | None) -> int:
        """Listens, and returns the port, which the system chooses when the address says 0.

        `certificate` is (private key, certificate chain) in PEM; None is no TLS. Raises ConnectionError
        when the address is taken or the certificate is none.
        """
        try:
            if certificate is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, grpc.ssl_server_credentials([certificate]))
        except RuntimeError as error:
            raise ConnectionError(f"cannot listen on {address}") from error
        await self._server.start()
        for name in ("", *(descriptor.full_name for descriptor in SERVICES)):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_seconds: float) -> None:
        """Takes no new calls, ends watch streams, and lets the others finish within the time."""
        await self._health.enter_graceful_shutdown()
        self._stopping = True
        self._wakeups.wake_all()
        await self._server.stop(grace_seconds)
        self._workers.shutdown()
        self._chunk_workers.shutdown()

    def _add_open_service(self, descriptor: ServiceDescriptor, servicer: object) -> None:
        """A service that needs no token: what it is asked is short."""
        handlers = {
            method.name: self._open_handler(method, getattr(servicer, method.name))
            for method in descriptor.methods
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(descriptor.full_name, handlers),)
        )

    def _open_handler(
        self, method: MethodDescriptor, respond: Callable[..., Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        decode = GetMessageClass(method.input_type).FromString
        encode = GetMessageClass(method.output_type).SerializeToString

        async def take(context: Context) -> Message:
            try:
                return await self._take_open_request(decode, context)
            except Exception as error:  # noqa: BLE001 (as in _unary)
                await _abort(context, error)

        async def take_all(context: Context) -> AsyncIterator[Message]:
            try:
                while True:
                    yield await self._take_open_request(decode, context)
            except NoMessage:
                return
            except CloudAIError as error:
                await _abort(context, error)

        async def answer(_: object, context: Context) -> Message:
            response: Message = await respond(await take(context), context)
            return response

        async def answer_with_stream(_: object, context: Context) -> None:
            await respond(await take(context), context)

        async def answer_stream(_: object, context: Context) -> AsyncIterator[Message]:
            async for response in respond(take_all(context), context):
                yield response

        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(answer_stream, response_serializer=encode)
        if method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(answer_with_stream, response_serializer=encode)
        return grpc.stream_unary_rpc_method_handler(answer, response_serializer=encode)

    async def _take_open_request(self, decode: Callable[[bytes], Message], context: Context) -> Message:
        return _decode(await self._intake.take_from_stranger(context.peer(), context.read), decode)

    def _handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Takes and gives bytes: messages are decoded and encoded by the worker threads, not by the loop."""
        if method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(self._watch)
        decode: Callable[[bytes], object] = GetMessageClass(method.input_type).FromString
        if method.name == "PutChunk":
            decode = decode_put_chunk_request
        return grpc.stream_unary_rpc_method_handler(self._unary(method.name, decode))

    async def _take_request(self, call: str, token: str, context: Context) -> bytes:
        """The request's bytes, once the token was found good and there is room. Raises Unauthenticated."""
        caller = self._tokens.checked_lately(token)
        if caller is None:
            caller = await self._in_worker(lambda: self._tokens.check(token))
        encoded, room = await self._intake.take(call, caller.user, context.read)
        # (The types want a class of their own.)
        context.add_done_callback(lambda _: room.release())  # type: ignore[arg-type]
        return encoded

    def _unary(
        self, name: str, decode: Callable[[bytes], object]
    ) -> Callable[[object, Context], Awaitable[bytes]]:
        carry_out: Callable[[Caller, Any], Message | bytes] = getattr(self._service, _snake_case(name))
        threads = self._chunk_workers if name == "PutChunk" else self._workers
        at_once = self._read_chunk_at_once if name == "ReadChunk" else _never

        def work(token: str, encoded: bytes) -> bytes:
            response = carry_out(self._tokens.check(token), _decode(encoded, decode))
            return response if isinstance(response, bytes) else response.SerializeToString()

        async def answer(_: object, context: Context) -> bytes:
            try:
                token = _token_of(context)
                encoded = await self._take_request(name, token, context)
                response = at_once(token, encoded)
                if response is not None:
                    return response
                in_turn = partial(work, token, encoded)
                size_bytes_max = answer_bytes_max(name, encoded)
                if size_bytes_max is None:
                    return await self._in_worker(in_turn, threads)
                room = await self._answers.reserve(context.peer(), size_bytes_max)
                # When the last byte is sent, or the client is gone. (The types want a class of their own.)
                context.add_done_callback(lambda _: room.release())  # type: ignore[arg-type]
                response = await self._in_worker(in_turn)
                room.shrink(len(response))
            except Exception as error:  # noqa: BLE001 (the edge of the process: every error becomes a status)
                await _abort(context, error)
            return response

        return answer

    def _read_chunk_at_once(self, token: str, encoded: bytes) -> bytes | None:
        """The answer, if everything it takes is in memory; None: it is for a worker thread."""
        caller = self._tokens.checked_lately(token)
        if caller is None:
            return None
        request = _decode(encoded, chunks_pb2.ReadChunkRequest.FromString)
        return self._service.read_chunk_at_once(caller, request)

    async def _watch(self, _: object, context: Context) -> AsyncIterator[bytes]:
        try:
            token = _token_of(context)
            encoded = await self._take_request("Watch", token, context)
            async for response in self._changes(_decode(encoded, names_pb2.WatchRequest.FromString), token):
                yield response.SerializeToString()
        except Exception as error:  # noqa: BLE001 (as in _unary)
            await _abort(context, error)

    async def _changes(
        self, request: names_pb2.WatchRequest, token: str
    ) -> AsyncIterator[names_pb2.WatchResponse]:
        """The stream's messages. gRPC's flow control holds it between two of them when the reader is slow."""
        loop = asyncio.get_running_loop()
        watched = await self._in_worker(
            lambda: self._service.find_watched(self._tokens.check(token), request)
        )
        revision = request.after_revision
        next_message_at = loop.time()
        with self._wakeups.listening(watched) as changed:
            while not self._stopping:
                # Cleared before reading: what is committed after the read sets it again.
                changed.clear()
                response = await self._in_worker(partial(self._read_changes, token, watched, revision))
                is_news = bool(response.changes) or response.reload
                revision = response.revision
                if is_news or loop.time() >= next_message_at:
                    yield response
                    next_message_at = loop.time() + HEARTBEAT_SECONDS
                if is_news:
                    if watched.kind == "run":
                        await asyncio.sleep(WATCH_REST_SECONDS)
                    continue
                try:
                    await asyncio.wait_for(changed.wait(), TOKEN_CHECK_SECONDS)
                except TimeoutError:
                    continue
        raise MasterUnavailable("the master is stopping")

    def _read_changes(self, token: str, watched: Watched, revision: int) -> names_pb2.WatchResponse:
        self._tokens.check(token)
        return self._service.read_changes(watched, revision)

    async def _in_worker(self, work: Callable[[], T], threads: ThreadPoolExecutor | None = None) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads or self._workers, work)


def _is_news(record: logging.LogRecord) -> bool:
    """A client that goes away while it is being answered, or a call given up, is none; gRPC logs a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ not in ("ExecuteBatchError", "CancelledError")


def answer_bytes_max(name: str, encoded: bytes) -> int | None:
    """How much room the answer to this call needs in memory; None: it is not counted. Raises InvalidRequest."""
    if name == "ReadChunk":
        return read_chunk_bytes_max(_decode(encoded, chunks_pb2.ReadChunkRequest.FromString))
    return LONG_ANSWERS.get(name)


def _never(_: str, __: bytes) -> None:
    """What is not answered at once."""


def _decode(encoded: bytes, decode: Callable[[bytes], T]) -> T:
    """Raises InvalidRequest for bytes that are no such message."""
    try:
        return decode(encoded)
    except DecodeError:
        raise InvalidRequest("the bytes are not a message of this call") from None


def _token_of(context: Context) -> str:
    """The bearer token of the call, or nothing."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str) and value.startswith("Bearer "):
            return value.removeprefix("Bearer ").strip()
    return ""


async def _abort(context: Context, error: Exception) -> NoReturn:
    if not isinstance(error, CloudAIError):
        log.error("a call failed unexpectedly", exc_info=error)
        error = InternalError("the master's log says more")
    elif isinstance(error, InternalError):
        log.error("a call failed: %s", error, exc_info=error)
    status = to_status(error)
    await context.abort(
        _CODES[status.code],
        status.message,
        (("grpc-status-details-bin", status.SerializeToString()),),
    )
    raise AssertionError("abort raises")


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
