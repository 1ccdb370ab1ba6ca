"""Each workload accepts an equal copy of its dataset and refuses one that is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudai_benchmarks.errors import WrongAnswer
from cloudai_benchmarks.registry import make_workloads
from cloudai_benchmarks.workloads import ReadWorkload

WORKLOADS = {
    name: workload for name, workload in make_workloads(0.001).items() if isinstance(workload, ReadWorkload)
}


def make_copy(directory: Path, name: str) -> tuple[Path, Path]:
    """The workload's dataset, and a copy of it."""
    source, copy = directory / "source", directory / "copy"
    source.mkdir()
    WORKLOADS[name].dataset.write(source, "seed")
    shutil.copytree(source, copy)
    return source, copy


def do_work(name: str, source: Path, copy: Path) -> None:
    job = WORKLOADS[name].make_job(copy, "seed")
    job.work()
    job.check(source)


@pytest.mark.parametrize("name", WORKLOADS)
def test_equal_copy_is_accepted(name: str, tmp_path: Path) -> None:
    do_work(name, *make_copy(tmp_path, name))


@pytest.mark.parametrize("name", WORKLOADS)
def test_dataset_says_how_much_it_is(name: str, tmp_path: Path) -> None:
    source, _ = make_copy(tmp_path, name)
    dataset = WORKLOADS[name].dataset
    files = [path for path in source.rglob("*") if path.is_file()]

    assert len(files) == dataset.file_count
    # A tensor file has a header.
    assert 0 <= sum(path.stat().st_size for path in files) - dataset.size_bytes < 4096


def flip_first_byte(directory: Path) -> None:
    path = directory / "file-0"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def flip_all(directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            path.write_bytes(bytes(each ^ 1 for each in path.read_bytes()))


def flip_contents_of_tensors(directory: Path) -> None:
    path = directory / "model.safetensors"
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(data[:begin] + bytes(each ^ 1 for each in data[begin:]))


def make_first_file_longer(directory: Path) -> None:
    with min(path for path in directory.rglob("*") if path.is_file()).open("ab") as file:
        file.write(b"x")


def add_name(directory: Path) -> None:
    (directory / "directory-000" / "unasked").touch()


def make_a_missing_name(directory: Path) -> None:
    (directory / "directory-000" / "missing-00003").touch()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("first-byte", flip_first_byte),
        ("random-1k", flip_all),
        ("sequential", flip_all),
        ("sequential", make_first_file_longer),
        ("streams", make_first_file_longer),
        ("list-10k", make_first_file_longer),
        ("list-10k", add_name),
        ("small-files", make_first_file_longer),
        ("small-files", add_name),
        ("small-files", flip_all),
        ("safetensors", flip_contents_of_tensors),
        ("missing-names", make_a_missing_name),
    ],
)
def test_spoilt_copy_is_refused(name: str, spoil: Callable[[Path], None], tmp_path: Path) -> None:
    source, copy = make_copy(tmp_path, name)
    spoil(copy)

    with pytest.raises(WrongAnswer):
        do_work(name, source, copy)


def test_same_seed_makes_the_same_data(tmp_path: Path) -> None:
    source, _ = make_copy(tmp_path, "small-files")
    again = tmp_path / "again"
    again.mkdir()
    WORKLOADS["small-files"].dataset.write(again, "seed")

    do_work("small-files", source, again)
