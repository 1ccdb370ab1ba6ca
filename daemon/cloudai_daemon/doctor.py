"""What `cloudai doctor` looks at: the machine, and each mount with its directories, its token and its master.

Changes nothing, waits for nothing without a bound, and never sees a token. A finding is one line that says what is,
and what to do about it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeAlias

from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError, StatusReport
from cloudai_daemon.mount_log import LOG_NAME
from cloudai_daemon.mount_lookup import list_mounts
from cloudai_daemon.mount_refusals import advise_new_token, advise_room
from cloudai_daemon.mount_table import PROBE_SECONDS_MAX, list_mounted, within_bound
from cloudai_daemon.mounting import allows_other, is_readable_by_others
from cloudai_daemon.places import is_root
from cloudai_daemon.quantities import count_files, format_bytes
from cloudai_daemon.registry import RegistryEntry
from cloudai_fusefs.clock_difference import CLOCK_ADVICE, describe_difference
from cloudai_fusefs.kernel_knobs import (
    FUSECTL_MOUNT_COMMAND,
    SHOWS_DIRECT_WRITES_SINCE,
    KernelKnob,
    background_knobs,
    read_ahead_knob,
    shows_direct_writes,
)
from cloudai_fusefs.mount_control import CACHE_FREE_BYTES_MIN, MountInspection
from cloudai_fusefs.version import software_version
from cloudai_model.errors import Unauthenticated

FILE_SYSTEM_TYPE: Final = "fuse.cloudai"

LIBFUSE: Final = "libfuse3.so.3"

ANSWER_SECONDS_MAX: Final = 10.0
"""Of the mount daemon: twice what it gives the master."""

ROUND_TRIP_SECONDS_NOTED: Final = 1.0
TOKEN_SECONDS_NOTED: Final = 7 * 86400.0

FREE_BYTES_MIN: Final = 64 * 1024**2
"""Below it a writer soon gets ENOSPC."""


class FindingState(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Works, and could be better, or soon will not."""
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Finding:
    check: str
    state: FindingState
    text: str
    advice: str = ""
    """What to do."""


@dataclass(frozen=True, kw_only=True)
class MountFindings:
    mount_point: Path
    source: str
    findings: list[Finding]


@dataclass(frozen=True, kw_only=True)
class _Mount:
    """A mount as the kernel or the registry knows it."""

    mount_point: Path
    source: str
    device: int | None
    """None: the kernel does not list it."""
    entry: RegistryEntry | None
    """None: no daemon that this user knows of serves it."""


def _ok(check: str, text: str) -> Finding:
    return Finding(check=check, state=FindingState.OK, text=text)


def _note(check: str, text: str, advice: str = "") -> Finding:
    return Finding(check=check, state=FindingState.NOTE, text=text, advice=advice)


def _problem(check: str, text: str, advice: str = "") -> Finding:
    return Finding(check=check, state=FindingState.PROBLEM, text=text, advice=advice)


# --- the machine -----------------------------------------------------------------------------------------


def look_at_machine() -> list[Finding]:
    """What every mount needs."""
    return [check_kernel(), check_libfuse(), check_fuse_device(), check_fusermount(), check_fuse_conf()]


def check_kernel(release: str | None = None) -> Finding:
    """`release`: as uname(2) tells it."""
    check = "kernel"
    release = release or os.uname().release
    if not shows_direct_writes(release):
        since = ".".join(map(str, SHOWS_DIRECT_WRITES_SINCE))
        return _note(
            check, f"{release}, writing takes more CPU than it has to", f"boot {since} or a later one"
        )
    return _ok(check, release)


def check_libfuse(library: str = LIBFUSE) -> Finding:
    check = "libfuse"
    try:
        loaded = ctypes.CDLL(library)
    except OSError:
        return _problem(
            check, f"{library} is missing, nothing can be mounted", "`apt-get install libfuse3-3`"
        )
    loaded.fuse_pkgversion.restype = ctypes.c_char_p
    return _ok(check, loaded.fuse_pkgversion().decode())


