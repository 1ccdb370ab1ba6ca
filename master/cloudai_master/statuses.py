"""The one table of which error is which gRPC status, and the message that carries its reason.

Codes are those of google.rpc, whose numbers are gRPC's; no gRPC is needed to speak of them.
"""

from __future__ import annotations

import time
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2 as codes
from google.rpc.status_pb2 import Status

from cloudai_model import errors
from cloudai_proto.storage.v1 import types_pb2 as types

# An error's text may quote a name of the request's, and travels in headers, which are small.
TEXT_CHARACTERS_MAX: Final = 500

CODE_OF: Final[dict[type[errors.CloudAIError], int]] = {
    errors.InvalidRequest: codes.INVALID_ARGUMENT,
    errors.NotFound: codes.NOT_FOUND,
    errors.AlreadyExists: codes.ALREADY_EXISTS,
    errors.NotADirectory: codes.FAILED_PRECONDITION,
    errors.IsADirectory: codes.FAILED_PRECONDITION,
    errors.DirectoryNotEmpty: codes.FAILED_PRECONDITION,
    errors.OutsideRun: codes.FAILED_PRECONDITION,
    errors.RunSealed: codes.FAILED_PRECONDITION,
    errors.ReadOnlyMount: codes.FAILED_PRECONDITION,
    errors.MissingChunks: codes.FAILED_PRECONDITION,
    errors.GenerationChanged: codes.ABORTED,
    errors.ChunkDamaged: codes.DATA_LOSS,
    errors.NoSpace: codes.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: codes.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: codes.UNAUTHENTICATED,
    errors.PermissionRefused: codes.PERMISSION_DENIED,
    errors.NotSupported: codes.UNIMPLEMENTED,
    errors.MasterUnavailable: codes.UNAVAILABLE,
    errors.InternalError: codes.INTERNAL,
}
"""A class that is not here has the code of its nearest base."""


def to_detail(error: errors.CloudAIError) -> types.ErrorDetail:
    """The error as messages carry it: reason, text, and the digests that are missing, or what time it is here."""
    detail = types.ErrorDetail(reason=error.reason, message=str(error)[:TEXT_CHARACTERS_MAX])
    if isinstance(error, errors.MissingChunks):
        detail.missing_digests.extend(error.digests)
    if isinstance(error, errors.Unauthenticated):
        detail.now_ns = time.time_ns()
    return detail


def to_status(error: errors.CloudAIError) -> Status:
    """The error as a failed call carries it."""
    code = next(CODE_OF[base] for base in type(error).__mro__ if base in CODE_OF)
    status = Status(code=code, message=str(error)[:TEXT_CHARACTERS_MAX])
    detail = AnyMessage()
    detail.Pack(to_detail(error))
    status.details.append(detail)
    return status
