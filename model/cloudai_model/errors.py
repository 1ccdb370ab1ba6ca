"""One tree of the errors that have a meaning on both ends of the wire.

The master raises them; its service turns them into a gRPC status and a reason (one table there); the
master client turns the reason back into the same class; the kernel's edge turns the class into an errno
(one table there). Each carries fields, and its text is made of them: never file contents, never a token.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CloudAIError(Exception):
    """The root. `reason` is the word that stands for the class on the wire."""

    reason: ClassVar[str] = ""
    sentence: ClassVar[str] = "the operation failed"

    def __init__(self, detail: str = "", **fields: Any) -> None:
        self.detail = detail
        self.fields = fields
        super().__init__(detail, fields)

    def __str__(self) -> str:
        named = ", ".join(f"{key}={value!r}" for key, value in self.fields.items())
        parts = [self.sentence, self.detail, named]
        return ": ".join(part for part in parts if part)


class InvalidRequest(CloudAIError):
    """Never succeeds when repeated."""

    reason = "INVALID_REQUEST"
    sentence = "the request is not valid"


class InvalidName(InvalidRequest):
    reason = "INVALID_NAME"
    sentence = "not a valid name"


class NameTooLong(InvalidRequest):
    reason = "NAME_TOO_LONG"
    sentence = "the name or path is too long"


class InvalidRunName(InvalidRequest):
    reason = "INVALID_RUN_NAME"
    sentence = "a run is named by its UTC time, YYYY-MM-DD_HH-MM-SS"


class SizeMismatch(InvalidRequest):
    reason = "SIZE_MISMATCH"
    sentence = "the sizes do not add up"


class DigestMismatch(InvalidRequest):
    reason = "DIGEST_MISMATCH"
    sentence = "the bytes are not those of the digest"


class FileTooLarge(InvalidRequest):
    reason = "FILE_TOO_LARGE"
    sentence = "the file is over the size limit"


class NotFound(CloudAIError):
    """Nothing of this name, or nothing that the caller may know of."""

    reason = "NOT_FOUND"
    sentence = "not found"


class AlreadyExists(CloudAIError):
    reason = "ALREADY_EXISTS"
    sentence = "already exists"


class NotADirectory(CloudAIError):
    reason = "NOT_A_DIRECTORY"
    sentence = "not a directory"


class IsADirectory(CloudAIError):
    reason = "IS_A_DIRECTORY"
    sentence = "is a directory"


class DirectoryNotEmpty(CloudAIError):
    reason = "DIRECTORY_NOT_EMPTY"
    sentence = "the directory is not empty"


class OutsideRun(CloudAIError):
    reason = "OUTSIDE_RUN"
    sentence = "files may only be inside a run"


class RunSealed(CloudAIError):
    reason = "RUN_SEALED"
    sentence = "the run is sealed"


class ReadOnlyMount(CloudAIError):
    reason = "READ_ONLY_MOUNT"
    sentence = "mounted read-only"


class MissingChunks(CloudAIError):
    """A manifest names chunks that are not stored; `digests` holds the first of them."""

    reason = "MISSING_CHUNKS"
    sentence = "chunks are missing"

    def __init__(self, detail: str = "", *, digests: tuple[bytes, ...] = (), **fields: Any) -> None:
        super().__init__(detail, **fields)
        self.digests = digests


class GenerationChanged(CloudAIError):
    """Somebody committed in between; `current` is the generation now."""

    reason = "GENERATION_CHANGED"
    sentence = "the file has another generation by now"


class ChunkDamaged(CloudAIError):
    """Stored bytes are not those of their digest, or gone. Names file and chunk, never bytes."""

    reason = "CHUNK_DAMAGED"
    sentence = "a stored chunk is damaged"


class NoSpace(CloudAIError):
    reason = "NO_SPACE"
    sentence = "no space left"


class QuotaExceeded(CloudAIError):
    reason = "QUOTA_EXCEEDED"
    sentence = "quota exceeded"


class Unauthenticated(CloudAIError):
    """No token, or one that is forged, expired or revoked. The text says which, never the token."""

    reason = "UNAUTHENTICATED"
    sentence = "not authenticated"

    def __init__(self, detail: str = "", *, now_ns: int = 0, **fields: Any) -> None:
        """`now_ns`: the master's clock when it said so, since 1970; 0: it did not tell."""
        super().__init__(detail, **fields)
        self.now_ns = now_ns


class PermissionRefused(CloudAIError):
    reason = "PERMISSION_REFUSED"
    sentence = "not permitted"


class NotSupported(CloudAIError):
    reason = "NOT_SUPPORTED"
    sentence = "not supported"


class MasterUnavailable(CloudAIError):
    """No answer within the deadline: the call may or may not have been carried out."""

    reason = "MASTER_UNAVAILABLE"
    sentence = "the master did not answer"


class InternalError(CloudAIError):
    reason = "INTERNAL"
    sentence = "internal error"


def _walk(root: type[CloudAIError]) -> dict[str, type[CloudAIError]]:
    found = {root.reason: root} if root.reason else {}
    for child in root.__subclasses__():
        found |= _walk(child)
    return found


ERROR_BY_REASON: dict[str, type[CloudAIError]] = _walk(CloudAIError)
"""The class of each reason on the wire. An unknown reason is an InternalError to the one who reads it."""
