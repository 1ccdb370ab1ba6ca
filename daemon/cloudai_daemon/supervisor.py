"""What `cloudai mount --supervise` leaves running: the mount daemon is its child, and is started anew when it dies.

Configuration on standard input and one report on standard output, as of mount_process. What ends a mount in order
(umount, `cloudai umount`, a signal to either process) ends both. SIGKILL of this process leaves the mount as it is,
with nobody to look after it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from cloudai_daemon.abandoned_mounts import is_abandoned, let_go
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_config_codec import decode_config
from cloudai_daemon.mount_log import FollowedLog, log_to
from cloudai_daemon.mount_report import open_report
from cloudai_daemon.mount_shield import raise_shield, take_shield_away
from cloudai_daemon.mount_table import find_mounted, has_shield
from cloudai_daemon.mounting import prepare_mount, start_mount
from cloudai_daemon.places import runtime_dir
from cloudai_daemon.process_identity import ProcessIdentity
from cloudai_daemon.registry import RegistryEntry, register, supervisor_dir, unregister
from cloudai_fusefs.mount_control import MountConfig

log = logging.getLogger("cloudai_daemon.supervisor")

STEADY_SECONDS: Final = 10.0
"""Who served for as long is started anew at once, others after a pause that doubles."""

PAUSE_SECONDS_MIN: Final = 0.5
PAUSE_SECONDS_MAX: Final = 30.0

# A thread that was there before the signals were blocked may be given a SIGCHLD, and it is lost.
_LOOK_SECONDS: Final = 1.0

_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_TAKEN: Final = _ENDING | {signal.SIGCHLD}

Start = Callable[[MountConfig], ProcessIdentity]
"""Mounts and returns once the tree answers; the daemon, a child of this process. Raises CommandFailed."""


def start_daemon(config: MountConfig) -> ProcessIdentity:
    """See `Start`. What a dead daemon has left mounted is taken away first; what is under it shields the place."""
    prepare_mount(config)
    raise_shield(config.mount_point)
    return start_mount(replace(config, supervise=False)).process


class ToldToEnd(Exception):
    """A signal to end came while the daemon was being started."""


@contextmanager
def _interrupted_by_ending() -> Iterator[None]:
    """Within the context a signal to end raises ToldToEnd: who starts a daemon takes it down again then."""

    def end(number: int, frame: FrameType | None) -> None:
        raise ToldToEnd

    before = {number: signal.signal(number, end) for number in _ENDING}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        for number, handler in before.items():
            signal.signal(number, handler)


class Supervisor:
    """Of one mount. SIGTERM, SIGINT and SIGCHLD are blocked in this process and taken one after another."""

    def __init__(self, config: MountConfig, start: Start = start_daemon) -> None:
        self._config = config
        self._start = start
        self._pause_seconds = 0.0

    def run(self, on_ready: Callable[[], None]) -> int:
        """Serves until the mount ends in order; the exit status. Raises CommandFailed: it cannot be mounted at all."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
        daemon = self._start_or_end()
        if daemon is not None:
            on_ready()
        while daemon is not None:
            began_seconds = time.monotonic()
            exit_status = _await_end(daemon, self._config.mount_point)
            if exit_status in (ExitCode.OK, ExitCode.NOT_DURABLE):
                return exit_status
            if _is_unmounted(self._config.mount_point):
                log.error("the mount daemon ended with %d after the unmount", exit_status)
                return exit_status
            log.error("the mount daemon ended with %d: it is started again", exit_status)
            if time.monotonic() - began_seconds >= STEADY_SECONDS:
                self._pause_seconds = 0.0
            daemon = self._start_again()
        return ExitCode.OK

    def _start_or_end(self) -> ProcessIdentity | None:
        """None: this process was told to end meanwhile, and nothing is mounted. Raises CommandFailed, OSError."""
        daemon = None
        try:
            with _interrupted_by_ending():
                daemon = self._start(self._config)
        except ToldToEnd:
            signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
            if daemon is not None:
                daemon.send_signal(signal.SIGTERM)
                _await_end(daemon, self._config.mount_point)
            return None
        return daemon

    def _start_again(self) -> ProcessIdentity | None:
        """None: this process was told to end meanwhile, or somebody else has unmounted the place or mounted there."""
        mount_point = self._config.mount_point
        was_shielded = has_shield(mount_point)
        while not _is_told_to_end(self._pause_seconds):
            if was_shielded and not has_shield(mount_point):
                log.info("%s was unmounted", mount_point)
                return None
            if not _is_unmounted(mount_point) and not is_abandoned(mount_point):
                log.info("somebody else has mounted %s", mount_point)
                return None
            self._pause_seconds = min(max(PAUSE_SECONDS_MIN, self._pause_seconds * 2), PAUSE_SECONDS_MAX)
            try:
                return self._start_or_end()
            except CommandFailed as error:
                log.error("not mounted: %s", error.line)  # noqa: TRY400  # the line says it
            except OSError as error:
                # As of a machine without memory for another process, which may be what the daemon died of.
                log.error("not mounted: %s", error)  # noqa: TRY400
        return None


def _is_unmounted(mount_point: Path) -> bool:
    return find_mounted(mount_point) is None


def _await_end(daemon: ProcessIdentity, mount_point: Path) -> int:
    """The exit status of a child, -N for a signal N. A signal to end is handed on to it."""
    while True:
        if os.waitid(os.P_PID, daemon.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            _, status = os.waitpid(daemon.pid, 0)
            return os.waitstatus_to_exitcode(status)
        if daemon.is_stuck:
            let_go(mount_point)
        taken = signal.sigtimedwait(_TAKEN, _LOOK_SECONDS)
        if taken is not None and taken.si_signo in _ENDING:
            # Not waited for yet, so its pid cannot be another process's.
            os.kill(daemon.pid, taken.si_signo)


def _is_told_to_end(seconds: float) -> bool:
    """Whether a signal to end comes within the time."""
    return signal.sigtimedwait(_ENDING, seconds) is not None


def main() -> int:
    """The program: configuration on standard input, one report on standard output."""
    os.chdir("/")
    os.umask(0o077)
    config = decode_config(sys.stdin.buffer.read())
    report = open_report()
    log_to(FollowedLog(config.state_dir))
    entry = _entry_of(config)
    register(entry, supervisor_dir(runtime_dir()))
    try:
        return Supervisor(config).run(lambda: report(None))
    except CommandFailed as error:
        report(error.line)
        return error.exit_code
    finally:
        take_shield_away(config.mount_point)
        unregister(entry, supervisor_dir(runtime_dir()))


def _entry_of(config: MountConfig) -> RegistryEntry:
    return RegistryEntry(
        mount_point=config.mount_point,
        source=config.source,
        control_socket=config.state_dir,  # it has none
        state_dir=config.state_dir,
        process=ProcessIdentity.of(os.getpid()),
    )


if __name__ == "__main__":
    sys.exit(main())
