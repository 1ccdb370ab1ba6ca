"""A file's manifest as the wire has it, and back: for calls, for the journal, for the metadata cache."""

from __future__ import annotations

from collections.abc import Iterable

from cloudai_model.chunks import Chunk, Manifest
from cloudai_proto.storage.v1 import types_pb2 as types


def manifest_from_wire(chunks: Iterable[types.Chunk]) -> Manifest:
    """Raises SizeMismatch or FileTooLarge for chunks that make no manifest."""
    return Manifest(Chunk(chunk.length_bytes, chunk.digest) for chunk in chunks)


def manifest_to_wire(manifest: Manifest) -> types.Manifest:
    return types.Manifest(
        chunks=[types.Chunk(length_bytes=length, digest=digest) for length, digest in manifest.chunks]
    )
