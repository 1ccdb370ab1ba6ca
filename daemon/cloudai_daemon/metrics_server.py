"""Answers a scraper: one page over HTTP, on the loopback or on a Unix socket of its owner's.

Runs on the mount's own trio loop, where it takes the counts (microseconds); the page is made in a thread, at most
once a second. A scraper that hangs, asks too often or talks nonsense holds at most its own connection, and that for
seconds: everything here has a bound.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import trio

from cloudai_daemon.unix_sockets import listen_at, remove_socket

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 8
"""A further one is closed at once: a scraper comes again, and nobody has more than a few."""

CONNECTION_SECONDS_MAX: Final = 10.0
"""Prometheus gives up by itself after as long."""

PAGE_SECONDS: Final = 1.0
"""How old a page may be: scrapers in a loop cost no more than one a second."""

_HEAD_BYTES_MAX: Final = 8 * 1024

Render: TypeAlias = Callable[[], Awaitable[bytes]]


class _Answer(NamedTuple):
    status: str
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


async def serve_metrics(
    address: str,
    render: Render,
    content_type: str,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listens at `host:port` or at a socket's path until cancelled; started with the address it got.

    `render` makes a page. Raises OSError, naming the address, when that cannot be had. Cancelled: connections
    are closed, a socket's file is gone.
    """
    pages = _Pages(render, content_type)
    try:
        listener = await _listen(address)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"metrics={address}") from error
    try:
        await _serve(listener, pages, task_status)
    finally:
        if address.startswith("/"):
            remove_socket(Path(address))


async def _listen(address: str) -> trio.SocketListener:
    if address.startswith("/"):
        return trio.SocketListener(trio.socket.from_stdlib_socket(listen_at(Path(address))))
    host, _, port = address.rpartition(":")
    # One, as the host is an address and no name.
    (listener,) = await trio.open_tcp_listeners(int(port), host=host.strip("[]"))
    return listener


def _address_of(listener: trio.SocketListener) -> str:
    name = listener.socket.getsockname()
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"


async def _serve(listener: trio.SocketListener, pages: _Pages, task_status: trio.TaskStatus[str]) -> None:
    connection_count = 0

    async def serve_one(stream: trio.SocketStream) -> None:
        nonlocal connection_count
        async with stream:
            if connection_count == CONNECTIONS_MAX:
                return
            connection_count += 1
            try:
                with trio.move_on_after(CONNECTION_SECONDS_MAX):
                    await _converse(stream, pages)
            except trio.BrokenResourceError:
                log.debug("a scraper vanished")
            # The mount must outlive a fault in a page about it.
            except Exception:
                log.exception("metrics could not be answered")
            finally:
                connection_count -= 1

    async with listener:
        task_status.started(_address_of(listener))
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(serve_one, [listener], handler_nursery=nursery)


async def _converse(stream: trio.SocketStream, pages: _Pages) -> None:
    head = await _receive_head(stream)
    if head is None:
        return
    method, answer = await _answer(head, pages)
    fields = (
        f"HTTP/1.1 {answer.status}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    )
    await stream.send_all(fields.encode() + (b"" if method == "HEAD" else answer.body))
    await stream.send_eof()


async def _receive_head(stream: trio.SocketStream) -> str | None:
    """The request up to its blank line; None when it does not come to one, or is too long to be ours."""
    received = b""
    while b"\r\n\r\n" not in received:
        if len(received) > _HEAD_BYTES_MAX:
            return None
        part = await stream.receive_some(_HEAD_BYTES_MAX)
        if not part:
            return None
        received += part
    return received.partition(b"\r\n\r\n")[0].decode("latin-1")


async def _answer(head: str, pages: _Pages) -> tuple[str, _Answer]:
    """The request's method, and what it gets."""
    method, target, *_ = [*head.partition("\r\n")[0].split(" "), "", ""]
    if method not in ("GET", "HEAD"):
        return method, _Answer("405 Method Not Allowed", b"only GET and HEAD\n")
    if target.partition("?")[0] != "/metrics":
        return method, _Answer("404 Not Found", b"there is /metrics\n")
    return method, _Answer("200 OK", await pages.get(), pages.content_type)


class _Pages:
    """The last page, made again when it is too old. Those who ask meanwhile wait for the same one."""

    def __init__(self, render: Render, content_type: str) -> None:
        self.content_type = content_type
        self._render = render
        self._making = trio.Lock()
        self._page = b""
        self._made_at_seconds = -math.inf

    async def get(self) -> bytes:
        async with self._making:
            if trio.current_time() > self._made_at_seconds + PAGE_SECONDS:
                self._page = await self._render()
                self._made_at_seconds = trio.current_time()
            return self._page
