"""How it is known that the server has what was written, as soon as it has.

What has arrived is compared afterwards, with the clock stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from cloudai_benchmarks.errors import WorkFailed
from cloudai_daemon.control_client import DaemonUnreachable
from cloudai_daemon.exit_codes import CommandFailed
from cloudai_daemon.upload_wait import wait_durable

Outcome: TypeAlias = Mapping[str, int | None]
"""What is to be there, by path: a file's size in bytes; None: nothing is there any more."""

_POLL_SECONDS: Final = 0.01
_WAIT_SECONDS_MAX: Final = 86400.0
"""Whoever waits is killed long before, when its job has had its time."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One directory's at the server: either `directory` or `mount_point` and `run` are said. Goes through JSON."""

    directory: str = ""
    """On the server's disk."""
    mount_point: str = ""
    """Of ours: its daemon knows what the master has."""
    run: str = ""
    """Relative to the mount point."""

    @classmethod
    def in_directory(cls, directory: Path) -> Arrival:
        return cls(directory=str(directory))

    @classmethod
    def at_master(cls, mount_point: Path, run: Path) -> Arrival:
        return cls(mount_point=str(mount_point), run=str(run))

    def wait(self, outcome: Outcome, *, below: str = "") -> None:
        """Returns when the server has all of `outcome`, whose paths are below the directory, or its part `below`.

        Raises WorkFailed when that will not come by itself.
        """
        if self.directory:
            _wait_for_files(Path(self.directory), outcome)
            return
        path = f"{self.run}/{below}" if below else self.run
        try:
            wait_durable(Path(self.mount_point), path, timeout_seconds=_WAIT_SECONDS_MAX)
        except (CommandFailed, DaemonUnreachable) as error:
            raise WorkFailed(str(error)) from error


def _wait_for_files(directory: Path, outcome: Outcome) -> None:
    # One after another: what has come does not go again.
    for path, size_bytes in outcome.items():
        place = f"{directory}/{path}"
        while _size_at(place) != size_bytes:
            time.sleep(_POLL_SECONDS)


def _size_at(path: str) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116  # a Path each would be timed
    except FileNotFoundError:
        return None
