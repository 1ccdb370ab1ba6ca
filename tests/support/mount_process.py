"""A real mount, made with `cloudai mount`, for the tests that want the real thing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cloudai_daemon.mount_lookup import find_at

PROGRAM = Path(sys.executable).with_name("cloudai")
COMMAND_SECONDS_MAX = 60.0
WAIT_SECONDS_MAX = 20.0
RUN = "2026-11-20_15-04-05"
"""Its name, where a test has the mounts to itself and needs one run."""


def wait_until(condition: Callable[[], bool], what: str, *, seconds_max: float = WAIT_SECONDS_MAX) -> float:
    """Returns after how many seconds the condition held; fails when it did not in time."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds_max, f"not within {seconds_max} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


class MountProcess:
    """One mount with directories of its own below `directory`. It may be mounted again, on the same state."""

    def __init__(
        self, directory: Path, source: str, token: str, *, options: str = "insecure,timeo=20"
    ) -> None:
        self.mount_point = directory / "mnt"
        self.state_dir = directory / "state"
        self.cache_dir = directory / "cache"
        self.token_file = directory / "token"
        for folder in (self.mount_point, self.state_dir, self.cache_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(token)
        self.source = source
        self.options = options
        self.environment: dict[str, str] = {}
        """Of the program and the daemon, besides this process's own."""
        self.descriptors_max = 0
        """How many they may have open; 0: as many as this process."""
        self.pid = 0

    def start(self) -> None:
        """Returns when the tree answers; raises AssertionError with what was said otherwise."""
        result = self.mount_command()
        assert result.returncode == 0, f"{result.returncode}: {result.stderr}\n{self.log_text()}"
        entry = find_at(self.mount_point)
        assert entry is not None, self.log_text()
        self.pid = entry.process.pid

    def mount_command(self) -> subprocess.CompletedProcess[str]:
        return self.cloudai(*self.mount_arguments)

    @property
    def mount_arguments(self) -> list[str]:
        """Of `cloudai`, to make this mount."""
        places = f"token_file={self.token_file},state_dir={self.state_dir},cache_dir={self.cache_dir}"
        return ["mount", self.source, str(self.mount_point), "-o", f"{self.options},{places}"]

    def cloudai(
        self, *arguments: str, timeout: float = COMMAND_SECONDS_MAX
    ) -> subprocess.CompletedProcess[str]:
        """The command line program; its output is captured and its status not checked."""
        environment = os.environ | self.environment
        limits = ["prlimit", f"--nofile={self.descriptors_max}"] if self.descriptors_max else []
        return subprocess.run(
            [*limits, str(PROGRAM), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
        )

    def status(self, path: Path | None = None) -> dict[str, Any]:
        """`cloudai status --json` of a path or the whole mount."""
        result = self.cloudai("status", "--json", str(path or self.mount_point))
        assert result.returncode == 0, result.stderr
        (answer,) = json.loads(result.stdout)
        return dict(answer)

    def wait_durable(self, path: Path | None = None) -> None:
        """`cloudai wait` of a path or the whole mount."""
        result = self.cloudai("wait", str(path or self.mount_point))
        assert result.returncode == 0, result.stderr

    def make_run(self, name: str, *, task: str = "training") -> Path:
        """An open run's directory, made with mkdir."""
        user = next(self.mount_point.iterdir())
        path = user / task / name
        path.mkdir(parents=True)
        return path

    def seal(self, run: Path, status: int = 0) -> None:
        result = self.cloudai("seal", str(run), "--exit-status", str(status))
        assert result.returncode == 0, result.stderr

    def umount(self) -> None:
        """`cloudai umount`: waits for uploads."""
        result = self.cloudai("umount", str(self.mount_point))
        assert result.returncode == 0, result.stderr
        self.pid = 0

    def kill(self) -> None:
        """kill -9 of the mount daemon, and the dead mount taken away."""
        if self.pid:
            with suppress(ProcessLookupError):  # it may be dead already
                os.kill(self.pid, signal.SIGKILL)
            self.wait_dead()
            self.pid = 0
        # By force first: a daemon of which the kernel keeps a thread would never leave.
        for way in ("--force", "--lazy"):
            subprocess.run(["umount", way, str(self.mount_point)], capture_output=True, check=False)

    def restart(self) -> None:
        """kill -9 and a new mount at the same place; where the dead one is bound, it stays."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait_dead()
        self.start()

    def wait_dead(self, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        """Returns when the daemon has died of whatever; fails when it did not in time."""
        wait_until(self.has_ended, "the daemon's end", seconds_max=seconds_max)

    def clear_cache(self) -> None:
        """An empty cache directory; only while nothing is mounted."""
        subprocess.run(["rm", "-rf", str(self.cache_dir)], check=True)
        self.cache_dir.mkdir(mode=0o700)

    def log_text(self) -> str:
        path = self.state_dir / "daemon.log"
        return path.read_text() if path.exists() else ""

    def has_ended(self) -> bool:
        """Whether the daemon is no more, whoever has yet to hear of it."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True


MakeMount = Callable[..., MountProcess]


def run_in(mount: MountProcess) -> Path:
    """Where the run is that `make_run(RUN)` has made, in this mount or another."""
    return mount.mount_point / "user-123" / "training" / RUN
