"""Logs: lines of 100 bytes, one write each; alone, and followed on another mount."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloudai_benchmarks.arrival import Outcome
from cloudai_benchmarks.comparison import compare
from cloudai_benchmarks.figures import BEHIND_MEDIAN_SECONDS, BEHIND_MOST_SECONDS
from cloudai_benchmarks.log_follower import LogFollower
from cloudai_benchmarks.workloads import Figures
from cloudai_benchmarks.write_jobs import PlacedJob
from cloudai_benchmarks.write_place import WritePlace

LINE_BYTES: Final = 100
LINES_PER_SECOND: Final = 500
"""Of the log that is followed: a lively one."""

FOLLOW_SECONDS_MAX: Final = 30.0
"""How long the follower may need after the server has the last line."""

_NAME: Final = "train.log"


class WriteLog(PlacedJob):
    """Appends all lines as fast as they are taken."""

    def __init__(self, place: WritePlace, source: Path, line_count: int, seed: str) -> None:
        super().__init__(place, source)
        lot = random.Random(f"{seed} log")
        self.lines = [
            f"{number:08} {lot.randbytes(LINE_BYTES).hex()}"[: LINE_BYTES - 1].encode() + b"\n"
            for number in range(line_count)
        ]

    def load(self) -> list[Outcome]:
        return [{_NAME: LINE_BYTES * len(self.lines)}]

    def work(self) -> None:
        descriptor = self.open()
        try:
            for line in self.lines:
                os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def check(self, stored: list[Path]) -> None:
        compare("the log", (stored[0] / _NAME).read_bytes(), b"".join(self.lines))

    def open(self) -> int:
        return os.open(self.place.directory / _NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


class FollowLog(WriteLog):
    """Appends lines at an even pace, while a process reads the growing file on another mount."""

    def __init__(self, place: WritePlace, source: Path, line_count: int, seed: str) -> None:
        super().__init__(place, source, line_count, seed)
        self._written_seconds: list[float] = []
        self._follower: LogFollower | None = None

    def load(self) -> list[Outcome]:
        assert self.place.followed is not None
        self._follower = LogFollower(self.place.followed / _NAME, LINE_BYTES * len(self.lines))
        return super().load()

    def work(self) -> None:
        descriptor = self.open()
        begin_seconds = time.monotonic()
        try:
            for index, line in enumerate(self.lines):
                ahead_seconds = begin_seconds + index / LINES_PER_SECOND - time.monotonic()
                if ahead_seconds > 0:
                    time.sleep(ahead_seconds)
                os.write(descriptor, line)
                self._written_seconds.append(time.monotonic())
        finally:
            os.close(descriptor)

    def finish(self) -> Figures:
        assert self._follower is not None
        behind = [
            behind_seconds(self._written_seconds, *look) for look in self._follower.looks(FOLLOW_SECONDS_MAX)
        ]
        return {BEHIND_MOST_SECONDS: max(behind), BEHIND_MEDIAN_SECONDS: statistics.median(behind)}


def behind_seconds(written_seconds: Sequence[float], look_seconds: float, seen_bytes: int) -> float:
    """The age, at the time of a look, of the oldest line that was not seen; 0 when all that there was was seen."""
    seen_count = seen_bytes // LINE_BYTES
    if seen_count >= len(written_seconds):
        return 0.0
    return max(0.0, look_seconds - written_seconds[seen_count])
