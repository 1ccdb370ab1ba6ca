"""The mounts of volumes on this machine: each of its run alone, at the volume's staging path, with a daemon and a
supervisor of its own and a state directory below the driver's.

They outlive this process, which finds them again by the volumes' records. Blocks, from any thread; one caller at a time
for a volume. Raises VolumeFailed.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from typing import Final

from google.rpc import code_pb2 as codes

from cloudai_daemon.control_protocol import RemoteError
from cloudai_daemon.csi.call_deadline import CallDeadline
from cloudai_daemon.csi.errors import VolumeFailed, needs_token
from cloudai_daemon.csi.requests import Access
from cloudai_daemon.csi.staged_records import StagedRecords, StagedVolume
from cloudai_daemon.exit_codes import CommandFailed
from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.mount_table import find_mounted
from cloudai_daemon.mounting import prepare_mount, resolve_config, start_mount
from cloudai_daemon.options import MountOptions
from cloudai_daemon.places import runtime_dirs_to_search
from cloudai_daemon.process_identity import ProcessIdentity
from cloudai_daemon.registry import list_live, supervisor_dir
from cloudai_daemon.unmounting import unmount_when_durable
from cloudai_daemon.upload_wait import NotDurable, wait_durable
from cloudai_fusefs.remains import has_remains
from cloudai_model.errors import NoSpace, QuotaExceeded, Unauthenticated

log = logging.getLogger(__name__)

# A supervisor mounts again within half a second, and a slow machine takes some to start Python.
_RETURN_SECONDS_MAX: Final = 10.0
_RETURN_LOOK_SECONDS: Final = 0.1
# What passes without a person at this machine: a token is renewed, room is made.
_PASSING: Final = (NoSpace, QuotaExceeded, Unauthenticated)
# A mount that is told to end gives its uploads twenty seconds.
_END_SECONDS_MAX: Final = 40.0

# After a wait for uploads, for saying what is left of them: a daemon that was stopped says nothing.
_DESCRIPTION_SECONDS_MAX: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class MountChoices:
    """The same for all volumes of this machine."""

    address: str
    """The master's host:port."""
    options: MountOptions
    drain_seconds: float
    """How long a request waits for uploads before it is to be repeated."""


