"""A master and a mount of it on one machine, with no configuration: `cloudai up` and `cloudai down`.

Everything is in one folder, STATE: `master/` (its data), `token` (0600), `local.json` (what is remembered:
port, mount point, the master's process), `master.log`, `mounts/`, `cache/`. The master listens on the
loopback. Two `up` at once do one after the other (a lock on `up.lock`).
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from cloudai_daemon.abandoned_mounts import is_abandoned
from cloudai_daemon.detached_process import start_detached
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.mount_table import find_mounted
from cloudai_daemon.mounting import prepare_mount, resolve_config, resolve_mount_point, start_mount
from cloudai_daemon.places import escape_path, make_private_dir
from cloudai_daemon.process_identity import ProcessIdentity
from cloudai_daemon.unmounting import unmount_when_durable
from cloudai_model.service_manager import VARIABLES as SERVICE_VARIABLES

MASTER_PROGRAM: Final = Path(sys.executable).with_name("cloudai-master")

_LISTENING: Final = re.compile(r"^listening on \S*:(\d+)\s*$", re.MULTILINE)
_MASTER_START_SECONDS_MAX: Final = 20.0
_MASTER_STOP_SECONDS_MAX: Final = 30.0
_POLL_SECONDS: Final = 0.05
_TOKEN_DAYS: Final = 365
_TOKEN_RENEW_SECONDS: Final = _TOKEN_DAYS * 86400 / 2


@dataclass(frozen=True, kw_only=True)
class LocalState:
    """What one STATE folder remembers from one `up` to the next."""

    port: int = 0
    """Of the master on 127.0.0.1; 0 before the first start."""
    mount_point: str = ""
    master: ProcessIdentity | None = None

    @classmethod
    def load(cls, path: Path) -> LocalState:
        """Raises CommandFailed for a file that is not ours."""
        try:
            fields = json.loads(path.read_text())
            master = fields.pop("master")
            return cls(**fields, master=ProcessIdentity(**master) if master else None)
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CommandFailed(ExitCode.FAILED, f"{path}: damaged: {error}") from error


@dataclass(frozen=True, kw_only=True)
class LocalReport:
    """What runs after `up`, and which part of it that `up` has started."""

    mount_point: Path
    address: str
    master_pid: int
    mount_pid: int
    master_started: bool
    mount_started: bool


class LocalService:
    """One STATE folder and what runs from it."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir.absolute()
        self._state_file = self._state_dir / "local.json"
        self._token_file = self._state_dir / "token"
        self._data_dir = self._state_dir / "master"
        self._log_file = self._state_dir / "master.log"

    def up(self, directory: Path, user: str = "") -> LocalReport:
        """Starts what is not running. Raises CommandFailed; what had been started by then stays up."""
        mount_point = resolve_mount_point(directory)
        with self._locked():
            state = LocalState.load(self._state_file)
            if state.mount_point not in ("", str(mount_point)) and find_at(Path(state.mount_point)):
                raise CommandFailed(
                    ExitCode.FAILED,
                    f"{self._state_dir} is mounted at {state.mount_point}: `cloudai down` first, "
                    "or give another --state",
                )
            state = replace(state, mount_point=str(mount_point))
            master = state.master
            master_started = master is None or not master.is_alive
            if master is None or not master.is_alive:
                state, master = self._start_master(state, user or getpass.getuser())
            self._save(state)
            mount_pid, mount_started = self._mount(mount_point, state.port)
            return LocalReport(
                mount_point=mount_point,
                address=f"127.0.0.1:{state.port}",
                master_pid=master.pid,
                mount_pid=mount_pid,
                master_started=master_started,
                mount_started=mount_started,
            )

    def down(self, *, timeout_seconds: float) -> list[str]:
        """Waits for uploads, unmounts, stops the master; lines that say what was stopped. Data stays.

        Raises CommandFailed: NotDurable when uploads did not finish in time, and then both stay up.
        """
        if not self._state_dir.is_dir():
            return []
        stopped = []
        with self._locked():
            state = LocalState.load(self._state_file)
            if state.mount_point and find_mounted(Path(state.mount_point)) is not None:
                mount_point = Path(state.mount_point)
                if is_abandoned(mount_point) or find_at(mount_point) is not None:
                    unmount_when_durable(mount_point, timeout_seconds=timeout_seconds)
                    stopped.append(f"unmounted {mount_point}")
            if state.master is not None and state.master.send_signal(signal.SIGTERM):
                if not state.master.wait_gone(_MASTER_STOP_SECONDS_MAX):
                    raise CommandFailed(
                        ExitCode.FAILED,
                        f"the master (pid {state.master.pid}) does not stop; {self._log_file}",
                    )
                stopped.append(f"stopped the master (pid {state.master.pid})")
            self._save(replace(state, master=None))
        return stopped

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            make_private_dir(self._state_dir)
            descriptor = os.open(self._state_dir / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CommandFailed(ExitCode.FAILED, f"{error.filename}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _save(self, state: LocalState) -> None:
        temporary = self._state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(state), indent=2))
        temporary.replace(self._state_file)

    def _start_master(self, state: LocalState, user: str) -> tuple[LocalState, ProcessIdentity]:
        if not MASTER_PROGRAM.exists():
            raise CommandFailed(ExitCode.FAILED, f"{MASTER_PROGRAM} is missing: install cloudai-fs[master]")
        make_private_dir(self._data_dir)
        self._renew_token(user)
        port = state.port or _free_port()
        process = self._spawn_master(port)
        # Before it is known to listen: an `up` that is killed now must not leave an unknown master behind.
        started = replace(state, port=port, master=process)
        self._save(started)
        self._await_listening(process, port)
        return started, process

    def _spawn_master(self, port: int) -> ProcessIdentity:
        command = [str(MASTER_PROGRAM), "serve", "--data-dir", str(self._data_dir)]
        command += ["--listen", f"127.0.0.1:{port}"]
        kept_back = {"CLOUDAI_TOKEN"} | SERVICE_VARIABLES
        environment = {name: value for name, value in os.environ.items() if name not in kept_back}
        null_descriptor = os.open(os.devnull, os.O_RDONLY)
        # A new file at each start, so that the line awaited below is this master's; the last one is kept.
        with contextlib.suppress(FileNotFoundError):
            self._log_file.replace(self._log_file.with_suffix(".log.1"))
        # O_APPEND, as both standard streams write here.
        log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        log_descriptor = os.open(self._log_file, log_flags, 0o600)
        try:
            return start_detached(
                command, environment, stdin=null_descriptor, stdout=log_descriptor, stderr=log_descriptor
            )
        finally:
            os.close(null_descriptor)
            os.close(log_descriptor)

    def _await_listening(self, process: ProcessIdentity, port: int) -> None:
        deadline = time.monotonic() + _MASTER_START_SECONDS_MAX
        while not _LISTENING.search(self._log_file.read_text(errors="replace")):
            if process.wait_gone(_POLL_SECONDS):
                last_line = self._log_file.read_text(errors="replace").strip().splitlines()[-1:]
                why = last_line[0] if last_line else "it ended at once"
                raise CommandFailed(ExitCode.FAILED, f"the master did not start: {why}")
            if time.monotonic() > deadline:
                raise CommandFailed(
                    ExitCode.FAILED,
                    f"the master does not listen on port {port} after {_MASTER_START_SECONDS_MAX:.0f} s; "
                    f"see {self._log_file}",
                )

    def _renew_token(self, user: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - self._token_file.stat().st_mtime < _TOKEN_RENEW_SECONDS:
                return
        command = [str(MASTER_PROGRAM), "token", "create", "--data-dir", str(self._data_dir)]
        command += ["--user", user, "--days", str(_TOKEN_DAYS)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(ExitCode.FAILED, "making a token took over 60 s") from error
        if done.returncode != 0:
            why = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise CommandFailed(ExitCode.FAILED, f"no token could be made: {why[0]}")
        temporary = self._token_file.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(done.stdout.strip() + "\n")
        temporary.replace(self._token_file)

    def _mount(self, mount_point: Path, port: int) -> tuple[int, bool]:
        entry = find_at(mount_point)
        source = f"127.0.0.1:{port}"
        is_mounted = find_mounted(mount_point) is not None  # else its daemon is still uploading what was left
        if entry is not None and entry.source == source and is_mounted and not is_abandoned(mount_point):
            return entry.process.pid, False
        # The mount table first: a dead mount answers no stat.
        if not is_mounted and not mount_point.is_dir():
            _make_mount_point(mount_point)
        config = resolve_config(
            source,
            mount_point,
            {
                "token_file": self._token_file,
                "state_dir": self._state_dir / "mounts" / escape_path(mount_point),
                "cache_dir": self._state_dir / "cache",
                "insecure": True,
            },
        )
        prepare_mount(config)
        return start_mount(config).process.pid, True


def _make_mount_point(mount_point: Path) -> None:
    try:
        mount_point.mkdir(mode=0o755, parents=True)
    except OSError as error:
        raise CommandFailed(
            ExitCode.MOUNT_FAILED, f"{mount_point}: cannot be made: {error.strerror}; choose another --mount"
        ) from error


def _free_port() -> int:
    """A port that nobody listens on now; the master says so if somebody takes it in between."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
