"""What a running mount is configured with, and what can be asked of it beside the kernel's requests.

The daemon's side (command line, control socket) knows the filesystem through this module alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

TIMEO_SECONDS_DEFAULT: Final = 120.0
"""The longest wait of one kernel request: a minute without a master costs a task nothing but time."""

CACHE_BYTES_DEFAULT: Final = 20 * 1024**3


@dataclass(frozen=True, kw_only=True)
class MountConfig:
    """The options of one mount, resolved: the words of the command line in SI units and absolute paths."""

    source: str
    """The master's `host:port`."""
    mount_point: Path
    state_dir: Path
    """Journal and staged files, 0700. Belongs to one mount."""
    cache_dir: Path
    """Chunks and sealed trees, 0700. Several mounts may share it."""
    cache_bytes_max: int = CACHE_BYTES_DEFAULT
    timeo_seconds: float = TIMEO_SECONDS_DEFAULT
    uid: int | None = None
    """Set: everything is shown as this owner's, and chown is refused. None: numeric owners as stored."""
    gid: int | None = None
    umask: int | None = None
    """Set: these permission bits are hidden in every mode shown."""
    read_only: bool = False
    allow_other: bool = False
    insecure: bool = False
    """No TLS; the master must be on the loopback."""
    ca_file: Path | None = None
    token_file: Path | None = None
    """Read again whenever the master refuses the token. None: `token` holds it."""
    token: str = ""

    def __repr__(self) -> str:  # a dataclass's own would print the token
        return f"MountConfig(source={self.source!r}, mount_point={str(self.mount_point)!r})"


class FileState(StrEnum):
    STAGED = "staged"
    UPLOADING = "uploading"
    DURABLE = "durable"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class FileStatus:
    """One name whose latest state is not yet at the master."""

    path: str
    """Relative to the mount point; bytes that are no UTF-8 as surrogate escapes."""
    state: FileState
    size_bytes: int
    uploaded_bytes: int
    reason: str = ""
    """Of a failure that needs a person, one sentence."""


@dataclass(frozen=True, kw_only=True)
class MountStatus:
    source: str
    user: str
    connected: bool
    """Whether the last call to the master was answered."""
    staged_bytes: int
    """Bytes of files on this machine that are not yet durable."""
    sent_bytes: int = 0
    """File contents sent to the master since the mount began."""
    fetched_bytes: int = 0
    """File contents fetched from the master since the mount began."""
    pending: Sequence[FileStatus]
    """What is not yet durable below the path asked for; empty means that all of it is."""


@dataclass(frozen=True, kw_only=True)
class RunPlace:
    """A run as it is found in the mount."""

    path: str
    """Relative to the mount point: user/task/name."""
    task_id: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run that the mount's user may see."""

    path: str
    """Relative to the mount point: user/task/name."""
    task_id: str
    created_at_ns: int
    sealed: bool
    exit_status: int | None = None
    """Of a sealed run."""


class MountControl(Protocol):
    """The requests of `cloudai status`, `wait`, `run`, `seal`, `umount`. Called on the mount's own loop.

    Every call raises the classes of cloudai_model.errors. Paths are relative to the mount point, "" is all.
    """

    def status(self, path: str = "") -> MountStatus: ...

    async def wait_durable(self, path: str = "") -> None:
        """Returns when nothing below the path is pending; uploads what waits at once.

        Raises the failure of a file that needs a person. No bound of its own: callers cancel it.
        """
        ...

    async def create_run(self, task: str, *, name: str = "", task_id: str = "") -> RunPlace:
        """A new open run of the token's user; an empty name is the master's time."""
        ...

    async def list_runs(self, path: str = "") -> Sequence[RunStatus]:
        """The runs below "", user or user/task, in the order of their paths; of a run's path, that one."""
        ...

    async def seal_run(self, path: str, exit_status: int) -> None:
        """Seals the run at the path once everything in it is durable."""
        ...
