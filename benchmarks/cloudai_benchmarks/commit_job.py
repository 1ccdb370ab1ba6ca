"""How fast the master commits: clients without a mount, each in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO

from cloudai_benchmarks.arrival import Outcome
from cloudai_benchmarks.commit_orders import READY, Orders, contents
from cloudai_benchmarks.comparison import compare
from cloudai_benchmarks.errors import WorkFailed
from cloudai_benchmarks.figures import CALL_MEDIAN_SECONDS, CALL_P99_SECONDS
from cloudai_benchmarks.latency_job import percentile
from cloudai_benchmarks.processes import python_path
from cloudai_benchmarks.workloads import Figures
from cloudai_benchmarks.write_jobs import PlacedJob
from cloudai_benchmarks.write_place import WritePlace


class CommitAtOnce(PlacedJob):
    """All clients commit at once, each to a run of its own; together always the same number of files."""

    def __init__(
        self, place: WritePlace, source: Path, client_count: int, file_count: int, seed: str
    ) -> None:
        super().__init__(place, source)
        assert place.master is not None
        self._orders = [
            Orders(
                master=place.master,
                task=f"client-{index:02}",
                file_count=file_count // client_count,
                seed=seed,
            )
            for index in range(client_count)
        ]
        self._clients: list[_Client] = []
        self._taken_seconds: list[float] = []

    def load(self) -> list[Outcome]:
        self._clients = [_Client(orders) for orders in self._orders]
        for client in self._clients:
            client.wait_ready()
        return []

    def work(self) -> None:
        for client in self._clients:
            client.begin()
        for client in self._clients:
            self._taken_seconds += client.take_answer()

    def finish(self) -> Figures:
        taken = sorted(self._taken_seconds)
        return {CALL_MEDIAN_SECONDS: statistics.median(taken), CALL_P99_SECONDS: percentile(taken, 0.99)}

    def check(self, stored: list[Path]) -> None:
        user = stored[0].parents[1]
        for orders in self._orders:
            (run,) = (path for path in (user / orders.task).iterdir() if not path.is_symlink())
            right = dict(contents(orders))
            compare("the names at the server", sorted(path.name for path in run.iterdir()), sorted(right))
            for name, data in right.items():
                compare(f"{orders.task} {name}", (run / name).read_bytes(), data)


class _Client:
    """One process of `commit_client`. Whoever waits for it too long is killed with it."""

    def __init__(self, orders: Orders) -> None:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cloudai_benchmarks.commit_client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | python_path(),
            text=True,
        )
        self._say(json.dumps(asdict(orders)))

    def wait_ready(self) -> None:
        if self._hear() != READY:
            raise self._failed()

    def begin(self) -> None:
        self._say("begin")

    def take_answer(self) -> list[float]:
        """The seconds of each call."""
        line = self._hear()
        if not line:
            raise self._failed()
        return [float(seconds) for seconds in json.loads(line)]

    def _say(self, line: str) -> None:
        stream = _stream(self._process.stdin)
        stream.write(f"{line}\n")
        stream.flush()

    def _hear(self) -> str:
        return _stream(self._process.stdout).readline().strip()

    def _failed(self) -> WorkFailed:
        self._process.wait()
        self._errors.seek(0)
        return WorkFailed(f"a client ended: {self._errors.read()[-1000:]}")


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
