"""Running one command in the foreground: its terminal, its signals, its exit status.

Relies on posix_spawn and sigwaitinfo: signals are taken one after another in a loop, no handler runs in
between, and none is lost between the start of the command and its end.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cloudai_daemon.exit_codes import SIGNALLED_BASE, ExitCode

_FORWARDED: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_TAKEN: Final = _FORWARDED | {signal.SIGCHLD}

# What Python itself ignores and a command must not inherit ignored.
_RESET: Final = (signal.SIGPIPE, signal.SIGXFSZ)

# si_code of a signal that the kernel sent: Ctrl-C, to the terminal's whole foreground group.
_SI_KERNEL: Final = 0x80


class CommandNotStarted(Exception):
    """The command cannot be executed; `exit_status` is what a shell would give."""

    def __init__(self, exit_status: int, line: str) -> None:
        super().__init__(line)
        self.exit_status = exit_status


def check_command(command: Sequence[str]) -> None:
    """Accept a command that looks executable. Raises CommandNotStarted, 127 or 126."""
    name = command[0]
    if shutil.which(name) is not None:
        return
    candidates = [Path(name)] if "/" in name else [Path(folder, name) for folder in os.get_exec_path()]
    if any(candidate.is_file() or ("/" in name and candidate.exists()) for candidate in candidates):
        raise CommandNotStarted(ExitCode.NOT_EXECUTABLE, f"{name}: permission denied")
    raise CommandNotStarted(ExitCode.NOT_FOUND, f"{name}: command not found")


@contextmanager
def signals_held() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP wait within the context, for whoever unblocks them there or for its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_in_foreground(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the command to its end with this process's standard streams; its exit status, 128 + N for a
    signal N.

    SIGINT, SIGTERM and SIGHUP that this process gets meanwhile go to the command, which decides; a Ctrl-C
    the terminal has sent it already. Raises CommandNotStarted.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
    try:
        try:
            pid = os.posix_spawnp(
                command[0], list(command), environment, setsigmask=before - _TAKEN, setsigdef=_RESET
            )
        except FileNotFoundError as error:
            raise CommandNotStarted(ExitCode.NOT_FOUND, f"{command[0]}: command not found") from error
        except OSError as error:
            line = f"{command[0]}: {(error.strerror or str(error)).lower()}"
            raise CommandNotStarted(ExitCode.NOT_EXECUTABLE, line) from error
        return _forward_until_end(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forward_until_end(pid: int) -> int:
    while True:
        # Before the wait too: the child may have ended before the first sigwaitinfo.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            # While the child is still to be seen: a signal that comes once it is gone is not forgotten.
            _forget_pending()
            _, status = os.waitpid(pid, 0)
            exit_status = os.waitstatus_to_exitcode(status)
            return exit_status if exit_status >= 0 else SIGNALLED_BASE - exit_status
        taken = signal.sigwaitinfo(_TAKEN)
        if taken.si_signo == signal.SIGCHLD:
            continue
        if taken.si_signo == signal.SIGINT and taken.si_code == _SI_KERNEL:
            continue
        # The child is not waited for yet, so its pid cannot be another process's.
        os.kill(pid, taken.si_signo)


def _forget_pending() -> None:
    # The Ctrl-C that ended the command must not also end the wait for its uploads.
    while signal.sigtimedwait(_TAKEN, 0) is not None:
        pass
