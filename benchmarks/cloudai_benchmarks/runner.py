"""Runs every workload on every contender, round by round, each in an order drawn by lot.

A contender that cannot start, or a job that fails, becomes a line in the results; the others go on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cloudai_benchmarks.contenders.cloudai import CloudAI
from cloudai_benchmarks.contenders.contender import Contender, Source
from cloudai_benchmarks.datasets import Dataset
from cloudai_benchmarks.errors import BenchmarkError
from cloudai_benchmarks.processes import cpu_seconds_of, memory_of, run_command
from cloudai_benchmarks.results import DaemonCosts, Measurement
from cloudai_benchmarks.worker import Assignment, measure_in_process
from cloudai_benchmarks.workloads import Access, Phase, Workload

_WARM_READ_BYTES: Final = 4 * 1024**2
_SYNC_SECONDS_MAX: Final = 300.0


class Progress(Protocol):
    """Who wants to hear how far it is."""

    def begin(self, what: str) -> None:
        """Something that takes a while begins."""

    def measured(self, measurement: Measurement) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do; all of it repeats exactly with the same seed, but for what the machine does meanwhile."""

    workloads: Sequence[Workload]
    round_count: int
    scale: float
    seed: str
    job_seconds_max: float
    """Of one job and its check; then it has failed."""
    idle_seconds: float
    """How long the daemon is watched doing nothing."""

    @property
    def job_count(self) -> int:
        """Of each contender."""
        return self.round_count * sum(len(workload.phases) for workload in self.workloads)


