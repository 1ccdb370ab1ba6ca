"""Does one job in a process of its own: `python -m cloudai_benchmarks.worker`.

An assignment comes as JSON on standard input, seconds or an error go as JSON to standard output. A process of
its own can be killed when it hangs, and shares nothing with the one that did the same work before.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cloudai_benchmarks.errors import BenchmarkError, TookTooLong, WorkFailed
from cloudai_benchmarks.processes import run_command
from cloudai_benchmarks.registry import make_workloads


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which job to do, and where."""

    workload: str
    scale: float
    seed: str
    directory: str
    """The dataset at the contender."""
    source: str
    """The dataset on local disk, for the check."""


def measure_in_process(
    assignment: Assignment, *, seconds_max: float, on_timeout: Callable[[], None]
) -> float:
    """The seconds of one job, done by a process of its own.

    Raises WorkFailed when the work or its check failed, TookTooLong after `seconds_max` of both.
    """
    try:
        text = run_command(
            sys.executable,
            "-m",
            "cloudai_benchmarks.worker",
            seconds_max=seconds_max,
            text_in=json.dumps(asdict(assignment)),
            # `benchmarks` is on the path of this process, by whatever means: the child gets the same.
            environment={"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
            on_timeout=on_timeout,
        )
    except TookTooLong as error:
        raise TookTooLong(what="the work and its check", seconds_max=seconds_max) from error
    answer = json.loads(text)
    if "error" in answer:
        raise WorkFailed(answer["error"])
    return float(answer["seconds"])


def main() -> None:
    assignment = Assignment(**json.load(sys.stdin))
    workload = make_workloads(assignment.scale)[assignment.workload]
    job = workload.make_job(Path(assignment.directory), assignment.seed)
    gc.disable()
    try:
        began_seconds = time.perf_counter()
        job.work()
        seconds = time.perf_counter() - began_seconds
        job.check(Path(assignment.source))
    except (BenchmarkError, OSError) as error:
        print(json.dumps({"error": f"{error}"}))
    else:
        print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
