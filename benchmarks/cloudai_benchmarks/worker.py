"""Does one job in a process of its own: `python -m cloudai_benchmarks.worker`.

An assignment comes as JSON on standard input, seconds or an error go as JSON to standard output. A process of
its own can be killed when it hangs, and shares nothing with the one that did the same work before.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloudai_benchmarks.errors import BenchmarkError, TookTooLong, WorkFailed
from cloudai_benchmarks.processes import python_path, run_command
from cloudai_benchmarks.registry import make_workloads
from cloudai_benchmarks.workloads import ReadWorkload


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
    answer = do_in_process(
        "cloudai_benchmarks.worker", asdict(assignment), "the work and its check", seconds_max, on_timeout
    )
    return float(answer["seconds"])


def do_in_process(
    module: str,
    assignment: Mapping[str, Any],
    what: str,
    seconds_max: float,
    on_timeout: Callable[[], None],
) -> dict[str, Any]:
    """What a process of its own, which runs the module, answers to an assignment.

    Raises WorkFailed in its words, TookTooLong after `seconds_max`; it is killed then with all that it started.
    """
    try:
        text = run_command(
            sys.executable,
            "-m",
            module,
            seconds_max=seconds_max,
            text_in=json.dumps(assignment),
            environment=python_path(),
            on_timeout=on_timeout,
        )
    except TookTooLong as error:
        raise TookTooLong(what=what, seconds_max=seconds_max) from error
    answer = json.loads(text)
    if "error" in answer:
        raise WorkFailed(answer["error"])
    return dict(answer)


def answer_assignment(do: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """The other end of do_in_process."""
    fields = json.load(sys.stdin)
    try:
        answer = do(fields)
    except (BenchmarkError, OSError) as error:
        answer = {"error": f"{error}"}
    print(json.dumps(answer))


def main() -> None:
    answer_assignment(lambda fields: {"seconds": _measure(Assignment(**fields))})


def _measure(assignment: Assignment) -> float:
    workload = make_workloads(assignment.scale)[assignment.workload]
    assert isinstance(workload, ReadWorkload)
    job = workload.make_job(Path(assignment.directory), assignment.seed)
    gc.disable()
    began_seconds = time.perf_counter()
    job.work()
    seconds = time.perf_counter() - began_seconds
    job.check(Path(assignment.source))
    return seconds


if __name__ == "__main__":
    main()
