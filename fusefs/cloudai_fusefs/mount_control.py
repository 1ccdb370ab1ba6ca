"""What a running mount is configured with, and what can be asked of it beside the kernel's requests.

The daemon's side (command line, control socket) knows the filesystem through this module alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from cloudai_model.limits import MIB

TIMEO_SECONDS_DEFAULT: Final = 120.0
"""The longest wait of one kernel request: a minute without a master costs a task nothing but time."""

CACHE_BYTES_DEFAULT: Final = 20 * 1024**3

CACHE_FREE_BYTES_MIN: Final = 1024**3
"""What the disk cache leaves free on its disk: room for staged files, which are worth more than cached ones."""

MEMORY_BYTES_DEFAULT: Final = 256 * MIB
MEMORY_BYTES_MIN: Final = 32 * MIB
"""With less a sequential reader would lose what is fetched ahead of it before it is read."""

NAMES_DEFAULT: Final = 200_000
"""At about a KiB each they take no more than `memory=` does. A first listing of so many takes seconds: two runs of
100,000 files stay, which is more than most have."""
NAMES_MIN: Final = 1000
"""A MiB: to list runs again costs more than less of it is worth."""

DRAIN_SECONDS_DEFAULT: Final = 20.0
"""What uploads get when a mount ends by a signal or a plain umount(8): below the 90 s after which systemd kills."""

UNMOUNT_DRAIN_SECONDS_DEFAULT: Final = 3600.0
"""The same when a person says `cloudai umount` and can see how it goes on."""


@dataclass(frozen=True, kw_only=True)
class MountConfig:
    """The options of one mount, resolved: the words of the command line in SI units and absolute paths."""

    source: str
    """The master's `host:port`, and behind it what of the tree is mounted: `/user`, `/user/task`, `/user/task/run`."""
    mount_point: Path
    state_dir: Path
    """Journal and staged files, 0700. Belongs to one mount."""
    cache_dir: Path
    """Chunks and sealed trees, 0700. Several mounts may share it."""
    cache_bytes_max: int = CACHE_BYTES_DEFAULT
    memory_bytes_max: int = MEMORY_BYTES_DEFAULT
    """Of contents in memory, whatever the number of open files; at least MEMORY_BYTES_MIN."""
    names_max: int = NAMES_DEFAULT
    """Of sealed runs, in memory, as far as they are not in use."""
    timeo_seconds: float = TIMEO_SECONDS_DEFAULT
    drain_seconds: float | None = None
    """How long a mount that ends waits for uploads, however it is told to end. None: the two defaults."""
    staging_bytes_max: int = 0
    """What staged files may take. 0: what is free on the disk of the state directory, less a reserve."""
    uid: int | None = None
    """Set: everything is shown as this owner's, and chown is refused. None: numeric owners as stored."""
    gid: int | None = None
    umask: int | None = None
    """Set: these permission bits are hidden in every mode shown."""
    read_only: bool = False
    allow_other: bool = False
    xattr: bool = False
    """Extended attributes of `user.` are kept. False: ENOTSUP, and the kernel asks for none."""
    insecure: bool = False
    """No TLS; the master must be on the loopback."""
    ca_file: Path | None = None
    token_file: Path | None = None
    """Read again whenever the master refuses the token. None: `token` holds it."""
    token: str = ""
    metrics_address: str = ""
    """Where Prometheus metrics are served: `host:port` on the loopback or a Unix socket's path; "": nowhere."""
    supervise: bool = False
    """A process of its own starts the daemon again when that dies."""
    kernel_words: tuple[str, ...] = ()
    """Of mount(8), for the kernel alone: noexec, noatime."""
    shown_source: str = ""
    """What the kernel's table of mounts shows; mount(8) looks for the words of fstab there. "": `source`."""

    @property
    def address(self) -> str:
        """The master's `host:port`."""
        return self.source.partition("/")[0]

    @property
    def root_path(self) -> str:
        """What of the tree is the mount's root: `user/task/run` or less; "" for all of it."""
        return self.source.partition("/")[2]

    def __repr__(self) -> str:  # a dataclass's own would print the token
        return f"MountConfig(source={self.source!r}, mount_point={str(self.mount_point)!r})"


