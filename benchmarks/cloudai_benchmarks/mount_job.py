"""How long a mount takes until it answers, with what the one before it has left: nothing, or all that was written.

The mount daemon is killed, and mounts again on the same state. Where it is to leave something the master is stopped
meanwhile (SIGSTOP), so that nothing of it is sent.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cloudai_benchmarks import fuse_mounts
from cloudai_benchmarks.arrival import Outcome
from cloudai_benchmarks.comparison import compare
from cloudai_benchmarks.errors import WorkFailed
from cloudai_benchmarks.processes import has_process, run_command, wait_until
from cloudai_benchmarks.quiet_disk import sync_disk
from cloudai_benchmarks.workloads import Figures
from cloudai_benchmarks.write_jobs import CopyTrees
from cloudai_benchmarks.write_place import WritePlace
from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError
from cloudai_daemon.mount_lookup import require_alive

_END_SECONDS_MAX: Final = 30.0


class MountAgain(CopyTrees):
    """`cloudai mount` and `ls` of the run, with no backlog: all that is in it had arrived."""

    def __init__(self, place: WritePlace, source: Path) -> None:
        super().__init__(place, source)
        self._mount_point = Path(place.arrival.mount_point)
        self._listed: list[str] = []

    def load(self) -> list[Outcome]:
        outcomes = super().load()
        self.leave_behind(outcomes)
        # What was staged in the last seconds may not be on the disk yet, which nobody else is to use from now on.
        sync_disk(self.source)
        return outcomes

    def leave_behind(self, outcomes: Sequence[Outcome]) -> None:
        """Writes everything, waits for whatever is to arrive, and kills the daemon."""
        self.copy()
        self.place.arrival.wait(outcomes[0])
        self.kill_daemon()

    def work(self) -> None:
        run_command(*self.place.mount_command)
        self._listed = [path.name for path in self.place.directory.iterdir()]

    def finish(self) -> Figures:
        compare("the names on the new mount", sorted(self._listed), self._shares()[0])
        return {}

    def copy(self) -> None:
        """The source, through the mount."""
        super().work()

    def kill_daemon(self) -> None:
        """And takes the dead mount away."""
        pid = require_alive(self._mount_point).process.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not has_process(pid), "the mount daemon dies", seconds_max=_END_SECONDS_MAX)
        fuse_mounts.unmount(self._mount_point)


class MountWithBacklog(MountAgain):
    """The same with a backlog: nothing of it had arrived."""

    def leave_behind(self, outcomes: Sequence[Outcome]) -> None:
        list(self.place.directory.iterdir())  # a run that was looked into is written to without the master
        with self._master_stopped():
            self.copy()
            self._require_backlog(len(outcomes[0]))
            self.kill_daemon()

    @contextmanager
    def _master_stopped(self) -> Iterator[None]:
        assert self.place.master is not None
        for pid in self.place.master.pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in self.place.master.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _require_backlog(self, file_count: int) -> None:
        try:
            with ControlClient(require_alive(self._mount_point)) as client:
                pending_count = client.status().pending_count
        except (DaemonUnreachable, RemoteError) as error:
            raise WorkFailed(str(error)) from error
        if pending_count < file_count:
            raise WorkFailed(f"only {pending_count} of {file_count} files are a backlog")
