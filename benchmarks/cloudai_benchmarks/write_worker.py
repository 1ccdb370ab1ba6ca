"""Does one step of a job that writes in a process of its own: `python -m cloudai_benchmarks.write_worker`.

An assignment comes as JSON on standard input, times and figures or an error go as JSON to standard output.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from cloudai_benchmarks.arrival import Outcome
from cloudai_benchmarks.registry import make_workloads
from cloudai_benchmarks.worker import answer_assignment, do_in_process
from cloudai_benchmarks.workloads import WriteJob, WriteWorkload
from cloudai_benchmarks.write_place import WritePlace


class Step(StrEnum):
    PREPARE = "prepare"
    """Writes what has to be there before, and waits until the server has it."""
    WORK = "work"
    """What is timed, and then as long as it takes until the server has it."""
    CHECK = "check"
    """Compares what the server has with what was to be written."""


_STEP_TITLES: Final = {
    Step.PREPARE: "what has to be there before, until the server has it",
    Step.WORK: "the work, until the server has everything",
    Step.CHECK: "the comparison with what the server has",
}


@dataclass(frozen=True, kw_only=True)
class WriteAssignment:
    """Which job to do, and where."""

    step: Step
    workload: str
    scale: float
    upload_bytes: int
    seed: str
    source: str
    """The dataset on local disk."""
    place: Mapping[str, Any]
    """WritePlace.to_json()"""
    stored: list[str] = field(default_factory=list)
    """For the check: the writers' directories as the server has them."""


@dataclass(frozen=True, kw_only=True)
class WriteTimes:
    """What became of the work."""

    returned_seconds: float = 0.0
    """From the begin until the program was done."""
    stored_seconds: float = 0.0
    """From the begin until the server had everything."""
    figures: dict[str, float] = field(default_factory=dict)


def do_write_step(
    assignment: WriteAssignment, *, seconds_max: float, on_timeout: Callable[[], None]
) -> WriteTimes:
    """One step, done by a process of its own. Only that of the work tells something.

    Raises WorkFailed when it failed, TookTooLong after `seconds_max`.
    """
    answer = do_in_process(
        "cloudai_benchmarks.write_worker",
        asdict(assignment),
        _STEP_TITLES[assignment.step],
        seconds_max,
        on_timeout,
    )
    return WriteTimes(**answer)


def main() -> None:
    answer_assignment(lambda fields: asdict(_do(WriteAssignment(**fields))))


def _do(assignment: WriteAssignment) -> WriteTimes:
    workload = make_workloads(assignment.scale, upload_bytes=assignment.upload_bytes)[assignment.workload]
    assert isinstance(workload, WriteWorkload)
    place = WritePlace.from_json(assignment.place)
    job = workload.make_job(place, Path(assignment.source), assignment.seed)
    match assignment.step:
        case Step.PREPARE:
            _wait_for(place, job.prepare())
        case Step.WORK:
            return _work(place, job)
        case Step.CHECK:
            job.check([Path(directory) for directory in assignment.stored])
    return WriteTimes()


def _work(place: WritePlace, job: WriteJob) -> WriteTimes:
    outcomes = job.load()
    gc.disable()
    began_seconds = time.perf_counter()
    job.work()
    returned_seconds = time.perf_counter() - began_seconds
    _wait_for(place, outcomes)
    stored_seconds = time.perf_counter() - began_seconds
    return WriteTimes(
        returned_seconds=returned_seconds, stored_seconds=stored_seconds, figures=dict(job.finish())
    )


def _wait_for(place: WritePlace, outcomes: list[Outcome]) -> None:
    for arrival, outcome in zip(place.arrivals, outcomes, strict=bool(outcomes)):
        arrival.wait(outcome)


if __name__ == "__main__":
    main()
