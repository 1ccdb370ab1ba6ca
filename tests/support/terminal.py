"""A program on a terminal of its own: a pseudo terminal that it takes for a person's."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import termios
import threading
from pathlib import Path
from types import TracebackType

from support.mount_process import WAIT_SECONDS_MAX, wait_until

# Cursor movements, colours, and the modes that a program sets and takes back.
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_WINDOW_SIZE = (24, 120)


class TerminalProgram:
    """A program whose standard streams are a terminal, which also sends it the signals of keys.

    A context: at its end the program is killed if it still runs.
    """

    def __init__(self, *command: str | Path) -> None:
        self._command = command
        self._received = bytearray()

    def __enter__(self) -> TerminalProgram:
        self._descriptor, program_side = pty.openpty()
        termios.tcsetwinsize(self._descriptor, _WINDOW_SIZE)
        # setsid: with a controlling terminal, or Ctrl-C would be a byte like any other.
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *self._command],
            stdin=program_side,
            stdout=program_side,
            stderr=program_side,
            env=os.environ | {"TERM": "xterm"},
        )
        os.close(program_side)
        self._reader = threading.Thread(target=self._receive)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._reader.join(WAIT_SECONDS_MAX)
        os.close(self._descriptor)

    @property
    def received(self) -> str:
        """All that the program has sent to the terminal, control sequences too."""
        return self._received.decode(errors="replace")

    @property
    def text(self) -> str:
        """The words among it, those that were overwritten too."""
        return _CONTROL_SEQUENCE.sub("", self.received)

    def wait_for_text(self, *wanted: str) -> None:
        """Returns when one line has all of these; fails after a bounded time with what came instead."""

        def has_come() -> bool:
            return any(all(part in line for part in wanted) for line in re.split(r"[\r\n]+", self.text))

        try:
            wait_until(lambda: has_come() or self._process.poll() is not None, str(wanted))
        finally:
            assert has_come(), f"{wanted} not in {self.text[-1000:]!r}"

    def press(self, key: bytes) -> None:
        os.write(self._descriptor, key)

    def kill(self) -> None:
        """kill -9, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def wait_end(self) -> int:
        """The exit status; fails after a bounded time."""
        status = self._process.wait(WAIT_SECONDS_MAX)
        self._reader.join(WAIT_SECONDS_MAX)
        return status

    def _receive(self) -> None:
        while True:
            try:
                part = os.read(self._descriptor, 4096)
            except OSError:  # EIO: nobody has the other side open any more
                return
            if not part:
                return
            self._received += part
