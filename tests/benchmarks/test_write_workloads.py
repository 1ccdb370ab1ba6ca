"""Each workload that writes accepts what it wrote and refuses what is not that; on plain directories."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from cloudai_benchmarks.arrival import Arrival
from cloudai_benchmarks.errors import WrongAnswer
from cloudai_benchmarks.figures import (
    BEHIND_MOST_SECONDS,
    LATENCY_MEDIAN_SECONDS,
    LATENCY_MOST_SECONDS,
    LATENCY_P99_SECONDS,
)
from cloudai_benchmarks.latency_job import percentile
from cloudai_benchmarks.log_jobs import behind_seconds
from cloudai_benchmarks.registry import make_workloads
from cloudai_benchmarks.shapes import UPLOAD_BYTES_DEFAULT, make_shapes
from cloudai_benchmarks.workloads import Figures, WriteJob, WriteWorkload
from cloudai_benchmarks.write_place import MasterPlace, WritePlace

SCALE = 0.001
WORKLOADS = {
    name: workload
    for name, workload in make_workloads(SCALE).items()
    if isinstance(workload, WriteWorkload) and not workload.needs_master
}


def make_place(directory: Path, workload: WriteWorkload) -> tuple[Path, WritePlace]:
    """The workload's dataset, and directories that are both where it writes and what the server has."""
    source = directory / "source"
    source.mkdir()
    workload.dataset.write(source, "seed")
    directories = [directory / f"written-{number}" for number in range(workload.writer_count)]
    for each in directories:
        each.mkdir()
    return source, WritePlace(
        directories=directories,
        arrivals=[Arrival.in_directory(each) for each in directories],
        followed=directories[0] if workload.with_follower else None,
    )


def do_work(workload: WriteWorkload, source: Path, place: WritePlace) -> Figures:
    """As the runner does it: each step by a job of its own, waiting for what it promised."""

    def make_job() -> WriteJob:
        return workload.make_job(place, source, "seed")

    for arrival, outcome in zip(place.arrivals, make_job().prepare(), strict=False):
        arrival.wait(outcome)
    job = make_job()
    outcomes = job.load()
    job.work()
    for arrival, outcome in zip(place.arrivals, outcomes, strict=True):
        arrival.wait(outcome)
    return job.finish()


def check(workload: WriteWorkload, source: Path, place: WritePlace) -> None:
    workload.make_job(place, source, "seed").check(place.directories)


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_was_written_is_accepted(name: str, tmp_path: Path) -> None:
    source, place = make_place(tmp_path, WORKLOADS[name])

    do_work(WORKLOADS[name], source, place)

    check(WORKLOADS[name], source, place)


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def flip_largest(directory: Path) -> None:
    flip(max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size))


