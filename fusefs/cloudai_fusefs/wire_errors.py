"""Turns what the master says went wrong back into the class that it raised there."""

from __future__ import annotations

from cloudai_model.errors import ERROR_BY_REASON, CloudAIError, InternalError, MissingChunks, Unauthenticated
from cloudai_proto.storage.v1 import types_pb2 as types


def error_from_detail(detail: types.ErrorDetail) -> CloudAIError:
    """The error of a failed call, or of one result of a batch; of an unknown reason an InternalError."""
    kind = ERROR_BY_REASON.get(detail.reason, InternalError)
    # The text on the wire starts with the class's own sentence, which the class will say again.
    text = detail.message.removeprefix(kind.sentence).removeprefix(": ")
    if issubclass(kind, MissingChunks):
        return kind(text, digests=tuple(detail.missing_digests))
    if issubclass(kind, Unauthenticated):
        return kind(text, now_ns=detail.now_ns)
    return kind(text)
