"""HTTP over a Unix socket for a program that posts JSON: one function answers, h11 keeps the protocol.

Runs on trio. A peer is only who may open the socket; one that vanishes, hangs or talks nonsense holds at most its own
connection, and everything here has a bound.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import h11
import trio

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 32
BODY_BYTES_MAX: Final = 256 * 1024
IDLE_SECONDS_MAX: Final = 60.0
"""Engines keep a connection open for their next request."""

_READ_BYTES: Final = 64 * 1024
_SEND_SECONDS_MAX: Final = 10.0


@dataclass(frozen=True)
class JsonAnswer:
    status: int
    body: dict[str, Any]


AnswerJson: TypeAlias = Callable[[str, str, bytes], Awaitable[JsonAnswer]]
"""Method, path and body in, answer out. Raises nothing."""


async def serve_json(listener: trio.SocketListener, content_type: str, answer: AnswerJson) -> None:
    """Answers until cancelled. Cancelled: what is being answered is answered no more."""
    connections = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def serve_one(stream: trio.SocketStream) -> None:
        async with connections, stream:
            try:
                await _converse(stream, content_type, answer)
            # Of h11 also what we may not say: an answer to HEAD has no body.
            except (trio.BrokenResourceError, trio.TooSlowError, h11.ProtocolError) as error:
                log.debug("a connection ended: %s", error)

    async with trio.open_nursery() as nursery:
        await trio.serve_listeners(serve_one, [listener], handler_nursery=nursery)


async def _converse(stream: trio.SocketStream, content_type: str, answer: AnswerJson) -> None:
    """One request after another, until the peer has no more."""
    connection = h11.Connection(h11.SERVER)
    while True:
        with trio.fail_after(IDLE_SECONDS_MAX):
            request = await _receive_request(stream, connection)
        if request is None:
            return
        method, path, body = request
        if len(body) > BODY_BYTES_MAX:
            given = JsonAnswer(413, {"Err": "the request is too long"})
        else:
            given = await answer(method, path, body)
        text = json.dumps(given.body).encode()
        headers = [("Content-Type", content_type), ("Content-Length", str(len(text)))]
        sent = connection.send(h11.Response(status_code=given.status, headers=headers)) or b""
        sent += connection.send(h11.Data(data=text)) or b""
        sent += connection.send(h11.EndOfMessage()) or b""
        with trio.fail_after(_SEND_SECONDS_MAX):
            await stream.send_all(sent)
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return
        connection.start_next_cycle()


async def _receive_request(
    stream: trio.SocketStream, connection: h11.Connection
) -> tuple[str, str, bytes] | None:
    """Method, path and body, of which no more is kept than shows that it is too long. None: the peer is gone."""
    request: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(_READ_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body = (body + bytes(event.data))[: BODY_BYTES_MAX + 1]
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return request.method.decode("ascii"), request.target.decode("ascii"), body
        else:
            return None
