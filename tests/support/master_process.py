"""A real `cloudai-master serve` in a process of its own, for the tests that want the real thing."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cloudai_fusefs.grpc_master_client import GrpcMasterClient
from cloudai_master.cli import SECONDS_PER_DAY
from cloudai_master.data_dir import DataDir
from cloudai_master.tokens import Tokens, load_key

PROGRAM = Path(sys.executable).with_name("cloudai-master")
START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 20.0


class MasterProcess:
    """One master on one data directory. It may be started again, and then listens on the same port."""

    def __init__(self, data_dir: Path, *arguments: str, listen: str = "127.0.0.1:0") -> None:
        """`arguments` are added to `serve`'s."""
        self.data_dir = data_dir
        self.address = listen
        self.log_path = data_dir.parent / f"{data_dir.name}.log"
        self.environment: dict[str, str] = {}
        """Of the master, besides this process's own."""
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when it listens; raises RuntimeError with its log when it does not."""
        assert self._process is None
        command = [str(PROGRAM), "serve", "--data-dir", str(self.data_dir), "--listen", self.address]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | self.environment,
            )
        line = self._first_line()
        if not line.startswith("listening on "):
            self.kill()
            raise RuntimeError(f"the master did not start: {self.log_path.read_text()}")
        self.address = line.removeprefix("listening on ").strip()

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """An orderly stop; its exit status."""
        return self._end(signal.SIGTERM)

    def restart(self) -> None:
        """kill -9 and start again, on the same port."""
        self.kill()
        self.start()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """It is there and says nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def make_token(self, user: str, *, days: float = 1, admin: bool = False, task_id: str = "") -> str:
        """A token, made as `cloudai-master token create` makes it, without the start of a program."""
        data_dir = DataDir(self.data_dir)
        with closing(data_dir.open_database()) as database:
            tokens = Tokens(database, load_key(data_dir.key_path))
            return tokens.create(user, valid_seconds=days * SECONDS_PER_DAY, admin=admin, task_id=task_id)

    def connect(self, token: str) -> GrpcMasterClient:
        """A client of this master, to be entered as a context."""
        return GrpcMasterClient(self.address, token_provider=lambda: token, insecure=True)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`cloudai-master ARGUMENTS --data-dir ...`."""
        return subprocess.run(
            [str(PROGRAM), *arguments, "--data-dir", str(self.data_dir)],
            capture_output=True,
            text=True,
            check=check,
            timeout=START_SECONDS_MAX,
        )

    def log_text(self) -> str:
        return self.log_path.read_text()

    def wait_for_log(self, text: str) -> None:
        """Returns when the text is in the log; fails after a bounded time."""
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while text not in self.log_text():
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{self.log_text()}"
            time.sleep(0.02)

    def _first_line(self) -> str:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        try:
            return lines.get(timeout=START_SECONDS_MAX)
        except queue.Empty:
            return ""

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
