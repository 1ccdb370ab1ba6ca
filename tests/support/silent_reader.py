"""A client that asks a master for chunks and never takes a byte of what it is answered."""

from __future__ import annotations

import socket
import struct
from types import TracebackType

from cloudai_proto.storage.v1 import chunks_pb2 as chunks
from support.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    SETTINGS,
    frame_of,
    headers_of,
)


class SilentReader:
    """HTTP/2 by hand: its window is of zero bytes, so that what it asks for stays where it is sent from."""

    def __init__(self, address: str, token: str) -> None:
        host, port = address.split(":")
        self._token = token
        self._authority = address
        self._next_stream_id = 1
        self._socket = socket.create_connection((host, int(port)), timeout=20)
        no_window = struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)
        self._socket.sendall(PREFACE + frame_of(SETTINGS, 0, 0, no_window))

    def __enter__(self) -> SilentReader:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, request: chunks.ReadChunkRequest) -> None:
        """Sends one call."""
        headers = headers_of("/cloudai.storage.v1.Chunks/ReadChunk", self._authority, self._token)
        message = request.SerializeToString()
        stream_id, self._next_stream_id = self._next_stream_id, self._next_stream_id + 2
        self._socket.sendall(
            frame_of(HEADERS, END_HEADERS, stream_id, headers)
            + frame_of(DATA, END_STREAM, stream_id, struct.pack(">BI", 0, len(message)) + message)
        )
