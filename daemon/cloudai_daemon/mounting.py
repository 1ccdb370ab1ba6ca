"""What `cloudai mount` does: checks, then a mount process of its own, then the proof that the tree answers.

Relies on mount_process for the work. Every refusal is a CommandFailed with one line; nothing is mounted then.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloudai_daemon.abandoned_mounts import is_abandoned
from cloudai_daemon.detached_process import start_to_be_detached
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_config_codec import encode_config
from cloudai_daemon.mount_log import LOG_NAME
from cloudai_daemon.mount_refusals import describe_os_error
from cloudai_daemon.mount_source import is_loopback, parse_source
from cloudai_daemon.mount_table import find_mounted, is_trigger, unmount, within_bound
from cloudai_daemon.options import MountOptions
from cloudai_daemon.places import (
    cache_home,
    is_root,
    make_private_dir,
    mount_state_dir,
    runtime_dir,
    runtime_dirs_to_search,
)
from cloudai_daemon.process_identity import ProcessIdentity
from cloudai_daemon.registry import RegistryEntry, list_live
from cloudai_fusefs.mount_control import MountConfig
from cloudai_model.full_disks import is_lack_of_room
from cloudai_model.service_manager import VARIABLES as SERVICE_VARIABLES

# -P: whatever modules are in the directory that somebody mounts from, they are not ours.
MOUNT_PROCESS_COMMAND: Final = (sys.executable, "-P", "-m", "cloudai_daemon.mount_process")

SUPERVISOR_COMMAND: Final = (sys.executable, "-P", "-m", "cloudai_daemon.supervisor")

# The filesystem gives a master that is not there up after a few seconds; this is for one that hangs, and
# leaves a slow machine time to start Python.
_READY_SECONDS_MAX: Final = 20.0
# A supervisor waits for its daemon as long as that, and then says so.
_SUPERVISED_SECONDS_MAX: Final = _READY_SECONDS_MAX + 10.0
_STOP_SECONDS_MAX: Final = 5.0
# Mounts on top of each other that a crash left; nobody has that many.
_DEAD_MOUNTS_MAX: Final = 8
_TOKEN_BYTES_MAX: Final = 16 * 1024


def resolve_mount_point(directory: Path) -> Path:
    """The absolute path as the kernel's mount table has it: no symlinks, and the tree below is not asked."""
    absolute = Path(os.path.abspath(directory))  # noqa: PTH100  # Path.resolve would stat a dead mount
    parent = absolute.parent.resolve()
    candidate = parent / absolute.name
    if find_mounted(candidate) is not None:
        return candidate
    return candidate.resolve()


def resolve_config(source: str, directory: Path, options: MountOptions) -> MountConfig:
    """The options of one mount with the defaults of this user.

    The token is $CLOUDAI_TOKEN's unless a file is named. Raises CommandFailed (usage) when what was given
    does not go together.
    """
    full_source = parse_source(source)
    address = full_source.partition("/")[0]
    if options.get("insecure") and not is_loopback(address):
        raise CommandFailed(
            ExitCode.USAGE,
            f"insecure is for a master on this machine only: {address} is not on the loopback",
        )
    if options.get("insecure") and "ca_file" in options:
        raise CommandFailed(ExitCode.USAGE, "insecure and ca= exclude each other")
    mount_point = resolve_mount_point(directory)
    given: MountOptions = {
        "state_dir": mount_state_dir(mount_point),
        "cache_dir": cache_home(),
        **({} if is_root() else {"uid": os.getuid(), "gid": os.getgid()}),
        **options,
    }
    _refuse_places_below(mount_point, given)
    return MountConfig(
        source=full_source, shown_source=source, mount_point=mount_point, **given, **_find_token(options)
    )


def _refuse_places_below(mount_point: Path, given: MountOptions) -> None:
    """What the daemon reads and writes would be asked of the daemon itself, which waits for it.

    Raises CommandFailed (usage).
    """
    for name in ("state_dir", "cache_dir"):
        place = given.get(name)
        if isinstance(place, Path) and _is_below(mount_point, place):
            raise CommandFailed(
                ExitCode.USAGE,
                f"{name}={place} is in {mount_point}, where it cannot be found once that is mounted",
            )


def _is_below(mount_point: Path, place: Path) -> bool:
    if place.is_relative_to(mount_point):
        return True
    try:
        return within_bound(place.resolve).is_relative_to(mount_point)
    except OSError:
        return False  # whoever uses it says what is wrong with it


def _find_token(options: MountOptions) -> dict[str, str]:
    if "token_file" in options:
        read_token(options["token_file"])
        return {}
    token = os.environ.get("CLOUDAI_TOKEN", "").strip()
    if not token:
        raise CommandFailed(ExitCode.USAGE, "no token: give --token-file, token_file= or $CLOUDAI_TOKEN")
    return {"token": token}


