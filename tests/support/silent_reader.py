"""A client that asks a master for chunks and never takes a byte of what it is answered."""

from __future__ import annotations

import socket
import struct
from types import TracebackType

from cloudai_proto.storage.v1 import chunks_pb2 as chunks

_SETTINGS, _HEADERS, _DATA = 4, 1, 0
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4


class SilentReader:
    """HTTP/2 by hand: its window is of zero bytes, so that what it asks for stays where it is sent from."""

    def __init__(self, address: str, token: str) -> None:
        host, port = address.split(":")
        self._token = token
        self._authority = address
        self._next_stream_id = 1
        self._socket = socket.create_connection((host, int(port)), timeout=20)
        no_window = struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, no_window))

    def __enter__(self) -> SilentReader:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, request: chunks.ReadChunkRequest) -> None:
        """Sends one call."""
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": "/cloudai.storage.v1.Chunks/ReadChunk",
            ":authority": self._authority,
            "te": "trailers",
            "content-type": "application/grpc",
            "authorization": f"Bearer {self._token}",
        }
        message = request.SerializeToString()
        stream_id, self._next_stream_id = self._next_stream_id, self._next_stream_id + 2
        self._socket.sendall(
            _frame(_HEADERS, _END_HEADERS, stream_id, b"".join(map(_header, headers, headers.values())))
            + _frame(_DATA, _END_STREAM, stream_id, struct.pack(">BI", 0, len(message)) + message)
        )


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


def _header(name: str, value: str) -> bytes:
    # HPACK: a literal that is not indexed, name and value as they are.
    return b"\x00" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    # A length of 7 bits; from 127 on the rest follows in groups of 7.
    length, encoded = len(text), text.encode()
    if length < 127:
        return bytes([length]) + encoded
    rest, groups = length - 127, bytearray([127])
    while rest > 127:
        groups.append(rest & 127 | 128)
        rest >>= 7
    groups.append(rest)
    return bytes(groups) + encoded
