"""The socket of the CSI driver: calls of gRPC become calls of plain functions, in worker threads.

The one module of the daemon that imports gRPC. Each call is answered before whoever made it gives it up. One that is
not carried out is logged with the volume it was for and the sentence that it was answered with; requests themselves
never are, as they hold secrets.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2 as codes

from cloudai_daemon.csi.call_deadline import CallDeadline
from cloudai_daemon.csi.errors import Handler, VolumeFailed, failed_by
from cloudai_daemon.places import make_private_dir
from cloudai_daemon.unix_sockets import remove_socket, remove_stale
from cloudai_proto.csi.v1 import csi_pb2 as csi

log = logging.getLogger(__name__)

# While the master is away each pod that ends is a call that waits, and others are not to stand behind them. What comes
# beyond is RESOURCE_EXHAUSTED, and comes again.
_CALLS_MAX: Final = 128
_STOP_SECONDS_MAX: Final = 10.0
_PATIENCE_SECONDS_MAX: Final = 120.0
"""Of who does not say how long it waits, or says more; the kubelet's."""

# Of the caller's time, to have the answer there in time; of a short one a quarter.
_ANSWER_SECONDS: Final = 2.0

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def serve_csi(
    services: Mapping[str, Mapping[str, Handler]], socket_path: Path, on_ready: Callable[[], None]
) -> None:
    """Serves until SIGTERM or SIGINT; what is being answered then gets ten seconds. `services` by name, `Node`, and
    their handlers by call. `on_ready` is called once it answers: no thread of the caller's is to run before that.

    Raises OSError when the socket cannot be had.
    """
    make_private_dir(socket_path.parent)
    remove_stale(socket_path)
    server = grpc.server(
        ThreadPoolExecutor(_CALLS_MAX, thread_name_prefix="csi"), maximum_concurrent_rpcs=_CALLS_MAX
    )
    work = ThreadPoolExecutor(_CALLS_MAX, thread_name_prefix="csi-work")
    for name, handlers in services.items():
        service = csi.DESCRIPTOR.services_by_name[name]
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    service.full_name,
                    {
                        method.name: _handler(method, handlers[method.name], work)
                        for method in service.methods
                        if method.name in handlers
                    },
                ),
            )
        )
    told_to_end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told_to_end.set())
    _listen_alone(server, socket_path)
    server.start()
    try:
        on_ready()
        told_to_end.wait()
        server.stop(_STOP_SECONDS_MAX).wait()
    finally:
        remove_socket(socket_path)


def _listen_alone(server: grpc.Server, socket_path: Path) -> None:
    """The socket is its owner's alone, 0600, from the moment it is there. Raises OSError."""
    # gRPC binds and listens in one step, so a mode that was set afterwards would come too late. The umask is the whole
    # process's: no other thread makes files yet.
    umask_before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix://{socket_path}")
    except RuntimeError as error:
        raise OSError(0, "no socket can be made here", str(socket_path)) from error
    finally:
        os.umask(umask_before)


def _handler(method: MethodDescriptor, handle: Handler, work: Executor) -> grpc.RpcMethodHandler[Any, Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        patience_seconds = _patience_of(context)
        answer_seconds = min(_ANSWER_SECONDS, patience_seconds / 4)
        # What takes time ends by the first deadline, with a sentence of its own. What cannot be cut off, as a mount
        # that is being made, goes on behind the second, and the volume stays taken meanwhile.
        deadline = CallDeadline(patience_seconds - answer_seconds)
        call = work.submit(_carry_out, method, handle, request, deadline)
        wait([call], patience_seconds - answer_seconds / 2)
        if call.done():
            outcome = call.result()
        elif call.cancel():
            outcome = VolumeFailed(
                codes.RESOURCE_EXHAUSTED, "too many calls are under way: repeat this one later"
            )
        else:
            call.add_done_callback(partial(_log_late, method, request))
            outcome = VolumeFailed(
                codes.DEADLINE_EXCEEDED, "it is not done yet, and goes on: repeat this request"
            )
        if not isinstance(outcome, VolumeFailed):
            return outcome
        _refuse(context, method, request, outcome)

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _carry_out(method: MethodDescriptor, handle: Handler, request: Any, deadline: CallDeadline) -> Any:
    """The response, or how it failed."""
    try:
        return handle(request, deadline)
    except VolumeFailed as error:
        return error
    except OSError as error:
        return failed_by(error)
    # The driver must outlive a fault in one call.
    except Exception:
        log.exception("%s failed", method.name)
        return VolumeFailed(codes.INTERNAL, "a fault of the driver: see its log")


def _log_late(method: MethodDescriptor, request: Any, call: Future[Any]) -> None:
    outcome = call.result()
    if isinstance(outcome, VolumeFailed):
        _log_refusal(method, request, outcome)


def _refuse(
    context: grpc.ServicerContext, method: MethodDescriptor, request: Any, failure: VolumeFailed
) -> NoReturn:
    _log_refusal(method, request, failure)
    context.abort(_CODES[failure.code], failure.sentence)


def _log_refusal(method: MethodDescriptor, request: Any, failure: VolumeFailed) -> None:
    volume = getattr(request, "volume_id", "") or getattr(request, "name", "")
    log.warning("%s %r: %s: %s", method.name, volume[:128], _CODES[failure.code].name, failure.sentence)


def _patience_of(context: grpc.ServicerContext) -> float:
    """For how many seconds whoever called waits."""
    remaining_seconds = context.time_remaining()
    if remaining_seconds is None or remaining_seconds > _PATIENCE_SECONDS_MAX:
        return _PATIENCE_SECONDS_MAX
    return remaining_seconds
