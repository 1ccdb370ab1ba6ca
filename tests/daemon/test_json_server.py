"""The server of JSON posts, through its socket: connections that are kept, and peers that talk nonsense."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from cloudai_daemon.json_server import BODY_BYTES_MAX, JsonAnswer, serve_json
from cloudai_daemon.unix_sockets import listen_at

PATIENCE_SECONDS = 20


@asynccontextmanager
async def echo_server(path: Path) -> AsyncIterator[None]:
    """Answers with what it was asked."""

    async def answer(method: str, target: str, body: bytes) -> JsonAnswer:
        return JsonAnswer(200, {"asked": f"{method} {target} {body.decode()}"})

    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listen_at(path)))
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_json, listener, "application/json", answer)
            yield
            nursery.cancel_scope.cancel()


def post(target: str, body: str, *fields: str) -> bytes:
    head = [f"POST {target} HTTP/1.1", "Host: plugin", f"Content-Length: {len(body)}", *fields]
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


async def receive_answer(stream: trio.SocketStream) -> tuple[str, dict[str, str]]:
    """Status line and body."""
    received = b""
    while b"\r\n\r\n" not in received or not received.endswith(b"}"):
        part = await stream.receive_some()
        assert part, received
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0].decode(), json.loads(body)


async def test_connection_is_kept_for_the_next_request(tmp_path: Path) -> None:
    async with echo_server(tmp_path / "s"), await trio.open_unix_socket(tmp_path / "s") as stream:
        for number in ("1", "2"):
            await stream.send_all(post("/call", number))
            assert await receive_answer(stream) == ("HTTP/1.1 200 ", {"asked": f"POST /call {number}"})


async def test_connection_ends_with_the_request_that_says_so(tmp_path: Path) -> None:
    async with echo_server(tmp_path / "s"), await trio.open_unix_socket(tmp_path / "s") as stream:
        await stream.send_all(post("/call", "", "Connection: close"))
        assert (await receive_answer(stream))[1] == {"asked": "POST /call "}
        assert await stream.receive_some() == b""


async def test_request_that_is_too_long_is_refused(tmp_path: Path) -> None:
    async with echo_server(tmp_path / "s"), await trio.open_unix_socket(tmp_path / "s") as stream:
        await stream.send_all(post("/call", "x" * (BODY_BYTES_MAX + 1)))
        assert (await receive_answer(stream))[1] == {"Err": "the request is too long"}


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01 hello\r\n\r\n",
        b"POST /call HTTP/1.1\r\n: :\r\n\r\n",
        b"HEAD /call HTTP/1.1\r\nHost: plugin\r\n\r\n",
        b"",
    ],
)
async def test_peer_that_talks_nonsense_loses_its_own_connection_alone(
    tmp_path: Path, nonsense: bytes
) -> None:
    async with echo_server(tmp_path / "s"):
        async with await trio.open_unix_socket(tmp_path / "s") as stream:
            await stream.send_all(nonsense)
            await stream.send_eof()
            assert await stream.receive_some() == b""
        async with await trio.open_unix_socket(tmp_path / "s") as stream:
            await stream.send_all(post("/call", "2"))
            assert (await receive_answer(stream))[1] == {"asked": "POST /call 2"}
