"""The mount daemon's end of the control socket: requests of `cloudai` become calls of MountControl.

Runs on the mount's own trio loop. A peer is only who may open the socket (0600 in a 0700 directory); it is
trusted with the mount, not with the daemon: garbage, lines over the limit and vanished peers end at most
their own connection. A peer that goes away cancels what it asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import trio

from cloudai_daemon.control_protocol import (
    CONNECTIONS_MAX,
    PROGRESS_SECONDS,
    REQUEST_BYTES_MAX,
    REQUESTS_IN_FLIGHT_MAX,
    RESPONSE_BYTES_MAX,
    STATUS_NAMES_MAX,
    Json,
    PendingFile,
    Request,
    StatusReport,
    decode_request,
    encode_error,
    encode_line,
)
from cloudai_daemon.unix_sockets import SOCKET_PATH_BYTES_MAX, listen_in_own_directory, remove_socket
from cloudai_fusefs.mount_control import (
    CachedIf,
    FileState,
    FileStatus,
    MountControl,
    MountCounters,
    MountStatus,
    UploadCounts,
    WarmupProgress,
)
from cloudai_model.errors import CloudAIError, InternalError, InvalidRequest

log = logging.getLogger(__name__)

_READ_BYTES: Final = 64 * 1024
MEASURING_SHARE_MAX: Final = 0.05
"""Of the mount's time that may go into telling one peer how far the uploads of a long backlog are."""

# A peer that does not read what it asked for is gone for all we know.
_SEND_SECONDS_MAX: Final = 30.0
_SECONDS_MAX: Final = 10 * 365 * 86_400.0
"""Of a parameter; what is longer than any mount's life is a mistake."""


def choose_socket_path(state_dir: Path, runtime_dir: Path, name: str) -> Path:
    """`control.sock` in the state directory, or in the runtime directory where that path is too long."""
    preferred = state_dir / "control.sock"
    if len(os.fsencode(preferred)) <= SOCKET_PATH_BYTES_MAX:
        return preferred
    return runtime_dir / f"{name}.sock"


