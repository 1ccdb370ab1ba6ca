"""`python -m cloudai_benchmarks` as people run it, on real mounts, at a scale that takes seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloudai_benchmarks.cli import select_workloads
from cloudai_benchmarks.registry import make_workloads
from cloudai_benchmarks.workloads import Access

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SECONDS_MAX = 100.0


def start_benchmark(work_dir: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cloudai_benchmarks", "--scale", "0.001", "--idle-seconds", "0.1"]
    python_path = os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")]))
    work_dir.mkdir()
    return subprocess.Popen(
        [*command, "--work-dir", str(work_dir), "--contender", "local", "--contender", "cloudai", *options],
        env=os.environ | {"PYTHONPATH": python_path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (["random"], ["random-1k", "random-10k"]),
        (["rm-2000", "commits-4"], ["rm-2000", "commits-4"]),
        (["commits"], ["commits-1", "commits-4", "commits-16"]),
    ],
)
def test_workloads_are_chosen_by_how_their_names_begin(names: list[str], meant: list[str]) -> None:
    assert [workload.name for workload in select_workloads(make_workloads(1.0), names)] == meant


@pytest.mark.parametrize("access", Access)
def test_workloads_are_chosen_by_what_they_do(access: Access) -> None:
    chosen = select_workloads(make_workloads(1.0), [access.value])

    assert chosen == [workload for workload in chosen if workload.access is access]
    assert len(chosen) == sum(workload.access is access for workload in make_workloads(1.0).values())


def assert_nothing_is_left(work_dir: Path) -> None:
    assert list(work_dir.iterdir()) == []
    assert str(work_dir) not in Path("/proc/self/mountinfo").read_text()


def test_benchmark_measures_and_leaves_a_report_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    process = start_benchmark(
        tmp_path / "work", "--rounds", "2", "--workload", "sequential", "--output", str(output)
    )
    text, errors = process.communicate(timeout=SECONDS_MAX)

    assert process.returncode == 0, text + errors
    assert "sequential 1 MiB, again" in text
    assert "The daemon of cloudai after all reading workloads" in text
    results = json.loads(output.read_text())
    assert {(each["contender"], each["phase"], each["round"]) for each in results["measurements"]} == {
        (contender, phase, number)
        for contender in ("local", "cloudai")
        for phase in ("cold", "again")
        for number in (0, 1)
    }
    assert all(each["error"] is None for each in results["measurements"])
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert_nothing_is_left(tmp_path / "work")


@pytest.mark.parametrize(
    "workloads",
    [
        ["write-1g", "cp-2000"],
        ["checkpoint", "log-follow"],
        ["rm-2000", "git-clone"],
        ["write-latency", "writers-4", "commits-4"],
        ["mount-again", "mount-backlog"],
    ],
)
def test_benchmark_writes_on_this_filesystem_and_finds_everything_at_the_master(
    workloads: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "results.json"
    options = [option for name in workloads for option in ("--workload", name)]
    process = start_benchmark(tmp_path / "work", "--rounds", "1", "--output", str(output), *options)
    text, errors = process.communicate(timeout=SECONDS_MAX)

    assert process.returncode == 0, text + errors
    measurements = json.loads(output.read_text())["measurements"]
    ours = [each for each in measurements if each["contender"] == "cloudai"]
    assert {each["workload"] for each in ours} == set(workloads)
    assert all(each["error"] is None for each in measurements)
    rated = {each["workload"] for each in ours if each["figures"].get("files-per-second", 0) > 0}
    assert rated == {"writers-4", "commits-4"} & set(workloads)
    assert_nothing_is_left(tmp_path / "work")


@pytest.mark.parametrize(
    ("number", "workload"),
    [(signal.SIGINT, "first-byte"), (signal.SIGTERM, "first-byte"), (signal.SIGINT, "cp-1g")],
)
def test_interrupted_twice_it_still_cleans_up_and_reports_what_there_is(
    number: signal.Signals, workload: str, tmp_path: Path
) -> None:
    output = tmp_path / "results.json"
    process = start_benchmark(
        tmp_path / "work", "--rounds", "1000", "--workload", workload, "--output", str(output)
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "cloudai: " in line and line.startswith("round 2"):
            break
    process.send_signal(number)
    process.send_signal(number)
    text, errors = process.communicate(timeout=SECONDS_MAX)

    assert process.returncode == 130, text + errors
    assert "interrupted" in errors
    assert json.loads(output.read_text())["measurements"]
    assert_nothing_is_left(tmp_path / "work")
