"""The order of the work, and what becomes of a contender that fails. The jobs run in real processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudai_benchmarks.contenders.contender import Source
from cloudai_benchmarks.contenders.local import Local
from cloudai_benchmarks.datasets import Dataset
from cloudai_benchmarks.errors import BenchmarkError, CommandFailed, TookTooLong
from cloudai_benchmarks.plan import Plan
from cloudai_benchmarks.processes import run_command
from cloudai_benchmarks.registry import make_workloads
from cloudai_benchmarks.results import Measurement
from cloudai_benchmarks.runner import Runner
from cloudai_benchmarks.shapes import UPLOAD_BYTES_DEFAULT
from cloudai_benchmarks.write_place import WritePlace

SCALE = 0.001


class RecordedContender(Local):
    """Local disk that remembers what was asked of it."""

    def __init__(self, name: str, source: Source) -> None:
        super().__init__(name, source)
        self.calls: list[str] = []

    def start(self, datasets: Sequence[Dataset]) -> None:
        self.calls.append("start")

    def drop_client_caches(self) -> None:
        self.calls.append("drop")

    def unmount(self) -> None:
        self.calls.append("unmount")

    def served_files(self, dataset: Dataset) -> Iterable[Path]:
        self.calls.append("warm")
        return super().served_files(dataset)

    def begin_writing(self, *, writer_count: int, with_follower: bool) -> WritePlace:
        self.calls.append("begin")
        return super().begin_writing(writer_count=writer_count, with_follower=with_follower)

    def end_writing(self) -> list[str]:
        self.calls.append("end")
        return super().end_writing()

    def stop(self) -> list[str]:
        self.calls.append("stop")
        return []


class ContenderThatDoesNotStart(RecordedContender):
    def start(self, datasets: Sequence[Dataset]) -> None:
        raise CommandFailed(command=["sshd", "-D"], status=255, said="no such key")


class ContenderWithoutData(RecordedContender):
    def path_of(self, dataset: Dataset) -> Path:
        return Path("/nonexistent")


class ContenderThatSpoils(RecordedContender):
    """What its server has is not what was written."""

    @contextmanager
    def stored(self) -> Iterator[Sequence[Path]]:
        with super().stored() as directories:
            (directories[0] / "file-0").write_bytes(b"something else")
            yield directories


class SilentProgress:
    def begin(self, what: str) -> None:
        pass

    def measured(self, measurement: Measurement) -> None:
        pass


def run(*contenders: RecordedContender, source: Source, workload: str, round_count: int = 1) -> Runner:
    plan = Plan(
        workloads=[make_workloads(SCALE)[workload]],
        round_count=round_count,
        scale=SCALE,
        upload_bytes=UPLOAD_BYTES_DEFAULT,
        seed="1",
        job_seconds_max=60.0,
        idle_seconds=0.1,
    )
    runner = Runner(plan, contenders, source, SilentProgress())
    runner.make_source()
    runner.start_contenders()
    runner.measure_rounds()
    runner.stop_contenders()
    return runner


def test_caches_are_dropped_before_cold_and_stay_for_again(tmp_path: Path) -> None:
    """And the server's page cache is warm for all."""
    source = Source(tmp_path)
    contender = RecordedContender("local", source)

    runner = run(contender, source=source, workload="sequential", round_count=2)

    assert contender.calls == ["start", "drop", "warm", "unmount", "drop", "warm", "unmount", "stop"]
    assert [(each.phase, each.round, each.error) for each in runner.measurements] == [
        ("cold", 0, None),
        ("again", 0, None),
        ("cold", 1, None),
        ("again", 1, None),
    ]