def make_largest_longer(directory: Path) -> None:
    path = max(
        (path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    path.write_bytes(path.read_bytes() + b"x")


def add_name(directory: Path) -> None:
    (directory / "unasked").touch()


def remove_one(directory: Path) -> None:
    min(path for path in directory.rglob("*") if path.is_file()).unlink()


def flip_next_checkpoint(directory: Path) -> None:
    flip(directory / "step-2000.safetensors")


def flip_last_checkpoint(directory: Path) -> None:
    flip(directory / "step-1000.safetensors")


def flip_checked_out_file(directory: Path) -> None:
    flip(directory / "clone" / "directory-00" / "file-0000.txt")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("write-1g", flip_largest),
        ("write-1g", make_largest_longer),
        ("cp-1g", flip_largest),
        ("cp-2000", flip_largest),
        ("cp-2000", add_name),
        ("cp-2000", remove_one),
        ("checkpoint", flip_next_checkpoint),
        ("checkpoint", flip_last_checkpoint),
        ("log-lines", flip_largest),
        ("log-follow", make_largest_longer),
        ("rm-2000", add_name),
        ("git-clone", flip_largest),
        ("git-clone", flip_checked_out_file),
        ("git-clone", remove_one),
        ("write-latency", flip_largest),
        ("writers-4", flip_largest),
        ("writers-16", remove_one),
    ],
)
def test_something_else_at_the_server_is_refused(
    name: str, spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    source, place = make_place(tmp_path, WORKLOADS[name])
    do_work(WORKLOADS[name], source, place)

    spoil(place.directories[-1])

    with pytest.raises(WrongAnswer):
        check(WORKLOADS[name], source, place)


def test_next_checkpoint_shares_nine_tenths_with_the_last(tmp_path: Path) -> None:
    source, place = make_place(tmp_path, WORKLOADS["checkpoint"])
    do_work(WORKLOADS["checkpoint"], source, place)

    before, after = ((place.directory / f"step-{step}.safetensors").read_bytes() for step in ("1000", "2000"))

    assert len(before) == len(after)
    changed_count = sum(ours != theirs for ours, theirs in zip(before, after, strict=True))
    assert changed_count == 2 * 4096 * 13  # two tensors of the thirteen rows that are left at this scale


def test_writers_share_the_directories_among_them(tmp_path: Path) -> None:
    source, place = make_place(tmp_path, WORKLOADS["writers-4"])
    do_work(WORKLOADS["writers-4"], source, place)

    names = [sorted(path.name for path in directory.iterdir()) for directory in place.directories]

    assert [len(each) for each in names] == [4, 4, 4, 4]
    assert sorted(chain.from_iterable(names)) == sorted(path.name for path in source.iterdir())


def test_follower_of_a_log_says_how_far_behind_it_was(tmp_path: Path) -> None:
    source, place = make_place(tmp_path, WORKLOADS["log-follow"])

    figures = do_work(WORKLOADS["log-follow"], source, place)

    assert figures[BEHIND_MOST_SECONDS] >= 0


def test_writer_beside_an_upload_says_how_long_its_writes_took(tmp_path: Path) -> None:
    source, place = make_place(tmp_path, WORKLOADS["write-latency"])

    figures = do_work(WORKLOADS["write-latency"], source, place)

    assert (
        0 < figures[LATENCY_MEDIAN_SECONDS] <= figures[LATENCY_P99_SECONDS] <= figures[LATENCY_MOST_SECONDS]
    )


def test_reader_is_behind_by_the_age_of_the_oldest_line_it_has_not_seen() -> None:
    written_seconds = [10.0, 11.0, 12.0]

    assert behind_seconds(written_seconds, 11.5, 0) == 1.5
    assert behind_seconds(written_seconds, 11.5, 150) == 0.5  # a half of a line is none
    assert behind_seconds(written_seconds, 11.5, 200) == 0.0  # the third is not written yet
    assert behind_seconds(written_seconds, 99.0, 300) == 0.0


def test_percentile_is_the_value_that_so_many_do_not_exceed() -> None:
    ordered = [float(number) for number in range(1, 201)]

    assert percentile(ordered, 0.99) == 198.0
    assert percentile(ordered, 0.5) == 100.0
    assert percentile([7.0], 0.99) == 7.0


def test_arrival_waits_for_the_last_byte_and_for_what_is_to_go(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    (tmp_path / "new").write_bytes(b"12")
    slow = subprocess.Popen(
        ["sh", "-c", "read line; printf 3 >> new; rm old"], stdin=subprocess.PIPE, cwd=tmp_path
    )
    assert slow.stdin is not None
    slow.stdin.write(b"go\n")
    slow.stdin.close()

    Arrival.in_directory(tmp_path).wait({"new": 3, "old": None})

    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    slow.wait()


def test_place_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    place = WritePlace(
        directories=[tmp_path / "0", tmp_path / "1"],
        arrivals=[Arrival.in_directory(tmp_path / "0"), Arrival.at_master(tmp_path, Path("run"))],
        followed=tmp_path / "elsewhere",
        master=MasterPlace(
            address="127.0.0.1:1", token_file="token", certificate=None, user="user-123", pids=[1, 2]
        ),
        mount_command=["cloudai", "mount"],
    )

    assert WritePlace.from_json(place.to_json()) == place
    without = replace(place, followed=None, master=None)
    assert WritePlace.from_json(without.to_json()) == without


def test_repository_is_committed_and_clean(tmp_path: Path) -> None:
    repository = make_shapes(SCALE, UPLOAD_BYTES_DEFAULT).repository
    repository.write(tmp_path, "seed")

    def git(*arguments: str) -> list[str]:
        command = ["git", "-c", "safe.directory=*", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    assert len(git("ls-files")) == repository.file_count
    assert git("status", "--porcelain") == []
    assert sum((tmp_path / name).stat().st_size for name in git("ls-files")) == repository.size_bytes
