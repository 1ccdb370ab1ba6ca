"""What goes over the control socket: JSON lines, {id, method, params} and {id, result | error}.

Both ends use this module, so it holds every limit and shape of the protocol and no I/O. An id is chosen
by the caller and comes back with the answer; answers come in the order in which they are ready. A long
request is also told how far it is, by lines of {id, progress} before its answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any, Final, TypeAlias

from cloudai_fusefs.mount_control import MountCounters
from cloudai_model.errors import ERROR_BY_REASON, CloudAIError, InternalError, InvalidRequest

Json: TypeAlias = Any

# A path of 4 KiB takes at most 24 KiB as escaped JSON; a warm-up names some thousand usual ones.
REQUEST_BYTES_MAX: Final = 1024 * 1024
RESPONSE_BYTES_MAX: Final = 8 * 1024 * 1024
# More names than anybody reads; the counts beside them are of all.
STATUS_NAMES_MAX: Final = 1000
REQUESTS_IN_FLIGHT_MAX: Final = 16
"""Of one connection; a further one is refused."""
CONNECTIONS_MAX: Final = 64
PROGRESS_SECONDS: Final = 0.2
"""Between two lines of progress: smooth to the eye, and a sign of life."""

# 4 KiB of path as surrogate escapes, six characters each, and the fields around it.
assert STATUS_NAMES_MAX * 4 * 1024 < RESPONSE_BYTES_MAX


@dataclass(frozen=True, kw_only=True)
class Request:
    id: int
    method: str
    params: Mapping[str, Json]


@dataclass(frozen=True, kw_only=True)
class PendingFile:
    """One name and its state, as in FileStatus of the mount."""

    path: str
    state: str
    size_bytes: int
    uploaded_bytes: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class StatusReport:
    """MountStatus with counts, so that a backlog of any length fits in one answer."""

    source: str
    user: str
    connected: bool
    staged_bytes: int
    pending_count: int
    pending_bytes: int
    uploaded_bytes: int
    """Of the pending bytes, those that the master has already."""
    failed_count: int
    sent_bytes: int
    fetched_bytes: int
    """Moved to and from the master since the mount began."""
    pending: list[PendingFile]
    """The first STATUS_NAMES_MAX, failed ones first."""
    counters: MountCounters
    """Of the mount, whatever the path."""
    set_aside: list[str] = field(default_factory=list)
    """As in MountStatus."""
    durable_count: int = 0
    """Files below a path in a run that are at the master as they are here."""
    file: PendingFile | None = None
    """The state of the file that the path names, durable or not; None for a directory."""

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Json]) -> StatusReport:
        """What a mount that is older than this program does not say has its default, where there is one."""
        pending = [PendingFile(**_known_of(PendingFile, entry)) for entry in fields["pending"]]
        counters = MountCounters(**_known_of(MountCounters, fields.get("counters", {})))
        file = PendingFile(**_known_of(PendingFile, fields["file"])) if fields.get("file") else None
        known = _known_of(cls, fields)
        return cls(**{**known, "pending": pending, "counters": counters, "file": file})


def _known_of(
    record: type[PendingFile | MountCounters | StatusReport], fields: Mapping[str, Json]
) -> dict[str, Json]:
    """Those that the record has here: a mount that is newer than this program says more."""
    names = {one.name for one in dataclass_fields(record)}
    return {name: field for name, field in fields.items() if name in names}


def encode_line(message: Mapping[str, Json]) -> bytes:
    # ensure_ascii: names that are no UTF-8 travel as the escapes of their surrogates.
    return json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises InvalidRequest for anything that is not a request."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("not a line of JSON") from error
    match message:
        case {"id": int(request_id), "method": str(method)} if not isinstance(request_id, bool):
            params = message.get("params", {})
            if isinstance(params, dict):
                return Request(id=request_id, method=method, params=params)
    raise InvalidRequest("expected {id, method, params}")


def encode_error(request_id: int | None, error: CloudAIError) -> bytes:
    """The class travels as its reason, the fields as text."""
    detail = {"reason": error.reason or InternalError.reason, "message": str(error)}
    return encode_line({"id": request_id, "error": detail})


class RemoteError(Exception):
    """An error that the mount daemon answered with; its text is the daemon's own sentence."""

    def __init__(self, *, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def is_a(self, error_class: type[CloudAIError]) -> bool:
        """Whether it stands for this class or one derived from it."""
        return issubclass(ERROR_BY_REASON.get(self.reason, InternalError), error_class)