class CachedIf(StrEnum):
    """When a warm-up takes a chunk to be in the disk cache."""

    LENGTH_MATCHES = "length"
    """Its file is as long as it is to be: damage is found by who reads it, and fetched again then."""
    DIGEST_MATCHES = "digest"
    """Its file was read and compared."""


class FileState(StrEnum):
    STAGED = "staged"
    UPLOADING = "uploading"
    DURABLE = "durable"
    FAILED = "failed"
    REMOVED = "removed"
    """Here, and not yet at the master."""


@dataclass(frozen=True, kw_only=True)
class FileStatus:
    """One name whose latest state is not yet at the master."""

    path: str
    """Relative to the mount point; bytes that are no UTF-8 as surrogate escapes. A path in the tree that begins with
    "/" is of what an earlier mount left outside of the part that is mounted."""
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
    set_aside: Sequence[str] = ()
    """Directories with what was found in the state directory and could not be used, until they are removed."""
    file: FileStatus | None = None
    """The file that the path names, durable or not. None: the path names a directory."""
    durable_count: int = 0
    """Files at and below a path in a run that are at the master as they are here."""


@dataclass(frozen=True, kw_only=True)
class UploadCounts:
    """How far the uploads are: a MountStatus without names, cheap enough to be asked for again and again."""

    connected: bool
    pending_count: int = 0
    pending_bytes: int = 0
    uploaded_bytes: int = 0
    """Of the pending bytes, those that the master has already."""
    failed_count: int = 0


@dataclass(frozen=True, kw_only=True)
class MountCounters:
    """What a mount has done since it began, and what it holds now. Totals only grow."""

    connected: bool = False
    watch_count: int = 0
    """Users and open runs that the master tells this mount the news of."""
    open_count: int = 0
    """Open handles of files."""
    open_directory_count: int = 0
    """Open handles of directories."""
    referenced_inode_count: int = 0
    """Inodes that the kernel may ask for by number, until it forgets them; without the mount's root."""
    known_inode_count: int = 0
    """All that are in memory: the whole tree of each run that has been looked into and not been let go of since."""
    let_go_count: int = 0
    """How often a sealed run was, for `names_max`."""

    memory_hits: int = 0
    memory_misses: int = 0
    disk_hits: int = 0
    disk_misses: int = 0
    """Looks into memory count once per chunk that a read touches, looks at the disk once per chunk that
    several readers may wait for."""
    memory_read_bytes: int = 0
    """Answered to readers from memory."""
    disk_read_bytes: int = 0
    """Read from the disk cache, in whole chunks or blocks."""
    fetched_bytes: int = 0
    fetched_chunks: int = 0
    fetched_ranges: int = 0
    fetched_batches: int = 0
    """Answers of the master: those with one chunk, a range of one, several small files."""
    damaged_chunks: int = 0
    sent_bytes: int = 0

    memory_bytes: int = 0
    memory_bytes_max: int = 0
    cache_bytes: int = 0
    """Of the disk cache, as of its last sweep and what this mount added since."""
    cache_bytes_max: int = 0
    cache_lacks_room: bool = False
    """Whether its disk was too full for what was to be cached last."""

    pending_count: int = 0
    """Names whose latest state is not yet at the master."""
    failed_count: int = 0
    """Those of them that need a person."""
    staged_bytes: int = 0

    request_counts: Mapping[str, int] = field(default_factory=dict)
    """The kernel's requests by handler."""
    failure_counts: Mapping[str, int] = field(default_factory=dict)
    """Those that were answered with an error, by handler and errno: `lookup ENOENT`."""
    unexpected_counts: Mapping[str, int] = field(default_factory=dict)
    """Those of them that nobody foresaw, by handler: a traceback in the log for each."""