def check_fuse_device(device: Path = Path("/dev/fuse")) -> Finding:
    check = "/dev/fuse"
    if not device.exists():
        return _problem(
            check, "is missing", "`modprobe fuse`, or start the container with --device /dev/fuse"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return _problem(check, "may not be opened by this user", f"`chmod 666 {device}` as root")
    if device.stat().st_mode & 0o006 != 0o006:
        return _note(check, "only root may open it", f"`chmod 666 {device}` lets others mount")
    return _ok(check, "everybody may open it")


def check_fusermount(program: str | None = None) -> Finding:
    """Root mounts without it."""
    check = "fusermount3"
    worse = _note if is_root() else _problem
    path = program or shutil.which(check)
    if path is None:
        return worse(check, "is missing, others than root cannot mount", "`apt-get install fuse3`")
    status = Path(path).stat()
    is_setuid = status.st_uid == 0 and status.st_mode & stat.S_ISUID
    if not is_setuid or os.statvfs(path).f_flag & os.ST_NOSUID:
        return worse(
            check, "is not setuid root, others than root cannot mount", f"`chmod u+s {path}` as root"
        )
    return _ok(check, "setuid root")


def check_fuse_conf(fuse_conf: Path = Path("/etc/fuse.conf")) -> Finding:
    check = "allow_other"
    if allows_other(fuse_conf):
        return _ok(check, "for everybody's mounts")
    if is_root():
        return _ok(check, "for root's mounts")
    return _note(
        check, "for root's mounts only", f"a line `user_allow_other` in {fuse_conf} makes it everybody's"
    )


# --- mounts ----------------------------------------------------------------------------------------------


def look_at_mounts(directory: Path | None) -> list[MountFindings]:
    """All mounts of ours that this user can know of, or the one that the directory is in; [] if there is none."""
    found = _list_all()
    if directory is not None:
        found = _containing(found, directory)
    return [
        MountFindings(
            mount_point=mount.mount_point, source=mount.source, findings=list(_look_at_mount(mount))
        )
        for mount in found
    ]


def _list_all() -> list[_Mount]:
    entries = {entry.mount_point: entry for entry in list_mounts()}
    mounted = {tree.mount_point: tree for tree in list_mounted()}
    ours = {place for place, tree in mounted.items() if tree.file_system_type == FILE_SYSTEM_TYPE}
    found = []
    for place in sorted(entries.keys() | ours):
        entry, tree = entries.get(place), mounted.get(place)
        found.append(
            _Mount(
                mount_point=place,
                source=entry.source if entry is not None else tree.source if tree is not None else "",
                device=tree.device if tree is not None else None,
                entry=entry,
            )
        )
    return found


def _containing(mounts: list[_Mount], directory: Path) -> list[_Mount]:
    try:
        path = within_bound(lambda: Path(os.path.realpath(directory)))
    except OSError:
        path = Path(os.path.abspath(directory))  # noqa: PTH100  # as it is written: the tree hangs
    containing = [mount for mount in mounts if path.is_relative_to(mount.mount_point)]
    return sorted(containing, key=lambda mount: len(mount.mount_point.parts))[-1:]


def _look_at_mount(mount: _Mount) -> Iterator[Finding]:
    if mount.device is not None:
        yield check_answer(mount.mount_point)
        yield check_read_ahead(read_ahead_knob(mount.device))
        yield check_background(background_knobs(mount.device)[0])
    else:
        yield _note("tree", "is not mounted where this program runs", "look in the daemon's mount namespace")
    if mount.entry is not None:
        yield from _look_at_daemon(mount.entry)
    else:
        yield _note(
            "daemon",
            "not among those that this user knows of",
            "look as the user who mounted it, with the same $CLOUDAI_RUNTIME_DIR",
        )


def check_answer(mount_point: Path, seconds: float = PROBE_SECONDS_MAX) -> Finding:
    check = "tree"
    began_seconds = time.monotonic()
    try:
        # Opened and listed: a stat is answered by the kernel for as long as it remembers the attributes.
        within_bound(lambda: os.listdir(mount_point), seconds)  # noqa: PTH208  # iterdir would not ask yet
    except TimeoutError:
        return _problem(
            check,
            f"does not answer within {seconds:.0f} s",
            "`cloudai status` tells of the master; the log is daemon.log in the state directory",
        )
    except PermissionError:
        return _note(check, "may not be looked into by this user", "look as the user who mounted it")
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return _problem(
                check, "its daemon has ended", f"`cloudai umount {mount_point}`, and mount it again"
            )
        return _problem(check, error.strerror or str(error), "see daemon.log in the state directory")
    return _ok(check, f"answers in {_in_ms(time.monotonic() - began_seconds)}")


CheckKnob: TypeAlias = Callable[[KernelKnob], Finding]


def check_read_ahead(knob: KernelKnob) -> Finding:
    present = knob.read()
    if present is None:
        return _note(knob.name, "cannot be seen", f"{knob.path} should say {knob.wanted}")
    if present < knob.wanted:
        return _note(knob.name, f"is {present}, reads are faster with {knob.wanted}", _command(knob))
    return _ok(knob.name, f"is {present}")


def check_background(knob: KernelKnob) -> Finding:
    present = knob.read()
    if present is None:
        return _note(
            knob.name,
            "cannot be seen, and is the kernel's small one unless it was raised",
            f"`{FUSECTL_MOUNT_COMMAND}` as root before mounting",
        )
    if present < knob.wanted:
        return _note(
            knob.name, f"is {present}, several readers are faster with {knob.wanted}", _command(knob)
        )
    return _ok(knob.name, f"is {present}")


def _command(knob: KernelKnob) -> str:
    return f"`echo {knob.wanted} | sudo tee {knob.path}`"


# --- the daemon and its master ---------------------------------------------------------------------------


def _look_at_daemon(entry: RegistryEntry) -> Iterator[Finding]:
    check = "daemon"
    try:
        with ControlClient(entry) as client:
            report = client.status("", ANSWER_SECONDS_MAX)
            inspection = client.inspect(ANSWER_SECONDS_MAX)
    except DaemonUnreachable as error:
        if isinstance(error.__cause__, PermissionError):
            yield _note(check, "answers its owner only", "look as the user who mounted it")
        else:
            log_file = entry.state_dir / LOG_NAME
            yield _problem(check, f"pid {entry.process.pid} does not answer", f"see {log_file}")
        yield from _look_at_directories(entry, None)
        return
    except RemoteError as error:
        yield _note(check, f"cannot be asked: {error}", "it may be older than this program: mount again")
        return
    yield _ok(check, f"pid {entry.process.pid} answers")
    yield from _look_at_directories(entry, Path(inspection.cache_dir))
    yield check_master(inspection, entry.source)
    yield from check_token(inspection, time.time_ns())
    yield check_versions(software_version(), inspection)
    yield from check_clock(inspection)
    yield check_staged(report)


def _look_at_directories(entry: RegistryEntry, cache_dir: Path | None) -> Iterator[Finding]:
    owner = _owner_of(entry.process.pid)
    if owner is None:
        return
    yield check_state_directory(entry.state_dir, owner)
    if cache_dir is not None:
        yield check_cache_directory(cache_dir, owner, state_dir=entry.state_dir)


def _owner_of(pid: int) -> int | None:
    """The effective user of a process; None when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[2]) for line in lines if line.startswith("Uid:"))


def check_state_directory(directory: Path, owner: int) -> Finding:
    """Of the mount's owner, closed to others, with room for what is written."""
    check = "state"
    room = _look_into_directory(check, directory, owner)
    if isinstance(room, Finding):
        return room
    if room < FREE_BYTES_MIN:
        advice = "make room: what is written is kept there until the master has it"
        return _problem(check, _describe_room(directory, room), advice)
    return _ok(check, _describe_room(directory, room))


def check_cache_directory(directory: Path, owner: int, *, state_dir: Path) -> Finding:
    """The same, with room for what is read."""
    check = "cache"
    room = _look_into_directory(check, directory, owner)
    if isinstance(room, Finding):
        return room
    free = _describe_room(directory, room)
    if room < CACHE_FREE_BYTES_MIN:
        return _note(check, free, f"nothing more is cached until there is 1 GiB: {advise_room('cache_dir')}")
    if state_dir.stat().st_dev == directory.stat().st_dev:
        return _ok(check, f"{free}, on one disk with the state")
    return _ok(check, free)


def _look_into_directory(check: str, directory: Path, owner: int) -> Finding | int:
    """What is wrong with it, or how many bytes are free on its disk."""
    try:
        status = directory.stat()
        disk = os.statvfs(directory)
    except PermissionError:
        return _note(check, f"{directory} may not be looked into by this user", "look as its owner")
    except OSError as error:
        return _problem(check, f"{directory}: {error.strerror}", "mount again: it is made then")
    if status.st_uid != owner:
        return _problem(
            check, f"{directory} is not the mount's own", f"`chown -R {owner} {directory}` as root"
        )
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return _problem(check, f"{directory} is open to others", f"`chmod 700 {directory}`")
    return disk.f_bavail * disk.f_frsize


def _describe_room(directory: Path, free_bytes: int) -> str:
    return f"{directory} has {format_bytes(free_bytes)} free"


def check_master(inspection: MountInspection, source: str) -> Finding:
    check = "master"
    if inspection.failure_reason == Unauthenticated.reason:
        return _ok(check, f"{source} answers")
    if inspection.master_failure:
        return _problem(
            check,
            f"{source}: {inspection.master_failure}",
            "is it running, and reachable from here? What is written meanwhile stays staged",
        )
    answers = f"{source} answers in {_in_ms(inspection.round_trip_seconds)}"
    if inspection.round_trip_seconds > ROUND_TRIP_SECONDS_NOTED:
        return _note(check, answers, "reads of many small files will be slow: the network, or a busy master")
    return _ok(check, answers)


def check_token(inspection: MountInspection, now_ns: int) -> Iterator[Finding]:
    """Nothing of a token whose master does not answer but its file's mode."""
    check = "token"
    renew = advise_new_token(inspection.token_file)
    if inspection.token_file and (finding := _check_token_file(Path(inspection.token_file))) is not None:
        yield finding
    if inspection.failure_reason == Unauthenticated.reason:
        yield _problem(check, inspection.master_failure, renew)
    if inspection.master_failure:
        return
    whose = f"of {inspection.token_user}" + (
        f", for the run {inspection.token_task_id}" if inspection.token_task_id else ""
    )
    if not inspection.token_expires_at_ns:
        yield _ok(check, f"{whose}, without an end")
        return
    left_seconds = (inspection.token_expires_at_ns - now_ns) / 1e9
    until = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(inspection.token_expires_at_ns / 1e9))
    if left_seconds <= 0:
        yield _problem(check, f"{whose}, ended {until} by this machine's clock", renew)
    elif left_seconds < TOKEN_SECONDS_NOTED:
        yield _note(check, f"{whose}, until {until}", renew)
    else:
        yield _ok(check, f"{whose}, until {until}")


