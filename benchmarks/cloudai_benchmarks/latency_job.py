"""How long a small write takes while a large file is written and uploaded beside it."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import threading
import time
from pathlib import Path
from typing import Final

from cloudai_benchmarks.arrival import Outcome
from cloudai_benchmarks.comparison import compare, compare_files
from cloudai_benchmarks.errors import BenchmarkError, CommandFailed
from cloudai_benchmarks.figures import LATENCY_MEDIAN_SECONDS, LATENCY_MOST_SECONDS, LATENCY_P99_SECONDS
from cloudai_benchmarks.workloads import Figures
from cloudai_benchmarks.write_jobs import PlacedJob
from cloudai_benchmarks.write_place import WritePlace

SMALL_WRITE_BYTES: Final = 4096
PAUSE_SECONDS: Final = 0.005
"""Between two small writes: they are to be the victim of the upload, not a second one."""

_LARGE: Final = "large"
_SMALL: Final = "small"
_BLOCK: Final = bytes(range(256)) * (SMALL_WRITE_BYTES // 256)


class WriteBesideUpload(PlacedJob):
    """`cp` of the large file, and writes of 4 KiB to another from the beginning until the server has the large one."""

    def __init__(self, place: WritePlace, source: Path, name: str) -> None:
        super().__init__(place, source)
        self._original = source / name
        self._taken_seconds: list[float] = []

    def load(self) -> list[Outcome]:
        return [{_LARGE: self._original.stat().st_size}]

    def work(self) -> None:
        upload = _Upload(self._original, self.place)
        with (self.place.directory / _SMALL).open("wb", buffering=0) as file:
            descriptor = file.fileno()
            while not self._taken_seconds or not upload.has_ended:
                began_seconds = time.perf_counter()
                os.write(descriptor, _BLOCK)
                self._taken_seconds.append(time.perf_counter() - began_seconds)
                time.sleep(PAUSE_SECONDS)
        upload.raise_failure()

    def finish(self) -> Figures:
        # How many there would be nobody knew before: what is compared has to be there.
        self.place.arrival.wait({_SMALL: SMALL_WRITE_BYTES * len(self._taken_seconds)})
        taken = sorted(self._taken_seconds)
        return {
            LATENCY_MEDIAN_SECONDS: statistics.median(taken),
            LATENCY_P99_SECONDS: percentile(taken, 0.99),
            LATENCY_MOST_SECONDS: taken[-1],
        }

    def check(self, stored: list[Path]) -> None:
        compare_files(stored[0] / _LARGE, self._original)
        data = (stored[0] / _SMALL).read_bytes()
        compare("the small file", data, _BLOCK * max(1, len(data) // SMALL_WRITE_BYTES))


class _Upload:
    """In a thread that does nothing but wait: for `cp`, and then for the server."""

    def __init__(self, original: Path, place: WritePlace) -> None:
        self._original = original
        self._place = place
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            command = ["cp", str(self._original), str(self._place.directory / _LARGE)]
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode != 0:
                raise CommandFailed(command=command, status=done.returncode, said=done.stderr)
            self._place.arrival.wait({_LARGE: self._original.stat().st_size}, below=_LARGE)
        except (BenchmarkError, OSError) as error:
            self._failure = error


def percentile(ordered: list[float], share: float) -> float:
    """The least value that this share of them does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