class Runner:
    """One benchmark run: make_source, start_contenders, measure_..., and whatever happens stop_contenders."""

    def __init__(
        self, plan: Plan, contenders: Sequence[Contender], source: Source, progress: Progress
    ) -> None:
        self.measurements: list[Measurement] = []
        """Grows while it runs, so that an interrupted run has a report."""
        self.daemon_costs: DaemonCosts | None = None
        self.leftovers: list[str] = []
        """What would not be unmounted or stopped."""
        self._plan = plan
        self._contenders = contenders
        self._source = source
        self._progress = progress
        self._start_errors: dict[str, str] = {}

    @property
    def datasets(self) -> list[Dataset]:
        """Those that the workloads need, each once."""
        return list({workload.dataset.name: workload.dataset for workload in self._plan.workloads}.values())

    def make_source(self) -> None:
        """Writes the datasets to local disk."""
        for dataset in self.datasets:
            self._progress.begin(f"writing {dataset.name}: {_describe(dataset)}")
            directory = self._source.path_of(dataset)
            directory.mkdir(parents=True)
            dataset.write(directory, self._plan.seed)

    def start_contenders(self) -> None:
        """Servers run and have the datasets. One that does not start fails in every row."""
        for contender in self._contenders:
            self._progress.begin(f"starting {contender.name} and giving it the data")
            try:
                contender.start(self.datasets)
            except (BenchmarkError, OSError) as error:
                self._start_errors[contender.name] = f"did not start: {error}"

    def stop_contenders(self) -> None:
        """Nothing is mounted and no server runs afterwards, whatever happened before. Never raises."""
        self._progress.begin("unmounting and stopping everything")
        for contender in self._contenders:
            self.leftovers += [f"{contender.name}: {line}" for line in contender.stop()]

    def measure_rounds(self) -> None:
        """Fills `measurements`."""
        lot = random.Random(f"{self._plan.seed} order")
        for round_number in range(self._plan.round_count):
            for workload in self._plan.workloads:
                assert workload.access is Access.READS
                for contender in lot.sample(self._contenders, len(self._contenders)):
                    self._measure(workload, contender, round_number)

    def measure_daemon(self) -> None:
        """Fills `daemon_costs`, if one of ours takes part: one mount, all workloads, then nothing to do."""
        ours = next((each for each in self._contenders if isinstance(each, CloudAI)), None)
        if ours is None or ours.name in self._start_errors:
            return
        self._progress.begin(f"watching the daemon of {ours.name} through all workloads, and idle")
        try:
            self.daemon_costs = self._watch(ours)
        except (BenchmarkError, OSError) as error:
            self._progress.begin(f"no costs of the daemon: {error}")
        finally:
            self._unmount(ours)

    def _watch(self, ours: CloudAI) -> DaemonCosts:
        errors = []
        ours.drop_client_caches()
        for workload in self._plan.workloads:
            try:
                self._do(workload, ours, round_number=0)
            except (BenchmarkError, OSError) as error:
                errors.append(f"{workload.name}: {error}")
        pids = ours.client_pids()
        memory = memory_of(pids)
        # As long again before it is watched: for what goes on behind the last job, as writing to the cache.
        time.sleep(self._plan.idle_seconds)
        before_seconds = cpu_seconds_of(pids)
        time.sleep(self._plan.idle_seconds)
        return DaemonCosts(
            contender=ours.name,
            resident_bytes=memory.resident_bytes,
            resident_bytes_peak=memory.resident_bytes_peak,
            budget_bytes=ours.memory_budget_bytes(),
            idle_seconds=self._plan.idle_seconds,
            idle_cpu_seconds=_difference(before_seconds, cpu_seconds_of(pids)),
            errors=errors,
        )

    def _measure(self, workload: Workload, contender: Contender, round_number: int) -> None:
        """Records each phase; after one that failed, those that follow have failed as well."""
        error = self._start_errors.get(contender.name)
        try:
            for phase in workload.phases:
                measurement = (
                    self._try_phase(workload, phase, contender, round_number)
                    if error is None
                    else _failed(workload, phase, contender, round_number, error)
                )
                error = measurement.error
                self.measurements.append(measurement)
                self._progress.measured(measurement)
        finally:
            self._unmount(contender)

    def _try_phase(
        self, workload: Workload, phase: Phase, contender: Contender, round_number: int
    ) -> Measurement:
        try:
            if phase is Phase.COLD:
                self._make_cold(contender, workload.dataset)
            return self._measure_phase(workload, phase, contender, round_number)
        except (BenchmarkError, OSError) as error:
            return _failed(workload, phase, contender, round_number, str(error))

    def _make_cold(self, contender: Contender, dataset: Dataset) -> None:
        contender.drop_client_caches()
        _read_files(contender.served_files(dataset))
        # What others left to be written must not be written while the clock runs. Of this filesystem alone:
        # a sync of all would ask every mount.
        run_command("sync", "-f", self._source.directory, seconds_max=_SYNC_SECONDS_MAX)

    def _measure_phase(
        self, workload: Workload, phase: Phase, contender: Contender, round_number: int
    ) -> Measurement:
        client_before = cpu_seconds_of(contender.client_pids())
        server_before = cpu_seconds_of(contender.server_pids())
        seconds = self._do(workload, contender, round_number)
        client_pids = contender.client_pids()
        return Measurement(
            workload=workload.name,
            phase=phase,
            contender=contender.name,
            round=round_number,
            seconds=seconds,
            client_cpu_seconds=_difference(client_before, cpu_seconds_of(client_pids)),
            server_cpu_seconds=_difference(server_before, cpu_seconds_of(contender.server_pids())),
            client_resident_bytes_peak=memory_of(client_pids).resident_bytes_peak,
        )

    def _do(self, workload: Workload, contender: Contender, round_number: int) -> float:
        return measure_in_process(
            Assignment(
                workload=workload.name,
                scale=self._plan.scale,
                seed=f"{self._plan.seed} {round_number}",
                directory=str(contender.path_of(workload.dataset)),
                source=str(self._source.path_of(workload.dataset)),
            ),
            seconds_max=self._plan.job_seconds_max,
            on_timeout=contender.abort,
        )

    def _unmount(self, contender: Contender) -> None:
        # So that only the one that is measured has memory and something to do.
        try:
            contender.unmount()
        except (BenchmarkError, OSError) as error:
            self._progress.begin(f"{contender.name}: {error}")


def _difference(before_seconds: float, after_seconds: float) -> float:
    # To the clock's hundredths: 0.14 - 0.12 is a bit more than 0.02.
    return round(after_seconds - before_seconds, 2)


def _failed(
    workload: Workload, phase: Phase, contender: Contender, round_number: int, error: str
) -> Measurement:
    return Measurement(
        workload=workload.name, phase=phase, contender=contender.name, round=round_number, error=error
    )


def _read_files(paths: Iterable[Path]) -> None:
    """Brings them into the page cache."""
    buffer = bytearray(_WARM_READ_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _describe(dataset: Dataset) -> str:
    return f"{dataset.file_count:,} files, {dataset.size_bytes / 1024**2:,.0f} MiB"
