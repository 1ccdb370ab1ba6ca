"""What is accepted of a request before anything is done with it. Pure; raises VolumeFailed that names the field."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.rpc import code_pb2 as codes

from cloudai_daemon.csi.errors import VolumeFailed, invalid
from cloudai_daemon.csi.volume_ids import check_mark, task_id_of
from cloudai_daemon.exit_codes import CommandFailed
from cloudai_daemon.options import MountOptions, parse_options
from cloudai_model.errors import InvalidRequest
from cloudai_model.names import check_managed_name, check_run_name, check_task_id
from cloudai_proto.csi.v1 import csi_pb2 as csi

NAME_BYTES_MAX: Final = 128
"""The specification's limit of a text that is not said to be longer."""

PATH_BYTES_MAX: Final = 4095

TOKEN_SECRET: Final = "token"  # noqa: S105  # its name
RUN_CONTEXT: Final = "run"
"""In a volume's context: user/task/run."""

FILE_SYSTEM_TYPES: Final = frozenset({"", "cloudai", "fuse.cloudai"})

# What whoever writes a PersistentVolume may choose: nothing that names a file of this machine, nor how the master is
# reached.
_FLAG_FIELDS: Final = frozenset(
    {
        *("uid", "gid", "umask", "timeo_seconds", "memory_bytes_max", "staging_bytes_max", "read_only"),
        "kernel_words",
    }
)
_FLAG_NAMES: Final = "uid=, gid=, umask=, timeo=, memory=, staging_size=, ro, noexec and noatime"

_Mode = csi.VolumeCapability.AccessMode
_READ_ONLY: Final = frozenset({_Mode.SINGLE_NODE_READER_ONLY, _Mode.MULTI_NODE_READER_ONLY})
# Published at one place at a time.
_ONE_PLACE: Final = frozenset(
    {_Mode.SINGLE_NODE_WRITER, _Mode.SINGLE_NODE_READER_ONLY, _Mode.SINGLE_NODE_SINGLE_WRITER}
)


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a VolumeCapability asks for."""

    is_read_only: bool
    has_one_place: bool
    """Whether it may be published at one place at a time only."""
    flags: tuple[str, ...] = ()
    """Words of `-o`. They may be sensitive: in no answer and no log."""

    def options(self) -> MountOptions:
        return parse_options(",".join(self.flags))


def parse_access(capability: csi.VolumeCapability) -> Access:
    """Raises VolumeFailed (INVALID_ARGUMENT)."""
    if capability.WhichOneof("access_type") is None or not capability.HasField("access_mode"):
        raise invalid("volume_capability: access_type and access_mode are needed")
    if capability.HasField("block"):
        raise invalid("volume_capability: a run is no block device: use volumeMode: Filesystem")
    mode = capability.access_mode.mode
    if mode == _Mode.UNKNOWN or mode not in _Mode.Mode.values():
        raise invalid("volume_capability: the access mode is not known here")
    if capability.mount.fs_type not in FILE_SYSTEM_TYPES:
        raise invalid("volume_capability: fs_type is for other drivers: leave it out")
    flags = tuple(word for flag in capability.mount.mount_flags for word in flag.split(",") if word)
    options = _parse_flags(flags)
    return Access(
        is_read_only=mode in _READ_ONLY or options.get("read_only", False),
        has_one_place=mode in _ONE_PLACE,
        flags=flags,
    )


def _parse_flags(flags: tuple[str, ...]) -> MountOptions:
    try:
        options = parse_options(",".join(flags))
    except CommandFailed:
        # Not its line, nor the error as a cause: they quote the flag.
        options = None
    if options is None or not options.keys() <= _FLAG_FIELDS:
        raise invalid(f"mount_flags: there are {_FLAG_NAMES}; the others are the driver's to choose")
    return options


def parse_all(capabilities: Iterable[csi.VolumeCapability]) -> list[Access]:
    """At least one. Raises VolumeFailed (INVALID_ARGUMENT)."""
    found = [parse_access(capability) for capability in capabilities]
    if not found:
        raise invalid("volume_capabilities: is missing")
    return found


def require_volume_id(text: str) -> str:
    """A run's task id, with its user's mark or without; safe as the name of a file."""
    if not text:
        raise invalid("volume_id: is missing")
    try:
        check_task_id(task_id_of(text))
        check_mark(text)
    except InvalidRequest as error:
        raise invalid(
            "volume_id: is none: a run's task id has letters, digits and . _ -, 128 at most"
        ) from error
    return text


def require_known_volume_id(text: str) -> str:
    """As above; what can be no volume's is not found."""
    if not text:
        raise invalid("volume_id: is missing")
    try:
        return require_volume_id(text)
    except VolumeFailed as error:
        raise VolumeFailed(codes.NOT_FOUND, "volume_id: there is no such volume") from error


def require_name(text: str) -> str:
    if not text:
        raise invalid("name: is missing")
    if len(text.encode()) > NAME_BYTES_MAX:
        raise invalid(f"name: has at most {NAME_BYTES_MAX} bytes")
    if any(unicodedata.category(character) == "Cc" and character not in "\t\n\r" for character in text):
        raise invalid("name: has control characters")
    return text


def require_place(text: str, field: str) -> Path:
    """An absolute path as it is in the kernel's table: above its last part, symlinks are followed."""
    if not text:
        raise invalid(f"{field}: is missing")
    if not text.startswith("/") or "\0" in text or len(os.fsencode(text)) > PATH_BYTES_MAX:
        raise invalid(f"{field}: is no absolute path")
    path = Path(text)
    if ".." in path.parts or len(path.parts) < 3:
        raise invalid(f"{field}: is no place for a volume")
    try:
        place = path.parent.resolve() / path.name
    except (OSError, RuntimeError) as error:  # the second for symlinks in a circle
        raise invalid(f"{field}: {path.parent} leads nowhere") from error
    # Not by lstat(2), which asks what is mounted there.
    with suppress(OSError):
        place.readlink()
        raise invalid(f"{field}: is a symlink")
    return place


def require_token(secrets: Mapping[str, str]) -> str:
    """Raises VolumeFailed (UNAUTHENTICATED)."""
    token = secrets.get(TOKEN_SECRET, "").strip()
    if not token:
        raise VolumeFailed(
            codes.UNAUTHENTICATED,
            "secrets: `token` is missing: name a Secret that has it in the StorageClass",
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise VolumeFailed(codes.UNAUTHENTICATED, "secrets: what `token` holds is none")
    return token


def parse_run(context: Mapping[str, str]) -> tuple[str, str, str] | None:
    """User, task and run that a volume's context names; None: it names none. Raises VolumeFailed."""
    text = context.get(RUN_CONTEXT, "")
    if not text:
        return None
    try:
        user, task, run = text.split("/")
        check_managed_name(user)
        check_managed_name(task)
        check_run_name(run)
    except ValueError as error:
        raise invalid(f"volume_context: {RUN_CONTEXT} is USER/TASK/RUN") from error
    except InvalidRequest as error:
        raise invalid(f"volume_context: {RUN_CONTEXT}: {error}") from error
    return user, task, run
