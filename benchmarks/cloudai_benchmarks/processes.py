"""Commands and servers with a bound on every wait, and what they cost.

Every child gets a session of its own, so that Ctrl-C reaches the benchmark alone and the benchmark ends them
in order. Nothing here waits for a process that the kernel does not let go: it is left behind after a bound.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudai_benchmarks.errors import BenchmarkError, CommandFailed, TookTooLong

COMMAND_SECONDS_MAX: Final = 60.0
READY_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 10.0
_MARK: Final = "CLOUDAI_BENCHMARK_DIR"
_POLL_SECONDS: Final = 0.01
_LOG_LINES_SHOWN: Final = 3


def wait_until(condition: Callable[[], bool], what: str, *, seconds_max: float) -> None:
    """Returns when the condition holds. Raises TookTooLong."""
    deadline = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > deadline:
            raise TookTooLong(what=what, seconds_max=seconds_max)
        time.sleep(_POLL_SECONDS)


def run_command(
    *arguments: str | Path,
    seconds_max: float = COMMAND_SECONDS_MAX,
    text_in: str = "",
    environment: Mapping[str, str] | None = None,
    on_timeout: Callable[[], None] | None = None,
) -> str:
    """What the command printed on standard output.

    `environment` is added to this process's. After `seconds_max`, `on_timeout` is called, which may free a
    process that waits in the kernel, and the command is killed with all that it started.
    Raises CommandFailed with what it said on standard error, TookTooLong.
    """
    command = [str(argument) for argument in arguments]
    # Files instead of pipes: a grandchild that keeps a pipe open must not keep the benchmark waiting.
    with (
        tempfile.TemporaryFile("w+") as stdin,
        tempfile.TemporaryFile("w+", errors="replace") as stdout,
        tempfile.TemporaryFile("w+", errors="replace") as stderr,
    ):
        stdin.write(text_in)
        stdin.flush()
        stdin.seek(0)
        process = _start(
            command,
            stdin=stdin.fileno(),
            stdout=stdout.fileno(),
            stderr=stderr.fileno(),
            environment=environment,
        )
        try:
            status = process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            if on_timeout is not None:
                on_timeout()
            raise TookTooLong(what=Path(command[0]).name, seconds_max=seconds_max) from None
        finally:
            _end_session(process)
        stdout.seek(0)
        stderr.seek(0)
        if status != 0:
            raise CommandFailed(command=command, status=status, said=stderr.read() or stdout.read())
        return stdout.read()


def python_path() -> dict[str, str]:
    """For the environment of a Python process that imports what this one does, `benchmarks` by whatever means."""
    return {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}


class Server:
    """A process that runs until it is stopped; what it says goes to a file."""

    def __init__(
        self, *arguments: str | Path, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts it. Raises CommandFailed when there is no such program."""
        self._command = [str(argument) for argument in arguments]
        self._log = log
        with log.open("ab") as output:
            self._process = _start(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output.fileno(),
                stderr=output.fileno(),
                environment=environment,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait_ready(self, is_ready: Callable[[], bool], *, seconds_max: float = READY_SECONDS_MAX) -> None:
        """Returns when it is ready. Raises CommandFailed when it ended instead, TookTooLong."""
        program = Path(self._command[0]).name
        wait_until(lambda: self.has_ended or is_ready(), f"{program} is ready", seconds_max=seconds_max)
        if self.has_ended:
            said = "\n".join(self.log_text().splitlines()[-_LOG_LINES_SHOWN:])
            raise CommandFailed(command=self._command, status=self._process.returncode, said=said)

    def wait_ended(self, *, seconds_max: float = STOP_SECONDS_MAX) -> None:
        """Returns when it has ended by itself. Raises TookTooLong."""
        program = Path(self._command[0]).name
        wait_until(lambda: self.has_ended, f"{program} ends", seconds_max=seconds_max)

    def stop(self) -> None:
        """SIGTERM, and after a bound SIGKILL to it and its children. Never raises."""
        if not self.has_ended:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS_MAX)
        _end_session(self._process)

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")


def _start(
    command: Sequence[str], *, stdin: int, stdout: int, stderr: int, environment: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(command=command, status=None, said=error.strerror or str(error)) from error


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to what is left of the session that `process` leads."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # in the kernel for ever: left behind
        process.wait(STOP_SECONDS_MAX)


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Of some processes together."""

    resident_bytes: int
    resident_bytes_peak: int
    """The sum of each one's own peak: at least what they ever had together."""


def family_of(*ancestors: int) -> list[int]:
    """The processes and all their descendants, those that still run."""
    found: list[int] = []
    left = list(ancestors)
    while left:
        pid = left.pop()
        try:
            children = [
                int(child)
                for file in Path(f"/proc/{pid}/task").glob("*/children")
                for child in file.read_text().split()
            ]
        except OSError:
            continue
        if Path(f"/proc/{pid}").exists():
            found.append(pid)
            left += children
    return found


def cpu_seconds_of(pids: Iterable[int]) -> float:
    """User and system time so far, that of children waited for included; in steps of 10 ms."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            # After the name, which may hold anything, the state is field 0.
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_seconds_between(before_seconds: float, after_seconds: float) -> float:
    """To the clock's hundredths: 0.14 - 0.12 is a bit more than 0.02."""
    return round(after_seconds - before_seconds, 2)


def read_bytes_of(pids: Iterable[int]) -> int | None:
    """What the processes that still run have read so far, from files and sockets; None where that may not be seen."""
    total_bytes = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        except PermissionError:
            return None
        except OSError:
            continue
        total_bytes += sum(int(line.split()[1]) for line in lines if line.startswith("rchar:"))
    return total_bytes


def name_of(pid: int) -> str:
    """The program's name, at most 15 characters of it; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def memory_of(pids: Iterable[int]) -> MemoryUse:
    """What the processes have in memory."""
    resident_kib = peak_kib = 0
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            values = dict(line.split(":", 1) for line in lines)
            resident_kib += int(values.get("VmRSS", "0 kB").split()[0])
            peak_kib += int(values.get("VmHWM", "0 kB").split()[0])
    return MemoryUse(resident_bytes=resident_kib * 1024, resident_bytes_peak=peak_kib * 1024)


def has_process(pid: int) -> bool:
    """Whether it runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def mark_children(directory: Path) -> None:
    """Every process that this one starts from now on, and all that those start, can be found by the directory."""
    os.environ[_MARK] = str(directory)


def end_marked(directory: Path) -> list[int]:
    """SIGKILL to whoever has the mark of the directory, such as a daemon that nobody waited for."""
    mark = f"{_MARK}={directory}".encode()
    ended = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        pid = int(environment.parent.name)
        with suppress(OSError):
            if pid != os.getpid() and mark in environment.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
    return ended


def do_each(*steps: Callable[[], None]) -> list[str]:
    """Takes every step whatever became of those before it; what went wrong, as lines."""
    failures = []
    for step in steps:
        try:
            step()
        except (BenchmarkError, OSError) as error:
            failures.append(str(error))
    return failures