class VolumeMounts:
    """Of one driver."""

    def __init__(self, choices: MountChoices, records: StagedRecords) -> None:
        self._choices = choices
        self._records = records
        self._supervisors: set[int] = set()

    def is_there(self, record: StagedVolume) -> bool:
        """Whether the staging path has a mount, a dead one as well, or somebody who is about to make one."""
        return record.is_of_this_boot and (
            find_mounted(record.staging) is not None or self.find_supervisor(record) is not None
        )

    def is_serving(self, record: StagedVolume) -> bool:
        """Whether it is mounted and its daemon lives. The tree is not asked: it may hang, and a thread with it."""
        return (
            record.is_of_this_boot
            and find_mounted(record.staging) is not None
            and find_at(record.staging) is not None
        )

    def find_supervisor(self, record: StagedVolume) -> ProcessIdentity | None:
        """Who mounts it again when its daemon dies; one that lives."""
        for entry in list_live([supervisor_dir(directory) for directory in runtime_dirs_to_search()]):
            if entry.mount_point == record.staging:
                return entry.process
        return None

    def has_remains(self, volume_id: str) -> bool:
        """Whether something may be on this machine's disk that is at no master."""
        return has_remains(self._records.mount_state_dir(volume_id))

    def mount(self, record: StagedVolume) -> None:
        """Returns once the tree answers; nothing is mounted otherwise."""
        given = Access(is_read_only=False, has_one_place=False, flags=record.flags).options()
        # What the driver forbids, the flags of a volume do not allow again.
        words = (*self._choices.options.get("kernel_words", ()), *given.get("kernel_words", ()))
        options: MountOptions = {
            **self._choices.options,
            **given,
            "kernel_words": tuple(dict.fromkeys(words)),
            "read_only": record.is_read_only,
            "token_file": self._records.token_file(record.volume_id),
            "state_dir": self._records.mount_state_dir(record.volume_id),
            "allow_other": True,
            "supervise": True,
        }
        try:
            config = resolve_config(f"{self._choices.address}/{record.run}", record.staging, options)
            prepare_mount(config)
            start_mount(config)
        except CommandFailed as error:
            raise VolumeFailed(codes.UNAVAILABLE, error.line) from error
        supervisor = self.find_supervisor(record)
        if supervisor is not None:
            self._supervisors.add(supervisor.pid)

    def require_serving(self, record: StagedVolume, deadline: CallDeadline) -> None:
        """Returns when the mount serves; one that died with its supervisor is made again. Raises VolumeFailed
        (UNAVAILABLE).
        """
        return_deadline = CallDeadline(deadline.left(_RETURN_SECONDS_MAX))
        while not self.is_serving(record):
            if self.find_supervisor(record) is None:
                if self._records.find_token(record.volume_id) is None:
                    raise needs_token(record.volume_id)
                self.mount(record)
                return
            if return_deadline.is_over:
                raise VolumeFailed(
                    codes.UNAVAILABLE,
                    f"{record.volume_id}: its mount daemon died and cannot be started yet: repeat this request",
                )
            time.sleep(_RETURN_LOOK_SECONDS)

    def wait_durable(self, record: StagedVolume, deadline: CallDeadline) -> None:
        """Returns when all that was written is at the master. Raises VolumeFailed: DEADLINE_EXCEEDED,
        FAILED_PRECONDITION where it needs a person.
        """
        wait_seconds, description_seconds = self._divide(deadline)
        try:
            wait_durable(
                record.staging, timeout_seconds=wait_seconds, description_seconds_max=description_seconds
            )
        except NotDurable as error:
            raise self._not_durable(record, error) from error

    def unmount(self, record: StagedVolume, deadline: CallDeadline) -> None:
        """Returns when all that was written is at the master, and the mount and its processes are gone. Raises
        VolumeFailed as `wait_durable` does, and where it is in use: it goes on as before then.
        """
        if self.is_serving(record):
            # First of all: to look whether a mount is dead takes seconds where its daemon does not answer.
            self.wait_durable(record, deadline)
        wait_seconds, description_seconds = self._divide(deadline)
        try:
            unmount_when_durable(
                record.staging, timeout_seconds=wait_seconds, description_seconds_max=description_seconds
            )
        except NotDurable as error:
            raise self._not_durable(record, error) from error
        except CommandFailed as error:
            if not self.is_held_elsewhere(record):
                raise VolumeFailed(codes.FAILED_PRECONDITION, error.line) from error
            self.end_processes(record)

    def is_held_elsewhere(self, record: StagedVolume) -> bool:
        """Whether the daemon runs on although its mount is gone: a mount namespace that was copied from this one has it
        still.
        """
        return find_mounted(record.staging) is None and find_at(record.staging) is not None

    def end_processes(self, record: StagedVolume) -> None:
        """Ends what serves a mount that is not seen here, in order: what was written is sent, or stays staged."""
        daemon = find_at(record.staging)
        found = [self.find_supervisor(record), daemon.process if daemon is not None else None]
        living = list(filter(None, found))
        deadline = time.monotonic() + _END_SECONDS_MAX
        # One of them: a supervisor hands it on, and a daemon that is told twice does not wait for its uploads.
        for process in living:
            if process.send_signal(signal.SIGTERM):
                break
        for process in living:
            if not process.wait_gone(max(0.0, deadline - time.monotonic())):
                raise VolumeFailed(
                    codes.UNAVAILABLE,
                    f"{record.volume_id}: its mount daemon (pid {process.pid}) has not ended: repeat this request",
                )

    def reap_supervisors(self) -> None:
        """Of those that this process started, what has ended."""
        for pid in list(self._supervisors):
            try:
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            except ChildProcessError:
                pass
            self._supervisors.discard(pid)

    def _divide(self, deadline: CallDeadline) -> tuple[float, float]:
        """How long uploads are waited for, and then for what is left of them to be said."""
        left_seconds = deadline.left(self._choices.drain_seconds + _DESCRIPTION_SECONDS_MAX)
        description_seconds = min(_DESCRIPTION_SECONDS_MAX, left_seconds / 4)
        return min(self._choices.drain_seconds, left_seconds - description_seconds), description_seconds

    def _not_durable(self, record: StagedVolume, error: NotDurable) -> VolumeFailed:
        cause = error.__cause__
        needs_person = isinstance(cause, RemoteError) and not any(map(cause.is_a, _PASSING))
        code = codes.FAILED_PRECONDITION if needs_person else codes.DEADLINE_EXCEEDED
        how = f"see `cloudai status {record.staging}` on this node" if needs_person else "repeat this request"
        return VolumeFailed(code, f"{error.line}; nothing is lost: it stays mounted, {how}")
