"""Measures one workload that writes on one contender: mounted for it, prepared, timed, compared, taken away."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cloudai_benchmarks.contenders.contender import Contender, Source
from cloudai_benchmarks.figures import FILES_PER_SECOND, SENT_SHARE
from cloudai_benchmarks.plan import Plan
from cloudai_benchmarks.processes import cpu_seconds_between, cpu_seconds_of, memory_of
from cloudai_benchmarks.quiet_disk import read_files, sync_disk
from cloudai_benchmarks.results import Measurement
from cloudai_benchmarks.workloads import Phase, WriteWorkload
from cloudai_benchmarks.write_place import WritePlace
from cloudai_benchmarks.write_worker import Step, WriteAssignment, WriteTimes, do_write_step


class WriteMeasurer:
    """One workload on one contender in one round."""

    def __init__(
        self, plan: Plan, source: Source, workload: WriteWorkload, contender: Contender, round_number: int
    ) -> None:
        self._plan = plan
        self._source = source
        self._workload = workload
        self._contender = contender
        self._round_number = round_number

    def measure(self) -> list[Measurement]:
        """One measurement for each phase. Raises BenchmarkError, OSError; then all phases have failed.

        Whatever happens, `Contender.end_writing` is the caller's to call.
        """
        workload, contender = self._workload, self._contender
        place = contender.begin_writing(
            writer_count=workload.writer_count, with_follower=workload.with_follower
        )
        if workload.is_prepared:
            self._do(Step.PREPARE, place)
        read_files(self._source.files_of(workload.dataset))
        sync_disk(self._source.directory)
        client_before = cpu_seconds_of(contender.client_pids())
        server_before = cpu_seconds_of(contender.server_pids())
        sent_before_bytes = self._sent_bytes()
        times = self._do(Step.WORK, place)
        client_pids = contender.client_pids()
        measured = partial(
            Measurement,
            workload=workload.name,
            contender=contender.name,
            round=self._round_number,
            client_cpu_seconds=cpu_seconds_between(client_before, cpu_seconds_of(client_pids)),
            server_cpu_seconds=cpu_seconds_between(server_before, cpu_seconds_of(contender.server_pids())),
            client_resident_bytes_peak=memory_of(client_pids).resident_bytes_peak,
        )
        figures = self._figures(times, sent_before_bytes, self._sent_bytes())
        with contender.stored() as stored:
            self._do(Step.CHECK, place, stored)
        seconds = {Phase.RETURNS: times.returned_seconds, Phase.STORED: times.stored_seconds}
        return [
            # With the last phase alone: they are of the whole work.
            measured(phase=phase, seconds=seconds[phase], figures=figures if phase is Phase.STORED else {})
            for phase in workload.phases
        ]

    def _do(self, step: Step, place: WritePlace, stored: Sequence[Path] = ()) -> WriteTimes:
        plan, workload = self._plan, self._workload
        return do_write_step(
            WriteAssignment(
                step=step,
                workload=workload.name,
                scale=plan.scale,
                upload_bytes=plan.upload_bytes,
                seed=f"{plan.seed} {self._round_number}",
                source=str(self._source.path_of(workload.dataset)),
                place=place.to_json(),
                stored=[str(directory) for directory in stored],
            ),
            seconds_max=plan.job_seconds_max,
            on_timeout=self._contender.abort,
        )

    def _sent_bytes(self) -> int | None:
        return None if self._workload.written_bytes is None else self._contender.sent_bytes()

    def _figures(
        self, times: WriteTimes, sent_before_bytes: int | None, sent_after_bytes: int | None
    ) -> dict[str, float]:
        figures = dict(times.figures)
        written_bytes, file_count = self._workload.written_bytes, self._workload.file_count
        if written_bytes and sent_before_bytes is not None and sent_after_bytes is not None:
            figures[SENT_SHARE] = (sent_after_bytes - sent_before_bytes) / written_bytes
        if file_count:
            figures[FILES_PER_SECOND] = file_count / times.stored_seconds
        return figures
