"""The arithmetic of the benchmark: medians, ratios, and what a failure takes away from them."""

from __future__ import annotations

from pathlib import Path

from cloudai_benchmarks.machine import Machine
from cloudai_benchmarks.result_file import ResultFile
from cloudai_benchmarks.results import DaemonCosts, Measurement, Results, Row

COLD = Row(workload="sequential", phase="cold")
AGAIN = Row(workload="sequential", phase="again")


def measured(
    contender: str, seconds: float | None, *, round_number: int = 0, row: Row = COLD, error: str | None = None
) -> Measurement:
    return Measurement(
        workload=row.workload,
        phase=row.phase,
        contender=contender,
        round=round_number,
        seconds=seconds,
        error=error,
    )


def rounds(contender: str, *seconds: float, row: Row = COLD) -> list[Measurement]:
    return [measured(contender, taken, round_number=number, row=row) for number, taken in enumerate(seconds)]


def test_median_of_an_even_number_of_rounds_is_between_the_middle_two() -> None:
    summary = Results(rounds("sshfs", 4.0, 1.0, 2.0, 9.0)).summarize(COLD, "sshfs")

    assert summary is not None
    assert summary.median_seconds == 3.0
    assert summary.seconds == (4.0, 1.0, 2.0, 9.0)


def test_ratio_is_of_the_medians_in_the_same_row() -> None:
    results = Results(
        [
            *rounds("cloudai", 1.0, 2.0, 30.0),
            *rounds("sshfs", 5.0, 4.0, 1.0),
            *rounds("sshfs", 100.0, row=AGAIN),
        ]
    )

    assert results.ratio(COLD, "cloudai", "sshfs") == 0.5


def test_one_failed_round_leaves_no_median_and_no_ratio() -> None:
    results = Results(
        [
            *rounds("cloudai", 1.0, 1.0),
            *rounds("rclone", 2.0, 2.0),
            measured("rclone", None, round_number=2, error="wrong answer"),
        ]
    )
    summary = results.summarize(COLD, "rclone")

    assert summary is not None
    assert summary.median_seconds is None
    assert summary.errors == ("wrong answer",)
    assert summary.round_count == 3
    assert results.ratio(COLD, "cloudai", "rclone") is None
    assert results.ratio(COLD, "rclone", "cloudai") is None


def test_ratio_to_somebody_who_was_not_asked_is_none() -> None:
    results = Results(rounds("cloudai", 1.0))

    assert results.summarize(COLD, "sshfs") is None
    assert results.ratio(COLD, "cloudai", "sshfs") is None


def test_figures_are_kept_by_workload_and_contender_in_the_order_of_the_rounds() -> None:
    def behind(contender: str, seconds: float, round_number: int) -> Measurement:
        return Measurement(
            workload="log-follow",
            phase="stored",
            contender=contender,
            round=round_number,
            seconds=20.0,
            figures={"behind": seconds},
        )

    results = Results(
        [
            *rounds("cloudai", 1.0),
            behind("cloudai", 0.5, 0),
            behind("sshfs", 9.0, 0),
            behind("cloudai", 0.7, 1),
        ]
    )

    assert results.figure_names("log-follow") == ["behind"]
    assert results.figure_names("sequential") == []
    assert results.figure_values("log-follow", "cloudai", "behind") == [0.5, 0.7]
    assert results.figure_values("log-follow", "rclone", "behind") == []


def test_rows_come_in_the_order_of_measuring_each_once() -> None:
    results = Results([*rounds("sshfs", 1.0), *rounds("sshfs", 1.0, row=AGAIN), *rounds("cloudai", 1.0, 1.0)])

    assert results.rows() == [COLD, AGAIN]


def test_result_file_gives_back_what_was_written(tmp_path: Path) -> None:
    with_figure = Measurement(
        workload="checkpoint",
        phase="stored",
        contender="cloudai",
        round=0,
        seconds=1.0,
        figures={"share": 0.1},
    )
    file = ResultFile(
        machine=Machine(
            time="2026-11-20T15:04:05+00:00",
            cpu="a processor",
            core_count=2,
            memory_bytes=24 * 1024**3,
            kernel="6.18",
            work_dir_kind="ext4",
            load=0.5,
            versions={"sshfs": "SSHFS version 3.7.3"},
        ),
        options={"rounds": 2, "scale": 1.0},
        titles={"sequential": "sequential 1,024 MiB"},
        results=Results(
            [*rounds("cloudai", 1.0, 2.0), with_figure, measured("sshfs", None, error="did not start")]
        ),
        daemon_costs=DaemonCosts(
            contender="cloudai",
            resident_bytes=1,
            resident_bytes_peak=2,
            budget_bytes=None,
            idle_seconds=10.0,
            idle_cpu_seconds=0.0,
            errors=["streams: not within 5 s: python"],
        ),
    )

    file.write(tmp_path / "results.json")
    read = ResultFile.read(tmp_path / "results.json")

    assert read.machine == file.machine
    assert read.results.measurements == file.results.measurements
    assert read.daemon_costs == file.daemon_costs
    assert (read.options, read.titles) == (file.options, file.titles)
