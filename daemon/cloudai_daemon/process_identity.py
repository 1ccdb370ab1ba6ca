"""A process that may be gone, remembered so that another one with the same pid is never taken for it.

Relies on Linux: /proc/PID/stat, the boot id, pidfds.
"""

from __future__ import annotations

import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

from cloudai_model.boots import current_boot_id


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A pid is used again; a pid with its start time in one boot is not."""

    pid: int
    start_ticks: int
    """Field 22 of /proc/PID/stat."""
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The identity of a process that is there now. Raises ProcessLookupError."""
        return cls(pid=pid, start_ticks=_start_ticks(pid), boot_id=current_boot_id())

    @classmethod
    def of_child(cls, pid: int) -> ProcessIdentity:
        """The identity of a child that nobody has waited for; it may have ended already."""
        return cls(pid=pid, start_ticks=_read_stat(pid)[1], boot_id=current_boot_id())

    @property
    def is_alive(self) -> bool:
        """False for a zombie too."""
        try:
            return current_boot_id() == self.boot_id and _start_ticks(self.pid) == self.start_ticks
        except ProcessLookupError:
            return False

    @property
    def is_stuck(self) -> bool:
        """Whether it has ended but for threads that the kernel does not let go."""
        try:
            is_over = _read_stat(self.pid) == (b"Z", self.start_ticks) and current_boot_id() == self.boot_id
            return is_over and sum(1 for _ in Path(f"/proc/{self.pid}/task").iterdir()) > 1
        except (ProcessLookupError, FileNotFoundError):
            return False

    def send_signal(self, signal_number: signal.Signals) -> bool:
        """Whether it was there to be signalled. Raises PermissionError for somebody else's."""
        pidfd = self._open()
        if pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(pidfd, signal_number)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    def wait_gone(self, timeout_seconds: float) -> bool:
        """Whether it ended within the time."""
        pidfd = self._open()
        if pidfd is None:
            return True
        try:
            # poll, not select: a pidfd may be over 1023.
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            return bool(poller.poll(timeout_seconds * 1000))
        finally:
            os.close(pidfd)

    def _open(self) -> int | None:
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        # Checked after the open: from here on the descriptor cannot mean another process.
        if not self.is_alive:
            os.close(pidfd)
            return None
        return pidfd


def _start_ticks(pid: int) -> int:
    state, start_ticks = _read_stat(pid)
    if state in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return start_ticks


def _read_stat(pid: int) -> tuple[bytes, int]:
    """State and start time. Raises ProcessLookupError."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(pid) from error
    # The second field is the program's name in parentheses and may hold both spaces and parentheses.
    state, *fields = stat[stat.rindex(b")") + 2 :].split()
    return state, int(fields[18])
