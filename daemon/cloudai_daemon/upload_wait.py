"""Waiting until what was written is durable, with a progress bar on a terminal.

Relies on the control socket; survives a restart of the mount daemon in between. Waiting changes nothing:
given up or interrupted, the data stays staged and goes on being sent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError, StatusReport
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_lookup import require_alive
from cloudai_daemon.quantities import count_files, format_bytes
from cloudai_fusefs.mount_control import UploadCounts

UPLOAD_SECONDS_MAX_DEFAULT: Final = 86400.0
"""A day: long enough for a weekend's backlog on a bad line, and yet an end for a container nobody watches."""

DESCRIPTION_SECONDS_MAX: Final = 15.0
"""When the time is over, for saying what is left: a daemon that answers at all takes far less."""

# Between two looks whether the daemon is back.
_RETURN_POLL_SECONDS: Final = 0.2
# A daemon that was killed and is started again by whoever looks after it.
_RETURN_SECONDS_MAX: Final = 30.0


class NotDurable(CommandFailed):
    """The wait ended before everything was durable."""

    def __init__(self, line: str) -> None:
        super().__init__(ExitCode.NOT_DURABLE, line)


class ProgressDisplay(Protocol):
    @property
    def is_shown(self) -> bool:
        """Whether anybody sees it: counting a backlog costs the mount something."""
        ...

    def show(self, counts: UploadCounts) -> None: ...


class _NoDisplay:
    is_shown = False

    def show(self, counts: UploadCounts) -> None:
        """Nothing: standard error is no terminal."""


@contextmanager
def open_display() -> Iterator[ProgressDisplay]:
    """A progress bar on standard error if that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield _NoDisplay()
        return
    # Imported here: rich takes 50 ms, and most commands print one line.
    from cloudai_daemon.progress_bar import UploadBar

    with UploadBar() as bar:
        yield bar


def wait_durable(
    mount_point: Path,
    path: str = "",
    *,
    timeout_seconds: float,
    description_seconds_max: float = DESCRIPTION_SECONDS_MAX,
) -> None:
    """Returns when nothing below the path (relative to the mount point) is staged only.

    Raises NotDurable when the time is over, a file needs a person, or the mount daemon is gone and does
    not come back; what is left is asked for when the time is over.
    """
    deadline = time.monotonic() + timeout_seconds
    last_answer = time.monotonic()
    with open_display() as display:
        while True:
            try:
                with ControlClient(require_alive(mount_point)) as client:
                    last_answer = time.monotonic()
                    _wait_at(client, path, deadline, description_seconds_max, display)
                    return
            except DaemonUnreachable as error:
                if time.monotonic() > min(deadline, last_answer + _RETURN_SECONDS_MAX):
                    raise NotDurable(
                        f"{error}; what it staged is sent by the next `cloudai mount`"
                    ) from error
                time.sleep(_RETURN_POLL_SECONDS)
            except RemoteError as error:
                raise NotDurable(f"{mount_point / path}: not durable: {error}") from error


def _wait_at(
    client: ControlClient,
    path: str,
    deadline: float,
    description_seconds_max: float,
    display: ProgressDisplay,
) -> None:
    request_id = client.send("wait_durable", {"path": path, "progress": display.is_shown})
    show_until_answered(client, request_id, display, deadline)
    if not client.poll(request_id, 0):
        report = client.status(path, description_seconds_max)
        raise NotDurable(describe_backlog(client.entry.mount_point / path, report))
    client.take(request_id)


def show_until_answered(
    client: ControlClient, request_id: int, display: ProgressDisplay, deadline: float
) -> None:
    """Returns when the request has its answer or the time is over, whichever comes first."""
    while not client.poll(request_id, 0) and (remaining := deadline - time.monotonic()) > 0:
        progress = client.next_progress(request_id, remaining)
        if progress is not None:
            display.show(UploadCounts(**progress))


def left_unmounted(left: str) -> NotDurable:
    """How a command says that the mount is gone, and that something is staged still: `left` says what."""
    return NotDurable(f"{left}; unmounted: the next `cloudai mount` sends it")


def describe_backlog(place: Path, report: StatusReport) -> str:
    """One line on what is still staged."""
    left_bytes = report.pending_bytes - report.uploaded_bytes
    files = count_files(report.pending_count)
    reason = "" if report.connected else "; the master does not answer"
    return f"{place}: {files} not durable yet, {format_bytes(left_bytes)} to send{reason}"
