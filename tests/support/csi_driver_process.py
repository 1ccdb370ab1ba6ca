"""A real `cloudai csi-driver`."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from cloudai_daemon.process_identity import ProcessIdentity
from support.csi_client import CsiClient
from support.mount_process import COMMAND_SECONDS_MAX, PROGRAM, wait_until


class CsiDriverProcess(CsiClient):
    """A context: one driver of one node, and a client of it. It may be started again, on the same state."""

    def __init__(self, directory: Path, master: str, *arguments: str, within: Sequence[str] = ()) -> None:
        """`within`: words before the command, such as unshare(1)'s."""
        # Not below pytest's folders: a socket's path has at most 107 bytes.
        self._socket_dir = tempfile.TemporaryDirectory(prefix="csi-")
        super().__init__(Path(self._socket_dir.name) / "csi.sock", directory)
        self.state_dir = directory / "state"
        self.cache_dir = directory / "cache"
        self.log_path = directory / "driver.log"
        self._arguments = [
            *["csi-driver", "--endpoint", f"unix://{self.socket_path}", "--master", master],
            *["-o", f"insecure,timeo=20,cache_dir={self.cache_dir}", "--state", str(self.state_dir)],
            *arguments,
        ]
        self._command_prefix = list(within)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_bytes_before = 0

    def __enter__(self) -> CsiDriverProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            assert self.end(signal.SIGTERM) == 0
            assert not self.socket_path.exists()
            assert "Traceback" not in self.log_text(), self.log_text()
        finally:
            self.clear()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when it answers."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_bytes_before = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command_prefix, str(PROGRAM), *self._arguments], stderr=log
            )
        self._wait_for_log("are served at", self._process)
        self.connect()

    def kill(self) -> None:
        """kill -9 of the driver alone. Its socket stays, and says nothing."""
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        os.kill(self._process.pid, number)
        status = self._process.wait(COMMAND_SECONDS_MAX)
        self.disconnect()
        return status

    def run_second(self) -> subprocess.CompletedProcess[str]:
        """Another one like this, to its end."""
        return subprocess.run(
            [str(PROGRAM), *self._arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )

    def kill_container(self) -> None:
        """kill -9 of the driver and of all that it has started, as when its container is killed."""
        self.kill()
        for process in self.mount_processes():
            process.send_signal(signal.SIGKILL)
            assert process.wait_gone(COMMAND_SECONDS_MAX)

    def clear(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        super().clear()
        self._socket_dir.cleanup()

    def log_text(self) -> str:
        return self.log_path.read_text()

    def _wait_for_log(self, text: str, process: subprocess.Popen[bytes]) -> None:
        def is_there() -> bool:
            assert process.poll() is None, self.log_text()
            return text in self.log_path.read_bytes()[self._log_bytes_before :].decode()

        wait_until(is_there, f"{text!r} in the driver's log")


def wait_for_supervisor(driver: CsiDriverProcess) -> ProcessIdentity:
    """The supervisor that the driver has started, as soon as there is one."""
    found: list[ProcessIdentity] = []

    def look() -> bool:
        for path in Path(f"/proc/{driver.pid}/task").glob("*/children"):
            for pid in path.read_text().split():
                with suppress(OSError):  # it has ended
                    if b"cloudai_daemon.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found.append(ProcessIdentity.of(int(pid)))
        return bool(found)

    wait_until(look, "a supervisor")
    return found[0]


def run_driver(directory: Path, master: str, *arguments: str) -> Iterator[CsiDriverProcess]:
    """For a fixture: the driver of a node, that a test may kill."""
    driver = CsiDriverProcess(directory, master, "--node-id", "node-1", *arguments)
    try:
        driver.start()
        yield driver
    finally:
        driver.clear()
    assert "Traceback" not in driver.log_text()
