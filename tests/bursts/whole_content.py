"""Contents that tell by themselves whether they are what somebody has written, as a whole and nothing else."""

from __future__ import annotations

import hashlib
from typing import Final

DIGEST_BYTES: Final = 32


def make_whole(words: str, size_bytes: int) -> bytes:
    """Of about that size, and never empty."""
    body = (words.encode() + b"\n") * (size_bytes // (len(words) + 1) + 1)
    return hashlib.sha256(body).digest() + body


def is_whole(content: bytes) -> bool:
    return content[:DIGEST_BYTES] == hashlib.sha256(content[DIGEST_BYTES:]).digest()