@dataclass(frozen=True, kw_only=True)
class MountInspection:
    """What `cloudai doctor` asks a mount. Never holds a token."""

    version: str
    """Of the mount daemon's software."""
    cache_dir: str
    token_file: str
    """ "" when the token came from the environment."""
    master_failure: str
    """Why the master gave no answer; "" when it did, and then the rest is its answer."""
    failure_reason: str = ""
    """The word of cloudai_model.errors for it, "" when it is none of those."""
    master_version: str = ""
    round_trip_seconds: float = 0.0
    token_user: str = ""
    token_task_id: str = ""
    """Set: the token is good for this run alone."""
    token_expires_at_ns: int = 0
    """0: never."""
    master_ahead_seconds: float | None = None
    """Of its clock before this machine's, to within half a round trip; None: it did not say its time."""


@dataclass(frozen=True, kw_only=True)
class WarmupProgress:
    """How far a warm-up is. Bytes are those of distinct chunks: what two files share counts once."""

    files: int = 0
    size_bytes: int = 0
    done_files: int = 0
    done_bytes: int = 0
    """In the cache by now, what was there before too."""
    fetched_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class UncachedFile:
    """A file that a warm-up could not bring into the cache."""

    path: str
    """Relative to the mount point; bytes that are no UTF-8 as surrogate escapes."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class WarmupReport:
    files: int
    size_bytes: int
    """Of distinct chunks."""
    fetched_bytes: int
    skipped_files: int
    """Being written, here or elsewhere."""
    failed_files: int
    failed: Sequence[UncachedFile]
    """The first of them."""


@dataclass(frozen=True, kw_only=True)
class RunPlace:
    """A run as it is found in the mount."""

    path: str
    """Relative to the mount point: user/task/name, or less of it where a part of the tree is mounted."""
    task_id: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run that the mount's user may see."""

    path: str
    """As of RunPlace; "" where the run itself is mounted."""
    task_id: str
    created_at_ns: int
    sealed: bool
    exit_status: int | None = None
    """Of a sealed run."""


class MountControl(Protocol):
    """The requests of the command line and of the metrics. Called on the mount's own loop.

    Every call raises the classes of cloudai_model.errors. Paths are relative to the mount point, "" is all.
    """

    def status(self, path: str = "") -> MountStatus: ...

    async def wait_durable(self, path: str = "") -> None:
        """Returns when nothing below the path is pending; uploads what waits at once.

        Raises the failure of a file that needs a person. No bound of its own: callers cancel it.
        """
        ...

    async def upload_counts(self, path: str = "") -> UploadCounts:
        """Lets others run in between."""
        ...

    @property
    def is_ending(self) -> bool:
        """Whether `drain` was the last word: who unmounts has waited for uploads, or chosen not to."""
        ...

    async def drain(self, timeout_seconds: float | None = None) -> MountStatus:
        """Uploads what is pending now, complete files first and the newest of them before others, until all of
        it is durable, all that is left needs a person, or the time is over. Returns what is left.

        None for the time is the mount's own `drain_seconds`, or an hour.
        The mount stays as it is: `is_ending` is all that it remembers. Cancelled: the uploads go on.
        """
        ...

    def resume(self) -> None:
        """The mount goes on after a drain: it could not be unmounted."""
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

    async def create_run_token(self, path: str, valid_seconds: int) -> str:
        """A token that is good for the run at the path alone, valid at most as long as the mount's own."""
        ...

    async def counters(self) -> MountCounters:
        """Lets others run in between: with a long backlog there is much to count."""
        ...

    async def inspect(self) -> MountInspection:
        """Asks the master within a few seconds; that it does not answer is an answer."""
        ...

    async def warmup(
        self,
        paths: Sequence[str],
        note_progress: Callable[[WarmupProgress], None],
        cached_if: CachedIf = CachedIf.LENGTH_MATCHES,
    ) -> WarmupReport:
        """Brings the content of all files at and below the paths into the disk cache.

        Files that cannot be had are in the report. Raises NotFound for a path, NoSpace for more than the
        cache keeps, MasterUnavailable while it is not yet known what there is. Cancelled: what was fetched
        stays, and the next warm-up goes on from there.
        """
        ...
