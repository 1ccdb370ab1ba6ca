"""A client that begins long messages and never ends them."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from support.http2_frames import (
    ACK,
    DATA,
    END_HEADERS,
    HEADER_BYTES,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame_of,
    headers_of,
)

WINDOW_BYTES: Final = 65_535
"""Of a connection, and of a call, until more is allowed."""

FRAME_BYTES: Final = 16 * 1024
KEPT_BACK_BYTES: Final = 1024


class HalfSender:
    """HTTP/2 by hand: one connection, which sends all that it is allowed to, short of each message's end."""

    def __init__(self, address: str, token: str, path: str, *, calls: int, message_bytes: int) -> None:
        host, port = address.split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20)
        self._message_bytes = message_bytes
        self._window_bytes = self._call_window_bytes = WINDOW_BYTES
        self._outgoing = bytearray(PREFACE + frame_of(SETTINGS, 0, 0, b""))
        self._incoming = bytearray()
        self._windows: dict[int, int] = {}
        self._left: dict[int, int] = {}  # of each call's message, less what is never sent
        headers = headers_of(path, address, token)
        prefix = struct.pack(">BI", 0, message_bytes)
        for stream_id in range(1, 2 * calls, 2):
            self._outgoing += frame_of(HEADERS, END_HEADERS, stream_id, headers)
            self._windows[stream_id] = WINDOW_BYTES - len(prefix)
            self._left[stream_id] = message_bytes - KEPT_BACK_BYTES
            self._window_bytes -= len(prefix)
            self._outgoing += frame_of(DATA, 0, stream_id, prefix)
        self._socket.setblocking(False)

    def __enter__(self) -> HalfSender:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_more(self) -> bool:
        """Whether it is allowed to send something now."""
        return bool(self._outgoing) or self._next_call() is not None

    def push(self) -> None:
        """Takes what came, and sends what the socket holds. A master that has ended the connection is left alone."""
        try:
            while piece := self._socket.recv(1 << 20):
                self._incoming += piece
        except BlockingIOError:
            pass
        except ConnectionError:
            self._left.clear()
            return
        self._take_frames()
        while self.has_more:
            self._fill()
            try:
                sent = self._socket.send(self._outgoing)
            except BlockingIOError:
                return
            except ConnectionError:
                self._left.clear()
                self._outgoing.clear()
                return
            del self._outgoing[:sent]

    def _next_call(self) -> int | None:
        if self._window_bytes <= 0:
            return None
        return next((one for one, left in self._left.items() if left > 0 and self._windows[one] > 0), None)

    def _fill(self) -> None:
        while len(self._outgoing) < 4 * FRAME_BYTES and (stream_id := self._next_call()) is not None:
            room = min(self._window_bytes, self._windows[stream_id], self._left[stream_id], FRAME_BYTES)
            self._outgoing += frame_of(DATA, 0, stream_id, bytes(room))
            self._window_bytes -= room
            self._windows[stream_id] -= room
            self._left[stream_id] -= room

    def _take_frames(self) -> None:
        while len(self._incoming) >= HEADER_BYTES:
            end = HEADER_BYTES + int.from_bytes(self._incoming[:3])
            if len(self._incoming) < end:
                return
            kind, flags = self._incoming[3], self._incoming[4]
            stream_id = int.from_bytes(self._incoming[5:9]) & 0x7FFFFFFF
            self._take(kind, flags, stream_id, bytes(self._incoming[HEADER_BYTES:end]))
            del self._incoming[:end]

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            more = int.from_bytes(payload)
            if stream_id:
                self._windows[stream_id] += more
            else:
                self._window_bytes += more
        elif kind == SETTINGS and not flags & ACK:
            for setting, value in struct.iter_unpack(">HI", payload):
                if setting == INITIAL_WINDOW_SIZE:
                    for one in self._windows:
                        self._windows[one] += value - self._call_window_bytes
                    self._call_window_bytes = value
            self._outgoing += frame_of(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self._outgoing += frame_of(PING, ACK, 0, payload)
        elif kind in (HEADERS, RST_STREAM):
            self._left.pop(stream_id, None)  # it was answered: refused


def push_all(senders: Sequence[HalfSender], *, idle_seconds: float, seconds_max: float) -> None:
    """Returns when none of them has been allowed to send more for a while."""
    began = last_progress = time.monotonic()
    while time.monotonic() - last_progress < idle_seconds:
        assert time.monotonic() - began < seconds_max
        writing = [sender for sender in senders if sender.has_more]
        ready, writable, _ = select.select(senders, writing, [], idle_seconds / 4)
        for sender in {*ready, *writable}:
            sender.push()
        if writable:
            last_progress = time.monotonic()
