"""What the report says: the cells of its tables, what is good enough, and what failed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cloudai_benchmarks.figures import FIGURE_TARGETS, FIGURE_TITLES, LATENCY_P99_SECONDS, SENT_SHARE
from cloudai_benchmarks.machine import Machine
from cloudai_benchmarks.registry import make_workloads
from cloudai_benchmarks.report import Report, describe_ratio, describe_summary, format_number
from cloudai_benchmarks.results import DaemonCosts, Measurement, Results, Summary
from cloudai_benchmarks.targets import TARGETS

MIB = 1024**2
MACHINE = Machine(
    time="2026-11-20T15:04:05+00:00",
    cpu="a processor",
    core_count=2,
    memory_bytes=24 * 1024**3,
    kernel="6.18",
    work_dir_kind="ext4",
    load=0.5,
    versions={"sshfs": "SSHFS version 3.7.3"},
)


def sequential(contender: str, seconds: float | None, error: str | None = None) -> Measurement:
    return Measurement(
        workload="sequential", phase="cold", contender=contender, round=0, seconds=seconds, error=error
    )


def print_report(
    *measurements: Measurement,
    daemon_costs: DaemonCosts | None = None,
    scale: float = 1.0,
    upload_gib: float = 2.0,
) -> str:
    output = io.StringIO()
    console = Console(width=200, file=output)
    titles = {"sequential": "sequential 1,024 MiB"}
    report = Report(MACHINE, Results(measurements), daemon_costs, titles, scale=scale, upload_gib=upload_gib)
    report.print_to(console)
    return output.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [(123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123"), (0.0012345, "0.0012")],
)
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_cell_of_several_rounds_has_the_spread() -> None:
    assert describe_summary(Summary(seconds=(2.0, 1.0, 4.0), errors=())) == "2.00 (1.00..4.00)"
    assert describe_summary(Summary(seconds=(2.0,), errors=())) == "2.00"


def test_cell_of_a_failure_counts_the_rounds_and_hides_the_good_ones() -> None:
    assert describe_summary(Summary(seconds=(2.0, 1.0), errors=("broken",))) == "failed 1 of 3"


def test_ratio_at_the_limit_is_good_enough() -> None:
    assert describe_ratio(0.4, 0.4) == "0.400 (0.4: met)"
    assert describe_ratio(0.401, 0.4) == "0.401 (0.4: MISSED)"
    assert describe_ratio(None, 0.4) == "- (0.4: not measured)"
    assert describe_ratio(0.401, None) == "0.401"


def test_report_compares_ours_with_each_peer_that_took_part() -> None:
    text = print_report(sequential("cloudai", 1.0), sequential("sshfs", 4.0), sequential("local", 0.5))

    assert "vs sshfs" in text
    assert "vs local" in text
    assert "vs rclone" not in text
    assert "0.250 (0.4: met)" in text
    assert "2.00" in text


def test_failure_of_a_peer_stands_in_the_report_with_its_reason() -> None:
    text = print_report(
        sequential("cloudai", 1.0), sequential("sshfs", None, error="wrong answer: file-0 at 5")
    )

    assert "failed 1 of 1" in text
    assert "failed: sshfs: sequential cold in round 1: wrong answer: file-0 at 5" in text
    assert "- (0.4: not measured)" in text


def test_figures_stand_beside_the_most_that_is_good_enough_of_ours() -> None:
    def checkpoint(contender: str, sent_share: float) -> Measurement:
        return Measurement(
            workload="checkpoint",
            phase="stored",
            contender=contender,
            round=0,
            seconds=1.0,
            figures={SENT_SHARE: sent_share},
        )

    text = print_report(
        checkpoint("cloudai", 0.12), checkpoint("cloudai-user", 0.2), checkpoint("sshfs", 1.01)
    )

    assert "bytes sent / bytes written" in text
    assert "0.120 (0.15: met)" in text
    assert "0.200 (0.15: MISSED)" in text
    assert "1.01" in text
    assert "1.01 (" not in text


def test_report_of_times_alone_has_no_table_of_figures() -> None:
    assert "Other figures" not in print_report(sequential("cloudai", 1.0))


def test_every_figure_with_something_to_reach_is_measured_and_has_a_title() -> None:
    for workload, figure in FIGURE_TARGETS:
        assert workload in make_workloads(1.0)
        assert figure in FIGURE_TITLES


def test_memory_up_to_150_mib_over_the_budget_is_good_enough() -> None:
    def costs(resident_bytes: int) -> DaemonCosts:
        return DaemonCosts(
            contender="cloudai",
            resident_bytes=resident_bytes,
            resident_bytes_peak=500 * MIB,
            budget_bytes=256 * MIB,
            idle_seconds=10.0,
            idle_cpu_seconds=0.02,
        )

    met = print_report(sequential("cloudai", 1.0), daemon_costs=costs(406 * MIB))
    missed = print_report(sequential("cloudai", 1.0), daemon_costs=costs(407 * MIB))

    assert "406 MiB in memory (500 at most), of 406: met" in met
    assert "407 MiB in memory (500 at most), of 406: MISSED" in missed
    assert "0.02 s of CPU in 10 idle seconds: met" in met


def test_idle_daemon_may_take_two_steps_of_the_clock_in_ten_seconds() -> None:
    costs = DaemonCosts(
        contender="cloudai",
        resident_bytes=100 * MIB,
        resident_bytes_peak=100 * MIB,
        budget_bytes=256 * MIB,
        idle_seconds=10.0,
        idle_cpu_seconds=0.03,
    )

    text = print_report(sequential("cloudai", 1.0), daemon_costs=costs)

    assert "0.03 s of CPU in 10 idle seconds: MISSED" in text


def test_report_says_what_machine_it_ran_on() -> None:
    first, second, *_ = print_report(sequential("cloudai", 1.0)).splitlines()

    assert first == ("2026-11-20T15:04:05+00:00, 2 cores (a processor), 24 GiB, Linux 6.18, ext4, load 0.5")
    assert second == "sshfs: SSHFS version 3.7.3"


def test_report_says_when_it_was_not_the_whole_size() -> None:
    assert "At scale 0.05" in print_report(sequential("cloudai", 1.0), scale=0.05)
    assert "At scale" not in print_report(sequential("cloudai", 1.0))


def test_report_says_when_the_upload_beside_the_writer_was_not_what_the_goals_are_for() -> None:
    latency = Measurement(
        workload="write-latency",
        phase="stored",
        contender="cloudai",
        round=0,
        seconds=1.0,
        figures={LATENCY_P99_SECONDS: 0.01},
    )
    line = "write-latency is beside 2 GiB; what is good enough is said of 10: --upload-gib 10."

    assert line in print_report(latency, upload_gib=2.0).splitlines()
    assert "write-latency is beside" not in print_report(latency, upload_gib=10.0)
    assert "write-latency is beside" not in print_report(sequential("cloudai", 1.0), upload_gib=2.0)


def test_every_row_with_something_to_reach_is_measured() -> None:
    measured = {(each.name, phase.value) for each in make_workloads(1.0).values() for phase in each.phases}

    assert {(row.workload, row.phase) for row in TARGETS} <= measured
