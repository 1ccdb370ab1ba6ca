"""The bytes fields of protobuf messages, put and taken by hand where a chunk is in them.

The generated classes copy 4 MiB when a field is set or read and again when the message is encoded or parsed.
The layout is protobuf's own: a tag, the length as a varint, the bytes.
"""

from __future__ import annotations

from typing import Final

_LENGTH_DELIMITED: Final = 2
_LENGTH_BYTES_MAX: Final = 5
"""Of lengths below 2**35: longer messages do not exist."""


def field_head(number: int, length_bytes: int) -> bytes:
    """What stands before the bytes of a field; the number is below 16."""
    head = bytearray([number << 3 | _LENGTH_DELIMITED])
    while length_bytes > 0x7F:
        head.append(length_bytes & 0x7F | 0x80)
        length_bytes >>= 7
    head.append(length_bytes)
    return bytes(head)


def take_field(encoded: bytes, place: int, number: int) -> tuple[memoryview | None, int]:
    """A view of the field that begins at the place, and where it ends.

    No view, and the same place: there is no such field, or not all of it.
    """
    if place >= len(encoded) or encoded[place] != number << 3 | _LENGTH_DELIMITED:
        return None, place
    length_bytes = shift = 0
    for index in range(place + 1, min(place + 1 + _LENGTH_BYTES_MAX, len(encoded))):
        length_bytes |= (encoded[index] & 0x7F) << shift
        shift += 7
        if encoded[index] < 0x80:
            end = index + 1 + length_bytes
            if end > len(encoded):
                return None, place
            return memoryview(encoded)[index + 1 : end], end
    return None, place
