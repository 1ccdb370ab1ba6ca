"""How a call of the CSI is answered; how it fails: a status of gRPC and one sentence.

The one table of which error is which status.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from google.rpc import code_pb2 as codes

from cloudai_daemon.csi.call_deadline import CallDeadline
from cloudai_daemon.exit_codes import CommandFailed
from cloudai_model import errors
from cloudai_model.full_disks import is_lack_of_room

# An error's text may quote a name of the request's, and travels in headers, which are small.
SENTENCE_CHARACTERS_MAX: Final = 500

Handler = Callable[[Any, CallDeadline], Any]
"""Of one call: its request, and until when whoever called waits. The response; raises VolumeFailed, OSError."""

_CODE_OF: Final[dict[type[errors.CloudAIError], int]] = {
    errors.InvalidRequest: codes.INVALID_ARGUMENT,
    errors.NotFound: codes.NOT_FOUND,
    errors.AlreadyExists: codes.ALREADY_EXISTS,
    errors.RunSealed: codes.FAILED_PRECONDITION,
    errors.NoSpace: codes.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: codes.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: codes.UNAUTHENTICATED,
    errors.PermissionRefused: codes.PERMISSION_DENIED,
    errors.MasterUnavailable: codes.UNAVAILABLE,
    errors.CloudAIError: codes.INTERNAL,
}
"""A class that is not here has the code of its nearest base."""


class VolumeFailed(Exception):
    """A call that is not carried out. `code` is one of google.rpc.Code, whose numbers are gRPC's."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence[:SENTENCE_CHARACTERS_MAX]

    @classmethod
    def of(cls, error: errors.CloudAIError) -> VolumeFailed:
        """What the master, or nobody in its place, has answered."""
        code = next(_CODE_OF[base] for base in type(error).__mro__ if base in _CODE_OF)
        return cls(code, str(error))


def invalid(sentence: str) -> VolumeFailed:
    """A request that is not valid, and never will be."""
    return VolumeFailed(codes.INVALID_ARGUMENT, sentence)


def failed_by(error: OSError) -> VolumeFailed:
    """What this machine has refused, as a full disk does."""
    text = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    return VolumeFailed(codes.RESOURCE_EXHAUSTED if is_lack_of_room(error) else codes.INTERNAL, text)


def refused_at(place: Path, error: CommandFailed | OSError) -> VolumeFailed:
    """What cannot be mounted, unmounted or looked at there: INTERNAL."""
    text = error.line if isinstance(error, CommandFailed) else f"{place}: {error.strerror}"
    return VolumeFailed(codes.INTERNAL, text)


def without_record(volume_id: str) -> VolumeFailed:
    return VolumeFailed(
        codes.FAILED_PRECONDITION,
        f"{volume_id} has no record that can be read, and may have files that are at no master: stage it once more",
    )


def needs_token(volume_id: str) -> VolumeFailed:
    return VolumeFailed(
        codes.FAILED_PRECONDITION,
        f"{volume_id} has files that are at no master, and no token is here since the machine was started: "
        "stage it on this node once more",
    )
