"""A mount's daemon with its directories, its token and its master."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError, StatusReport
from cloudai_daemon.doctor.findings import Finding, in_ms, note, ok, problem
from cloudai_daemon.mount_log import LOG_NAME
from cloudai_daemon.mount_refusals import advise_new_token, advise_room
from cloudai_daemon.mounting import is_readable_by_others
from cloudai_daemon.quantities import count_files, format_bytes
from cloudai_daemon.registry import RegistryEntry
from cloudai_fusefs.clock_difference import CLOCK_ADVICE, describe_difference
from cloudai_fusefs.mount_control import CACHE_FREE_BYTES_MIN, MountInspection
from cloudai_fusefs.version import software_version
from cloudai_model.errors import Unauthenticated

ANSWER_SECONDS_MAX: Final = 10.0
"""Of the mount daemon: twice what it gives the master."""

ROUND_TRIP_SECONDS_NOTED: Final = 1.0
TOKEN_SECONDS_NOTED: Final = 7 * 86400.0

FREE_BYTES_MIN: Final = 64 * 1024**2
"""Below it a writer soon gets ENOSPC."""


def look_at_daemon(entry: RegistryEntry) -> Iterator[Finding]:
    check = "daemon"
    try:
        with ControlClient(entry) as client:
            report = client.status("", ANSWER_SECONDS_MAX)
            inspection = client.inspect(ANSWER_SECONDS_MAX)
    except DaemonUnreachable as error:
        if isinstance(error.__cause__, PermissionError):
            yield note(check, "answers its owner only", "look as the user who mounted it")
        else:
            log_file = entry.state_dir / LOG_NAME
            yield problem(check, f"pid {entry.process.pid} does not answer", f"see {log_file}")
        yield from _look_at_directories(entry, None)
        return
    except RemoteError as error:
        yield note(check, f"cannot be asked: {error}", "it may be older than this program: mount again")
        return
    yield ok(check, f"pid {entry.process.pid} answers")
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
        return problem(check, _describe_room(directory, room), advice)
    return ok(check, _describe_room(directory, room))


def check_cache_directory(directory: Path, owner: int, *, state_dir: Path) -> Finding:
    """The same, with room for what is read."""
    check = "cache"
    room = _look_into_directory(check, directory, owner)
    if isinstance(room, Finding):
        return room
    free = _describe_room(directory, room)
    if room < CACHE_FREE_BYTES_MIN:
        return note(check, free, f"nothing more is cached until there is 1 GiB: {advise_room('cache_dir')}")
    with suppress(OSError):  # what is wrong with the state directory, its own check says
        if state_dir.stat().st_dev == directory.stat().st_dev:
            return ok(check, f"{free}, on one disk with the state")
    return ok(check, free)


def _look_into_directory(check: str, directory: Path, owner: int) -> Finding | int:
    """What is wrong with it, or how many bytes are free on its disk."""
    try:
        status = directory.stat()
        disk = os.statvfs(directory)
    except PermissionError:
        return note(check, f"{directory} may not be looked into by this user", "look as its owner")
    except OSError as error:
        return problem(check, f"{directory}: {error.strerror}", "mount again: it is made then")
    if status.st_uid != owner:
        return problem(
            check, f"{directory} is not the mount's own", f"`chown -R {owner} {directory}` as root"
        )
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return problem(check, f"{directory} is open to others", f"`chmod 700 {directory}`")
    return disk.f_bavail * disk.f_frsize


def _describe_room(directory: Path, free_bytes: int) -> str:
    return f"{directory} has {format_bytes(free_bytes)} free"


def check_master(inspection: MountInspection, source: str) -> Finding:
    check = "master"
    if inspection.failure_reason == Unauthenticated.reason:
        return ok(check, f"{source} answers")
    if inspection.master_failure:
        return problem(
            check,
            f"{source}: {inspection.master_failure}",
            "is it running, and reachable from here? What is written meanwhile stays staged",
        )
    answers = f"{source} answers in {in_ms(inspection.round_trip_seconds)}"
    if inspection.round_trip_seconds > ROUND_TRIP_SECONDS_NOTED:
        return note(check, answers, "reads of many small files will be slow: the network, or a busy master")
    return ok(check, answers)


def check_token(inspection: MountInspection, now_ns: int) -> Iterator[Finding]:
    """Nothing of a token whose master does not answer but its file's mode."""
    check = "token"
    renew = advise_new_token(inspection.token_file)
    if inspection.token_file and (finding := _check_token_file(Path(inspection.token_file))) is not None:
        yield finding
    if inspection.failure_reason == Unauthenticated.reason:
        yield problem(check, inspection.master_failure, renew)
    if inspection.master_failure:
        return
    whose = f"of {inspection.token_user}" + (
        f", for the run {inspection.token_task_id}" if inspection.token_task_id else ""
    )
    if not inspection.token_expires_at_ns:
        yield ok(check, f"{whose}, without an end")
        return
    left_seconds = (inspection.token_expires_at_ns - now_ns) / 1e9
    until = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(inspection.token_expires_at_ns / 1e9))
    if left_seconds <= 0:
        yield problem(check, f"{whose}, ended {until} by this machine's clock", renew)
    elif left_seconds < TOKEN_SECONDS_NOTED:
        yield note(check, f"{whose}, until {until}", renew)
    else:
        yield ok(check, f"{whose}, until {until}")


def _check_token_file(path: Path) -> Finding | None:
    try:
        is_open = is_readable_by_others(path)
    except PermissionError:
        return None
    except OSError as error:
        return problem(
            "token", f"{path}: {error.strerror}", "it is read again when the master refuses the token"
        )
    return problem("token", f"{path} can be read by others", f"`chmod 600 {path}`") if is_open else None


def check_versions(ours: str, inspection: MountInspection) -> Finding:
    check = "versions"
    text = f"this program {ours}, mount daemon {inspection.version}"
    if inspection.master_version:
        text += f", master {inspection.master_version}"
    if inspection.version != ours:
        return note(check, text, "`cloudai umount` and mount again: the daemon runs what it was started with")
    if inspection.master_version not in ("", ours):
        return note(check, text, "they work together; update the older one when you can")
    return ok(check, text)


def check_clock(inspection: MountInspection) -> Iterator[Finding]:
    """Nothing of a master that does not say its time."""
    check = "clock"
    ahead_seconds = inspection.master_ahead_seconds
    if ahead_seconds is None:
        return
    difference = describe_difference(ahead_seconds, inspection.round_trip_seconds)
    if difference:
        yield note(check, difference, CLOCK_ADVICE)
    else:
        yield ok(check, "agrees with the master's")


def check_staged(report: StatusReport) -> Finding:
    check = "staged"
    if report.failed_count:
        return problem(
            check,
            f"{count_files(report.failed_count)} cannot be sent",
            "`cloudai status` names them and says why",
        )
    if report.pending_count:
        left_bytes = report.pending_bytes - report.uploaded_bytes
        return note(
            check,
            f"{count_files(report.pending_count)} not durable yet, {format_bytes(left_bytes)} to send",
            "`cloudai wait` returns when the master has them",
        )
    return ok(check, "everything is durable")