def _check_token_file(path: Path) -> Finding | None:
    try:
        is_open = is_readable_by_others(path)
    except PermissionError:
        return None
    except OSError as error:
        return _problem(
            "token", f"{path}: {error.strerror}", "it is read again when the master refuses the token"
        )
    return _problem("token", f"{path} can be read by others", f"`chmod 600 {path}`") if is_open else None


def check_versions(ours: str, inspection: MountInspection) -> Finding:
    check = "versions"
    text = f"this program {ours}, mount daemon {inspection.version}"
    if inspection.master_version:
        text += f", master {inspection.master_version}"
    if inspection.version != ours:
        return _note(
            check, text, "`cloudai umount` and mount again: the daemon runs what it was started with"
        )
    if inspection.master_version not in ("", ours):
        return _note(check, text, "they work together; update the older one when you can")
    return _ok(check, text)


def check_clock(inspection: MountInspection) -> Iterator[Finding]:
    """Nothing of a master that does not say its time."""
    check = "clock"
    ahead_seconds = inspection.master_ahead_seconds
    if ahead_seconds is None:
        return
    difference = describe_difference(ahead_seconds, inspection.round_trip_seconds)
    if difference:
        yield _note(check, difference, CLOCK_ADVICE)
    else:
        yield _ok(check, "agrees with the master's")


def check_staged(report: StatusReport) -> Finding:
    check = "staged"
    if report.failed_count:
        return _problem(
            check,
            f"{count_files(report.failed_count)} cannot be sent",
            "`cloudai status` names them and says why",
        )
    if report.pending_count:
        left_bytes = report.pending_bytes - report.uploaded_bytes
        return _note(
            check,
            f"{count_files(report.pending_count)} not durable yet, {format_bytes(left_bytes)} to send",
            "`cloudai wait` returns when the master has them",
        )
    return _ok(check, "everything is durable")


def _in_ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
