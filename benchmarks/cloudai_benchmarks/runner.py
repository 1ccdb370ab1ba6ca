"""Runs every workload on every contender, round by round, each in an order drawn by lot.

A contender that cannot start, or a job that fails, becomes a line in the results; the others go on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Protocol

from cloudai_benchmarks.contenders.cloudai import CloudAI
from cloudai_benchmarks.contenders.contender import Contender, Source
from cloudai_benchmarks.datasets import Dataset
from cloudai_benchmarks.errors import BenchmarkError
from cloudai_benchmarks.plan import Plan, takes_part
from cloudai_benchmarks.processes import cpu_seconds_between, cpu_seconds_of, memory_of
from cloudai_benchmarks.quiet_disk import read_files, sync_disk
from cloudai_benchmarks.results import DaemonCosts, Measurement
from cloudai_benchmarks.worker import Assignment, measure_in_process
from cloudai_benchmarks.workloads import Phase, ReadWorkload, Workload, WriteWorkload
from cloudai_benchmarks.write_measuring import WriteMeasurer


class Progress(Protocol):
    """Who wants to hear how far it is."""

    def begin(self, what: str) -> None:
        """Something that takes a while begins."""

    def measured(self, measurement: Measurement) -> None: ...


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
        self._read_workloads = [workload for workload in plan.workloads if isinstance(workload, ReadWorkload)]

    @property
    def datasets(self) -> list[Dataset]:
        """Those that the workloads need, each once."""
        return _datasets_of(self._plan.workloads)

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
                contender.start(_datasets_of(self._read_workloads))
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
                for contender in lot.sample(self._contenders, len(self._contenders)):
                    if takes_part(contender, workload):
                        self._measure(workload, contender, round_number)

    def measure_daemon(self) -> None:
        """Fills `daemon_costs`, if one of ours takes part: one mount, all that read, then nothing to do."""
        ours = next((each for each in self._contenders if isinstance(each, CloudAI)), None)
        if ours is None or ours.name in self._start_errors or not self._read_workloads:
            return
        self._progress.begin(f"watching the daemon of {ours.name} through all reading workloads, and idle")
        try:
            self.daemon_costs = self._watch(ours)
        except (BenchmarkError, OSError) as error:
            self._progress.begin(f"no costs of the daemon: {error}")
        finally:
            self._unmount(ours)

    def _watch(self, ours: CloudAI) -> DaemonCosts:
        errors = []
        ours.drop_client_caches()
        for workload in self._read_workloads:
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
            idle_cpu_seconds=cpu_seconds_between(before_seconds, cpu_seconds_of(pids)),
            errors=errors,
        )

    def _measure(self, workload: Workload, contender: Contender, round_number: int) -> None:
        match workload:
            case ReadWorkload():
                self._measure_reading(workload, contender, round_number)
            case WriteWorkload():
                self._measure_writing(workload, contender, round_number)

    def _measure_writing(self, workload: WriteWorkload, contender: Contender, round_number: int) -> None:
        """Records all phases, or that all of them have failed."""
        measurer = WriteMeasurer(self._plan, self._source, workload, contender, round_number)
        error = self._start_errors.get(contender.name)
        measurements: list[Measurement] = []
        try:
            if error is None:
                measurements = measurer.measure()
        except (BenchmarkError, OSError) as raised:
            error = str(raised)
        finally:
            self.leftovers += [f"{contender.name}: {line}" for line in contender.end_writing()]
        if error is not None:
            measurements = [
                _failed(workload, phase, contender, round_number, error) for phase in workload.phases
            ]
        for measurement in measurements:
            self._record(measurement)

    def _measure_reading(self, workload: ReadWorkload, contender: Contender, round_number: int) -> None:
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
                self._record(measurement)
        finally:
            self._unmount(contender)

    def _record(self, measurement: Measurement) -> None:
        self.measurements.append(measurement)
        self._progress.measured(measurement)

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
        read_files(contender.served_files(dataset))
        sync_disk(self._source.directory)

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
            client_cpu_seconds=cpu_seconds_between(client_before, cpu_seconds_of(client_pids)),
            server_cpu_seconds=cpu_seconds_between(server_before, cpu_seconds_of(contender.server_pids())),
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


def _failed(
    workload: Workload, phase: Phase, contender: Contender, round_number: int, error: str
) -> Measurement:
    return Measurement(
        workload=workload.name, phase=phase, contender=contender.name, round=round_number, error=error
    )


def _datasets_of(workloads: Sequence[Workload]) -> list[Dataset]:
    """Each once."""
    return list({workload.dataset.name: workload.dataset for workload in workloads}.values())


def _describe(dataset: Dataset) -> str:
    return f"{dataset.file_count:,} files, {dataset.size_bytes / 1024**2:,.0f} MiB"
