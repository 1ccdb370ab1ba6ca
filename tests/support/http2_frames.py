"""Where HTTP/2's frames begin and end in a stream of bytes, and which call each belongs to (RFC 9113, 4.1); and how
frames are made by hand.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
"""Kinds of frames."""
END_STREAM, ACK, END_HEADERS = 1, 1, 4
"""Flags."""
INITIAL_WINDOW_SIZE: Final = 4
"""A setting: how much of each call may be sent before more is allowed."""
HEADER_BYTES: Final = 9
_PREFACE_BYTES: Final = len(PREFACE)


def frame_of(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


def headers_of(path: str, authority: str, token: str) -> bytes:
    """What a gRPC call begins with."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
        "authorization": f"Bearer {token}",
    }
    return b"".join(map(_header, headers, headers.values()))


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


class Frame(NamedTuple):
    """The part of one frame that lies in a piece: its bytes [start, stop), header included."""

    start: int
    stop: int
    stream_id: int
    """0: of the connection itself."""
    is_data: bool
    is_of_call: bool
    """A part of a call's request or answer, with its headers; not of how fast they may go."""


class FrameWalker:
    """Goes along one direction of a connection, piece by piece."""

    def __init__(self, *, has_preface: bool) -> None:
        self._preface_bytes = _PREFACE_BYTES if has_preface else 0
        self._header = bytearray()
        self._payload_bytes = 0
        self._stream_id = 0
        self._kind = -1

    def walk(self, piece: bytes) -> list[Frame]:
        """The frames in the piece, in order and without a gap, the last one perhaps a beginning. A header that is
        cut in two counts for the connection until it is whole.
        """
        found: list[Frame] = []
        place = min(self._preface_bytes, len(piece))
        self._preface_bytes -= place
        start = 0
        while place < len(piece):
            if not self._payload_bytes:
                taken = piece[place : place + HEADER_BYTES - len(self._header)]
                self._header += taken
                place += len(taken)
                if len(self._header) < HEADER_BYTES:
                    break
                self._take_header()
            stop = min(len(piece), place + self._payload_bytes)
            self._payload_bytes -= stop - place
            is_data = self._kind == DATA
            is_of_call = self._kind in (DATA, HEADERS, CONTINUATION)
            found.append(Frame(start, stop, self._stream_id, is_data, is_of_call))
            start = place = stop
        if start < len(piece):
            found.append(Frame(start, len(piece), 0, is_data=False, is_of_call=False))
        return found

    def _take_header(self) -> None:
        header = bytes(self._header)
        self._header.clear()
        self._payload_bytes = int.from_bytes(header[:3])
        self._kind = header[3]
        self._stream_id = int.from_bytes(header[5:]) & 0x7FFFFFFF