def read_token(path: Path) -> str:
    """The token in a file. Raises CommandFailed (usage) for a file that is not there or holds none."""
    try:
        with path.open("rb") as file:
            token = file.read(_TOKEN_BYTES_MAX).decode("ascii").strip()
    except OSError as error:
        raise CommandFailed(ExitCode.USAGE, f"token file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CommandFailed(ExitCode.USAGE, f"token file {path}: holds no token") from error
    if not token or any(character.isspace() for character in token):
        raise CommandFailed(ExitCode.USAGE, f"token file {path}: holds no token")
    return token


def is_readable_by_others(path: Path) -> bool:
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def check_machine(config: MountConfig) -> None:
    """Accept a machine on which FUSE works for this user. Raises CommandFailed."""
    device = Path("/dev/fuse")
    if not device.exists():
        raise CommandFailed(
            ExitCode.MOUNT_FAILED,
            "/dev/fuse is missing: `modprobe fuse`, or start the container with --device /dev/fuse",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        raise CommandFailed(
            ExitCode.MOUNT_FAILED,
            "/dev/fuse: permission denied for this user: udev makes it everybody's, "
            "without udev `chmod 666 /dev/fuse` as root does",
        )
    if config.allow_other and not is_root() and not allows_other():
        raise CommandFailed(
            ExitCode.MOUNT_FAILED, "allow_other needs a line `user_allow_other` in /etc/fuse.conf"
        )


def allows_other(fuse_conf: Path = Path("/etc/fuse.conf")) -> bool:
    """Whether users other than root may mount with allow_other."""
    try:
        lines = fuse_conf.read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def prepare_mount_point(mount_point: Path) -> None:
    """Accept an empty directory where nothing is mounted; dead mounts there are cleared away first.

    Raises CommandFailed.
    """
    for _ in range(_DEAD_MOUNTS_MAX):
        if not _is_dead_mount(mount_point):
            break
        unmount(mount_point, lazily=True)
    _check_mount_point(mount_point)


def _is_dead_mount(mount_point: Path) -> bool:
    return find_mounted(mount_point) is not None and is_abandoned(mount_point)


def _check_mount_point(mount_point: Path) -> None:
    mounted = find_mounted(mount_point)
    if mounted is not None:
        raise CommandFailed(
            ExitCode.MOUNT_FAILED,
            f"{mount_point}: already mounted: {mounted.source} ({mounted.file_system_type})",
        )
    if is_trigger(mount_point):
        return  # there is nothing in it, and to look for something is to wait for this mount
    try:
        with os.scandir(mount_point) as entries:
            is_empty = next(entries, None) is None
    except OSError as error:
        raise CommandFailed(ExitCode.MOUNT_FAILED, f"{mount_point}: {error.strerror}") from error
    if not is_empty:
        raise CommandFailed(ExitCode.MOUNT_FAILED, f"{mount_point}: the directory is not empty")


def rehearse_mount(config: MountConfig) -> None:
    """What `prepare_mount` would refuse is refused, and nothing is changed. Raises CommandFailed."""
    check_machine(config)
    if not _is_dead_mount(config.mount_point):
        _check_mount_point(config.mount_point)


def prepare_mount(config: MountConfig) -> None:
    """Makes room and directories for a mount; all that can be refused before a process is started is.

    Raises CommandFailed.
    """
    check_machine(config)
    prepare_mount_point(config.mount_point)
    _end_unmounted(config.state_dir)
    try:
        make_private_dir(config.state_dir)
        _require_private(config.state_dir)
    except OSError as error:
        raise CommandFailed(ExitCode.MOUNT_FAILED, describe_os_error(error, config.state_dir)) from error
    try:
        make_private_dir(config.cache_dir)
    except OSError as error:
        if not is_lack_of_room(error):  # else it is made once there is room
            raise CommandFailed(ExitCode.MOUNT_FAILED, f"{error.filename}: {error.strerror}") from error


def _require_private(state_dir: Path) -> None:
    """What is staged is uploaded in this user's name, and the log is written where its name leads.

    Raises CommandFailed, OSError.
    """
    status = state_dir.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CommandFailed(
            ExitCode.MOUNT_FAILED, f"{state_dir}: others can write into the state directory: chmod 700 it"
        )


def _end_unmounted(state_dir: Path) -> None:
    """A daemon of this state directory whose mount is gone, and which is still uploading what was left, leaves
    that to the mount that is to come.
    """
    for entry in list_live(runtime_dirs_to_search()):
        # In its own mount namespace: what is mounted in a container is not seen here.
        with suppress(OSError):
            if entry.state_dir == state_dir and find_mounted(entry.mount_point, entry.process.pid) is None:
                entry.process.send_signal(signal.SIGTERM)
                entry.process.wait_gone(_STOP_SECONDS_MAX)


def start_mount(config: MountConfig, command: Sequence[str] = ()) -> RegistryEntry:
    """Mounts in a new process, under a supervisor if the mount is to have one, and returns once the tree answers
    `stat` and a listing.

    `command` takes the place of that process. Raises CommandFailed (32) within about 20 s, 30 s under a supervisor;
    then no process and no mount is left.
    """
    command = command or (SUPERVISOR_COMMAND if config.supervise else MOUNT_PROCESS_COMMAND)
    process, report_descriptor = _start_process(config, command)
    try:
        with os.fdopen(report_descriptor, "rb", buffering=0) as pipe:
            _await_report(pipe.fileno(), config)
        _await_answer(config.mount_point)
        return _find_entry(config.mount_point, None if config.supervise else process)
    except BaseException:
        # A supervisor takes its daemon down before itself.
        seconds_max = 2 * _STOP_SECONDS_MAX if config.supervise else _STOP_SECONDS_MAX
        _stop_process(process, config.mount_point, seconds_max)
        raise


def _start_process(config: MountConfig, command: Sequence[str]) -> tuple[ProcessIdentity, int]:
    # The token goes through the pipe alone; a service manager waits for this process, not for the daemon.
    kept_back = {"CLOUDAI_TOKEN"} | SERVICE_VARIABLES
    environment = {name: value for name, value in os.environ.items() if name not in kept_back}
    config_read, config_write = os.pipe()
    report_read, report_write = os.pipe()
    log_descriptor = os.open(
        config.state_dir / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
    )
    try:
        # A place that is mounted when it is looked into lets the process group of who mounts it in, and nobody else.
        process = start_to_be_detached(
            command, environment, stdin=config_read, stdout=report_write, stderr=log_descriptor
        )
    except OSError as error:
        os.close(config_write)
        os.close(report_read)
        raise CommandFailed(ExitCode.MOUNT_FAILED, f"{command[0]}: {error.strerror}") from error
    finally:
        os.close(config_read)
        os.close(report_write)
        os.close(log_descriptor)
    # At most a few KiB: fits in the pipe whether or not anybody reads. A process that has ended already says
    # so by its closed report.
    with suppress(BrokenPipeError), os.fdopen(config_write, "wb") as pipe:
        pipe.write(encode_config(config))
    return process, report_read


def _await_report(descriptor: int, config: MountConfig) -> None:
    seconds_max = _SUPERVISED_SECONDS_MAX if config.supervise else _READY_SECONDS_MAX
    deadline = time.monotonic() + seconds_max
    received = b""
    while b"\n" not in received:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise CommandFailed(
                ExitCode.MOUNT_FAILED,
                f"{config.mount_point}: not mounted after {seconds_max:.0f} s, given up",
            )
        part = os.read(descriptor, 4096)
        if not part:
            raise CommandFailed(
                ExitCode.MOUNT_FAILED,
                f"{config.mount_point}: the mount daemon ended; see {config.state_dir / 'daemon.log'}",
            )
        received += part
    answer = json.loads(received)
    if "error" in answer:
        raise CommandFailed(ExitCode.MOUNT_FAILED, str(answer["error"]))


def _await_answer(mount_point: Path) -> None:
    def list_tree() -> list[str]:
        mount_point.stat()
        return os.listdir(mount_point)  # noqa: PTH208  # the listing itself is the proof

    try:
        within_bound(list_tree)
    except OSError as error:
        raise CommandFailed(
            ExitCode.MOUNT_FAILED, f"{mount_point}: mounted, but the tree does not answer: {error.strerror}"
        ) from error


def _find_entry(mount_point: Path, process: ProcessIdentity | None) -> RegistryEntry:
    """`process`: the daemon, unless a supervisor has started it."""
    for entry in list_live([runtime_dir()]):
        if entry.mount_point == mount_point and process in (None, entry.process):
            return entry
    raise CommandFailed(ExitCode.MOUNT_FAILED, f"{mount_point}: the mount daemon ended at once")


def _stop_process(process: ProcessIdentity, mount_point: Path, seconds_max: float) -> None:
    # SIGKILL: whatever hangs, the kernel then answers those who wait in the tree with ENOTCONN.
    if (
        not process.wait_gone(0)
        and process.send_signal(signal.SIGTERM)
        and not process.wait_gone(seconds_max)
    ):
        process.send_signal(signal.SIGKILL)
        process.wait_gone(_STOP_SECONDS_MAX)
    with suppress(ChildProcessError):
        # A supervisor lives on, and would gather one that has ended for each attempt.
        os.waitpid(process.pid, os.WNOHANG)
    if find_mounted(mount_point) is not None and is_abandoned(mount_point):
        unmount(mount_point, lazily=True)