def test_contenders_take_turns_in_each_round_in_an_order_drawn_by_lot(tmp_path: Path) -> None:
    """A slow minute of the machine falls on all, and nobody is always the first."""
    source = Source(tmp_path)
    contenders = [RecordedContender(name, source) for name in ("local", "sshfs", "rclone")]

    runner = run(*contenders, source=source, workload="first-byte", round_count=4)

    turns = [each.contender for each in runner.measurements]
    rounds = [turns[first : first + 3] for first in range(0, 12, 3)]
    assert [each.round for each in runner.measurements] == [number for number in range(4) for _ in rounds[0]]
    assert [sorted(names) for names in rounds] == [["local", "rclone", "sshfs"]] * 4
    assert len({names[0] for names in rounds}) > 1


def test_contender_that_does_not_start_fails_in_every_row_and_the_others_go_on(tmp_path: Path) -> None:
    source = Source(tmp_path)
    broken = ContenderThatDoesNotStart("sshfs", source)
    working = RecordedContender("local", source)

    runner = run(broken, working, source=source, workload="sequential")

    errors = {(each.contender, each.phase): each.error for each in runner.measurements}
    assert errors["local", "cold"] is None
    assert errors["local", "again"] is None
    assert errors["sshfs", "cold"] == errors["sshfs", "again"]
    assert "did not start: sshd -D: exit status 255: no such key" in str(errors["sshfs", "again"])
    assert "stop" in broken.calls


def test_job_that_fails_is_recorded_in_the_words_of_its_process(tmp_path: Path) -> None:
    source = Source(tmp_path)
    contender = ContenderWithoutData("rclone", source)

    runner = run(contender, source=source, workload="first-byte")

    (measurement,) = runner.measurements
    assert measurement.seconds is None
    assert "No such file or directory: '/nonexistent/file-0'" in str(measurement.error)
    assert contender.calls[-2:] == ["unmount", "stop"]


def test_work_that_writes_is_measured_until_it_returns_and_until_the_server_has_it(tmp_path: Path) -> None:
    source = Source(tmp_path)
    contender = RecordedContender("local", source)

    runner = run(contender, source=source, workload="cp-1g", round_count=2)

    assert contender.calls == ["start", "begin", "end", "begin", "end", "stop"]
    assert [(each.phase, each.round, each.error) for each in runner.measurements] == [
        ("returns", 0, None),
        ("stored", 0, None),
        ("returns", 1, None),
        ("stored", 1, None),
    ]
    for returned, stored in zip(runner.measurements[::2], runner.measurements[1::2], strict=True):
        assert returned.seconds is not None
        assert stored.seconds is not None
        assert 0 < returned.seconds <= stored.seconds
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_server_that_has_something_else_fails_in_all_phases_and_is_cleaned_up(tmp_path: Path) -> None:
    source = Source(tmp_path)
    spoiling, working = ContenderThatSpoils("sshfs", source), RecordedContender("local", source)

    runner = run(spoiling, working, source=source, workload="cp-1g")

    errors = {(each.contender, each.phase): each.error for each in runner.measurements}
    assert errors["local", "returns"] is None
    assert errors["local", "stored"] is None
    assert "wrong answer: the size of file-0" in str(errors["sshfs", "returns"])
    assert errors["sshfs", "stored"] == errors["sshfs", "returns"]
    assert spoiling.calls == ["start", "begin", "end", "stop"]
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_work_that_needs_a_master_is_not_asked_of_others(tmp_path: Path) -> None:
    source = Source(tmp_path)
    contender = RecordedContender("local", source)

    runner = run(contender, source=source, workload="commits-4")

    assert runner.measurements == []
    assert "begin" not in contender.calls


def test_command_that_does_not_end_is_freed_and_killed() -> None:
    freed: list[bool] = []

    with pytest.raises(TookTooLong):
        run_command("sleep", "1000", seconds_max=0.1, on_timeout=lambda: freed.append(True))

    assert freed == [True]


def test_command_that_does_not_exist_is_an_error_of_the_benchmark() -> None:
    with pytest.raises(BenchmarkError, match="could not be started"):
        run_command("/nonexistent/program")
