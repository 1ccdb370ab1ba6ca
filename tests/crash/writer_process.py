"""A writer's process, as a round starts it and hears of it."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from crash.log import WriterRecord, read_log
from crash.writer import WriterTask

TESTS: Final = Path(__file__).parents[1]

WRITER_SECONDS_MAX: Final = 60.0


class Writer:
    """A writer's process, with its log and its complaints beside it."""

    def __init__(self, task: WriterTask) -> None:
        self.task = task
        self._complaints = Path(task.log).with_suffix(".stderr")
        self._lines: queue.Queue[str] = queue.Queue()
        with self._complaints.open("wb") as complaints:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "crash.writer", task.to_json()],
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_for_announcement(self, seconds_max: float) -> None:
        """Returns when the next announced operation begins, the writer ends, or the time is over."""
        with suppress(queue.Empty):
            self._lines.get(timeout=seconds_max)

    def finish(self) -> WriterRecord:
        """Waits for its end; what it logged. Fails when it ended by something else than the mount."""
        try:
            status = self._process.wait(WRITER_SECONDS_MAX)
        finally:
            self.kill()
        assert status == 0, self._complaints.read_text()
        return read_log(Path(self.task.log))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")
