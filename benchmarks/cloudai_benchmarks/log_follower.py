"""Reads a file as it grows, as `tail -f` does, in a process of its own: `python -m cloudai_benchmarks.log_follower`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from cloudai_benchmarks.errors import WorkFailed
from cloudai_benchmarks.processes import python_path

_LOOK_SECONDS: Final = 0.02
_READ_BYTES: Final = 1024**2
_READY: Final = b"ready\n"


class LogFollower:
    """The process, from the side of whoever writes. It ends when it has seen everything."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Returns when it looks for the file, which need not be there yet. Raises WorkFailed."""
        # A file: what it has to say does not fit in a pipe that nobody reads meanwhile.
        self._answer = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process that measures
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cloudai_benchmarks.log_follower", path, str(size_bytes)],
            stdin=subprocess.DEVNULL,
            stdout=self._answer,
            stderr=subprocess.PIPE,
            env=os.environ | python_path(),
        )
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        if line != _READY:
            with self._process, self._answer:
                said = line + self._process.stderr.read()
            raise WorkFailed(f"the follower did not start: {said.decode(errors='replace').strip()}")

    def looks(self, seconds_max: float) -> list[tuple[float, int]]:
        """When it looked (monotonic), and how many bytes it had seen then; called once.

        Raises WorkFailed when it has not seen everything within `seconds_max`. It has ended afterwards.
        """
        # Entered, it waits for the process and closes the pipe on the way out.
        with self._process, self._answer:
            try:
                self._process.wait(seconds_max)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise WorkFailed(
                    f"not everything was seen on another mount within {seconds_max:.0f} s after the server had it"
                ) from None
            self._answer.seek(0)
            return [(float(seconds), int(seen_bytes)) for seconds, seen_bytes in json.load(self._answer)]


def follow(path: Path, size_bytes: int) -> list[tuple[float, int]]:
    """Returns when it has read that many bytes: each look at what there is, and when it began."""
    looks: list[tuple[float, int]] = []
    descriptor = _open_when_there(path, looks)
    seen_bytes = 0
    while seen_bytes < size_bytes:
        look_seconds = time.monotonic()
        while part := os.read(descriptor, _READ_BYTES):
            seen_bytes += len(part)
        looks.append((look_seconds, seen_bytes))
        time.sleep(_LOOK_SECONDS)
    return looks


def _open_when_there(path: Path, looks: list[tuple[float, int]]) -> int:
    while True:
        look_seconds = time.monotonic()
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            looks.append((look_seconds, 0))
            time.sleep(_LOOK_SECONDS)


def main() -> None:
    path, size_bytes = sys.argv[1:]
    sys.stderr.buffer.write(_READY)
    sys.stderr.flush()
    json.dump(follow(Path(path), int(size_bytes)), sys.stdout)


if __name__ == "__main__":
    main()