async def serve_control(
    control: MountControl,
    socket_path: Path,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listens until cancelled; started once connections are taken. A stale socket is replaced.

    Raises OSError when the path cannot be bound. Cancelled: the socket is gone from the directory and
    every request that was being answered is cancelled.
    """
    listening = trio.socket.from_stdlib_socket(listen_in_own_directory(socket_path))
    try:
        connections = trio.CapacityLimiter(CONNECTIONS_MAX)
        async with trio.open_nursery() as nursery:

            async def serve_one(stream: trio.SocketStream) -> None:
                async with connections:
                    await _Connection(control, stream).serve()

            listener = trio.SocketListener(listening)
            task_status.started()
            await trio.serve_listeners(serve_one, [listener], handler_nursery=nursery)
    finally:
        listening.close()
        remove_socket(socket_path)


class _Connection:
    """One peer. Invariant: at most REQUESTS_IN_FLIGHT_MAX tasks, and one line is written at a time."""

    def __init__(self, control: MountControl, stream: trio.SocketStream) -> None:
        self._control = control
        self._stream = stream
        self._in_flight_count = 0
        self._sending = trio.Lock()

    async def serve(self) -> None:
        """Returns when the peer is gone; never raises for what a peer does."""
        try:
            async with self._stream, trio.open_nursery() as nursery:
                await self._read_requests(nursery)
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError:
            log.debug("a control peer vanished")

    async def _read_requests(self, nursery: trio.Nursery) -> None:
        buffered = bytearray()
        while True:
            received = await self._stream.receive_some(_READ_BYTES)
            if not received:
                return
            buffered += received
            while (end := buffered.find(b"\n")) >= 0 and end <= REQUEST_BYTES_MAX:
                line = bytes(buffered[:end])
                del buffered[: end + 1]
                await self._take(line, nursery)
            if len(buffered) > REQUEST_BYTES_MAX:
                await self._send(encode_error(None, InvalidRequest("the line is too long")))
                return

    async def _take(self, line: bytes, nursery: trio.Nursery) -> None:
        try:
            request = decode_request(line)
        except InvalidRequest as error:
            await self._send(encode_error(None, error))
            return
        # Refused, not queued: the reader must go on reading, or it would not see the peer vanish.
        if self._in_flight_count == REQUESTS_IN_FLIGHT_MAX:
            await self._send(encode_error(request.id, InvalidRequest("too many requests at once")))
            return
        self._in_flight_count += 1
        nursery.start_soon(self._answer, request)

    async def _answer(self, request: Request) -> None:
        try:
            if request.method == "warmup" or request.params.get("progress") is True:
                await self._answer_with_progress(request)
            else:
                await self._send(await self._outcome(request, _Progress()))
        finally:
            self._in_flight_count -= 1

    async def _answer_with_progress(self, request: Request) -> None:
        progress = _Progress()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_progress, request.id, progress)
            line = await self._outcome(request, progress)
            # Not cancelled: half a line of progress would spoil the answer behind it.
            progress.is_over.set()
        await self._send(line)

    async def _send_progress(self, request_id: int, progress: _Progress) -> None:
        pause_seconds = PROGRESS_SECONDS
        while True:
            with trio.move_on_after(pause_seconds):
                await progress.is_over.wait()
                return
            began_seconds = trio.current_time()
            latest = await progress.measure()
            pause_seconds = max(PROGRESS_SECONDS, (trio.current_time() - began_seconds) / MEASURING_SHARE_MAX)
            await self._send(encode_line({"id": request_id, "progress": latest}))

    async def _outcome(self, request: Request, progress: _Progress) -> bytes:
        try:
            result = await call_method(self._control, request.method, request.params, progress)
            line = encode_line({"id": request.id, "result": result})
        except CloudAIError as error:
            return encode_error(request.id, error)
        # The mount must outlive a fault in a question about it; FUSE handlers run in the same nursery tree.
        except Exception:
            log.exception("control request %s failed", request.method)
            return encode_error(request.id, InternalError("see the mount's log"))
        if len(line) > RESPONSE_BYTES_MAX:
            return encode_error(request.id, InvalidRequest("the answer is too long; ask for less"))
        return line

    async def _send(self, line: bytes) -> None:
        async with self._sending:
            with trio.move_on_after(_SEND_SECONDS_MAX) as scope:
                await self._stream.send_all(line)
            if scope.cancelled_caught:
                raise trio.BrokenResourceError("the peer does not read")


class _Progress:
    """How far a long request is."""

    def __init__(self) -> None:
        self._latest: Json = None  # until there is something to say: a sign of life
        self._measure: Callable[[], Awaitable[UploadCounts]] | None = None
        self.is_over = trio.Event()

    def note(self, progress: WarmupProgress) -> None:
        self._latest = asdict(progress)

    def measure_by(self, measure: Callable[[], Awaitable[UploadCounts]]) -> None:
        """It is looked up when it is told."""
        self._measure = measure

    async def measure(self) -> Json:
        return asdict(await self._measure()) if self._measure is not None else self._latest


async def call_method(
    control: MountControl, method: str, params: Mapping[str, Json], progress: _Progress
) -> Json:
    """The result of one request as JSON. Raises InvalidRequest for an unknown method or parameter."""
    if (handler := _METHODS.get(method)) is not None:
        return await handler(control, _Params(params))
    if (long_handler := _LONG_METHODS.get(method)) is not None:
        return await long_handler(control, _Params(params), progress)
    raise InvalidRequest("unknown method", method=method[:80])


class _Params:
    """The parameters of one request; each is checked when it is taken."""

    def __init__(self, given: Mapping[str, Json]) -> None:
        self._given = given

    def path(self, name: str) -> str:
        """Bytes of a name that are no UTF-8 are surrogates."""
        value = self._given.get(name, "")
        if not isinstance(value, str):
            raise InvalidRequest("a parameter must be text", parameter=name)
        return value

    def text(self, name: str) -> str:
        """What the master can be told."""
        value = self.path(name)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("a parameter is not UTF-8", parameter=name) from error
        return value

    def texts(self, name: str) -> list[str]:
        value = self._given.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidRequest("a parameter must be a list of texts", parameter=name)
        return value

    def number(self, name: str) -> int:
        """Of 32 bits."""
        value = self._given.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not -(2**31) <= value < 2**31:
            raise InvalidRequest("a parameter must be a whole number of 32 bits", parameter=name)
        return value

    def seconds(self, name: str) -> float | None:
        value = self._given.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _SECONDS_MAX:
            raise InvalidRequest("a parameter must be a number of seconds", parameter=name)
        return value


async def _ping(control: MountControl, params: _Params) -> Json:
    """Nothing: the answer is what was asked for."""


async def _status(control: MountControl, params: _Params) -> Json:
    return report_status(control.status(params.path("path")), await control.counters()).to_json()


async def _wait_durable(control: MountControl, params: _Params, progress: _Progress) -> Json:
    path = params.path("path")
    progress.measure_by(partial(control.upload_counts, path))
    await control.wait_durable(path)


async def _drain(control: MountControl, params: _Params, progress: _Progress) -> Json:
    progress.measure_by(control.upload_counts)
    left = await control.drain(params.seconds("timeout_seconds"))
    return report_status(left, MountCounters()).to_json()


async def _resume(control: MountControl, params: _Params) -> Json:
    control.resume()


async def _create_run(control: MountControl, params: _Params) -> Json:
    place = await control.create_run(
        params.text("task"), name=params.text("name"), task_id=params.text("task_id")
    )
    return asdict(place)


async def _list_runs(control: MountControl, params: _Params) -> Json:
    return [asdict(run) for run in await control.list_runs(params.text("path"))]


async def _seal_run(control: MountControl, params: _Params) -> Json:
    await control.seal_run(params.text("path"), params.number("exit_status"))


async def _create_run_token(control: MountControl, params: _Params) -> Json:
    return await control.create_run_token(params.text("path"), params.number("valid_seconds"))


async def _inspect(control: MountControl, params: _Params) -> Json:
    return asdict(await control.inspect())


async def _warmup(control: MountControl, params: _Params, progress: _Progress) -> Json:
    try:
        cached_if = CachedIf(params.text("cached_if") or CachedIf.LENGTH_MATCHES)
    except ValueError as error:
        raise InvalidRequest("unknown value of a parameter", parameter="cached_if") from error
    return asdict(await control.warmup(params.texts("paths"), progress.note, cached_if))


_METHODS: Final[Mapping[str, Callable[[MountControl, _Params], Awaitable[Json]]]] = {
    "ping": _ping,
    "status": _status,
    "resume": _resume,
    "create_run": _create_run,
    "list_runs": _list_runs,
    "seal_run": _seal_run,
    "create_run_token": _create_run_token,
    "inspect": _inspect,
}

_LONG_METHODS: Final[Mapping[str, Callable[[MountControl, _Params, _Progress], Awaitable[Json]]]] = {
    "warmup": _warmup,
    "wait_durable": _wait_durable,
    "drain": _drain,
}


def report_status(status: MountStatus, counters: MountCounters) -> StatusReport:
    """The counts of all pending files and the first of their names."""
    failed_first = sorted(status.pending, key=lambda file: file.state != FileState.FAILED)
    return StatusReport(
        source=status.source,
        user=status.user,
        connected=status.connected,
        staged_bytes=status.staged_bytes,
        pending_count=len(status.pending),
        pending_bytes=sum(file.size_bytes for file in status.pending),
        uploaded_bytes=sum(min(file.uploaded_bytes, file.size_bytes) for file in status.pending),
        failed_count=sum(file.state == FileState.FAILED for file in status.pending),
        sent_bytes=status.sent_bytes,
        fetched_bytes=status.fetched_bytes,
        pending=[_pending_file(file) for file in failed_first[:STATUS_NAMES_MAX]],
        counters=counters,
        set_aside=list(status.set_aside),
        durable_count=status.durable_count,
        file=_pending_file(status.file) if status.file is not None else None,
    )


def _pending_file(file: FileStatus) -> PendingFile:
    return PendingFile(
        path=file.path,
        state=str(file.state),
        size_bytes=file.size_bytes,
        uploaded_bytes=file.uploaded_bytes,
        reason=file.reason,
    )
