"""Where HTTP/2's frames begin and end in a stream of bytes, and which call each belongs to (RFC 9113, 4.1)."""

from __future__ import annotations

from typing import Final, NamedTuple

_HEADER_BYTES: Final = 9
_PREFACE_BYTES: Final = 24
_DATA, _HEADERS, _CONTINUATION = 0, 1, 9


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
                taken = piece[place : place + _HEADER_BYTES - len(self._header)]
                self._header += taken
                place += len(taken)
                if len(self._header) < _HEADER_BYTES:
                    break
                self._take_header()
            stop = min(len(piece), place + self._payload_bytes)
            self._payload_bytes -= stop - place
            is_data = self._kind == _DATA
            is_of_call = self._kind in (_DATA, _HEADERS, _CONTINUATION)
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
