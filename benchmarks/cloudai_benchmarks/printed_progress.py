"""How far it is, on standard error."""

from __future__ import annotations

import sys
from typing import Self

import rich.progress
from rich.console import Console

from cloudai_benchmarks.report import format_number
from cloudai_benchmarks.results import Measurement


class PrintedProgress:
    """A line for each measurement on standard error, and a bar below them on a terminal."""

    def __init__(self, job_count: int) -> None:
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("starting", total=job_count)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, what: str) -> None:
        self._bar.update(self._task, description=what)
        if self._bar.disable:
            self._say(what)

    def measured(self, measurement: Measurement) -> None:
        place = f"{measurement.workload} {measurement.phase}, {measurement.contender}"
        seconds = measurement.seconds
        outcome = (
            f"failed: {_last_line(measurement.error)}" if seconds is None else f"{format_number(seconds)} s"
        )
        self._say(f"round {measurement.round + 1}: {place}: {outcome}")
        self._bar.update(self._task, description=f"measuring {measurement.workload}", advance=1)

    def _say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, soft_wrap=True)


def _last_line(text: str | None) -> str:
    return (text or "").rpartition("\n")[2]
