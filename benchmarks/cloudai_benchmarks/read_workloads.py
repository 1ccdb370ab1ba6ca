"""The workloads that read: large files, many small files, listings, a mapped file, names that are not there."""

from __future__ import annotations

import os
import random
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy
from safetensors import safe_open

from cloudai_benchmarks.comparison import compare, raise_error
from cloudai_benchmarks.datasets import MIB, LargeFiles, TensorFile
from cloudai_benchmarks.errors import CommandFailed, WrongAnswer
from cloudai_benchmarks.shapes import Shapes
from cloudai_benchmarks.workloads import Phase, ReadWorkload, Workload, scale_count

READ_BYTES: Final = MIB
RANDOM_READ_BYTES: Final = 4096
SAMPLE_BYTES: Final = 64
"""Kept of each read of a large file, from a place drawn by lot: enough to tell every chunk from another, and
cheap enough to be taken while the clock runs."""

TENSORS_READ: Final = 3
_COLD: Final = (Phase.COLD,)
_COLD_AND_AGAIN: Final = (Phase.COLD, Phase.AGAIN)


def make_read_workloads(shapes: Shapes) -> list[Workload]:
    """All of them, in the order of the report."""
    large, streams, tensors = shapes.large, shapes.streams, shapes.tensors
    tree, big_tree, small = shapes.tree, shapes.big_tree, shapes.small
    scale = shapes.scale
    random_counts = {"random-1k": scale_count(1000, scale), "random-10k": scale_count(10_000, scale)}
    missing_count = scale_count(10_000, scale)
    size = f"{large.file_bytes // MIB:,} MiB"
    return [
        ReadWorkload(
            name="first-byte",
            title=f"first byte of {size}",
            dataset=large,
            phases=_COLD,
            make_job=lambda directory, _: ReadFirstByte(directory / "file-0"),
        ),
        *(
            ReadWorkload(
                name=name,
                title=f"{count:,} random 4 KiB of {size}",
                dataset=large,
                phases=_COLD,
                make_job=_random_job_maker(large, count),
            )
            for name, count in random_counts.items()
        ),
        ReadWorkload(
            name="sequential",
            title=f"sequential {size}",
            dataset=large,
            phases=_COLD_AND_AGAIN,
            make_job=lambda directory, seed: ReadWholeFiles(directory, large, seed),
        ),
        ReadWorkload(
            name="streams",
            title=f"{streams.count} files of {streams.file_bytes // MIB:,} MiB at once",
            dataset=streams,
            phases=_COLD,
            make_job=lambda directory, seed: ReadWholeFiles(directory, streams, seed),
        ),
        ReadWorkload(
            name="list-10k",
            title=f"ls -lR of {tree.file_count:,} files",
            dataset=tree,
            phases=_COLD_AND_AGAIN,
            make_job=lambda directory, _: ListTree(directory),
        ),
        ReadWorkload(
            name="list-100k",
            title=f"ls -lR of {big_tree.file_count:,} files",
            dataset=big_tree,
            phases=_COLD_AND_AGAIN,
            make_job=lambda directory, _: ListTree(directory),
        ),
        ReadWorkload(
            name="small-files",
            title=f"read {small.file_count:,} files of 16 KiB",
            dataset=small,
            phases=_COLD,
            make_job=lambda directory, _: ReadSmallFiles(directory),
        ),
        ReadWorkload(
            name="safetensors",
            title=f"{TENSORS_READ} of {tensors.tensor_count} tensors, mapped, of {tensors.size_bytes // MIB:,} MiB",
            dataset=tensors,
            phases=_COLD,
            make_job=lambda directory, seed: ReadTensors(directory, tensors, seed),
        ),
        ReadWorkload(
            name="missing-names",
            title=f"stat of {missing_count:,} names that do not exist",
            dataset=tree,
            phases=_COLD_AND_AGAIN,
            make_job=lambda directory, _: StatMissingNames(directory / "directory-000", missing_count),
        ),
    ]


class ReadFirstByte:
    """open, read of one byte, close."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._answer = b""

    def work(self) -> None:
        with self._path.open("rb", buffering=0) as file:
            self._answer = file.read(1)

    def check(self, source: Path) -> None:
        with (source / self._path.name).open("rb") as file:
            compare("the first byte", self._answer, file.read(1))


def _random_job_maker(dataset: LargeFiles, count: int) -> Any:
    return lambda directory, seed: ReadAtRandom(directory / "file-0", dataset.file_bytes, count, seed)


class ReadAtRandom:
    """One thread, pread of 4 KiB at aligned places drawn by lot; opening the file is part of it."""

    def __init__(self, path: Path, file_bytes: int, count: int, seed: str) -> None:
        lot = random.Random(f"{seed} random reads")
        self._path = path
        self._offsets = [
            RANDOM_READ_BYTES * lot.randrange(file_bytes // RANDOM_READ_BYTES) for _ in range(count)
        ]
        self._answers: list[bytes] = []

    def work(self) -> None:
        self._answers = self._read_all(self._path)

    def check(self, source: Path) -> None:
        expected = self._read_all(source / self._path.name)
        for offset, answer, right in zip(self._offsets, self._answers, expected, strict=True):
            compare(f"4 KiB at {offset}", answer, right)

    def _read_all(self, path: Path) -> list[bytes]:
        with path.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            return [os.pread(descriptor, RANDOM_READ_BYTES, offset) for offset in self._offsets]


@dataclass
class _Transcript:
    """Of one large file: how long it was, and a sample of each read with its place."""

    size_bytes: int = 0
    samples: list[tuple[int, bytes]] = field(default_factory=list)


class ReadWholeFiles:
    """Each file from begin to end in reads of 1 MiB, one thread each, all at once."""

    def __init__(self, directory: Path, dataset: LargeFiles, seed: str) -> None:
        self._paths = [directory / name for name in dataset.names()]
        lot = random.Random(f"{seed} samples")
        # One more than is needed, in case that the file is longer than it should be.
        self._places = [
            lot.randrange(READ_BYTES - SAMPLE_BYTES) for _ in range(dataset.file_bytes // READ_BYTES + 1)
        ]
        self._transcripts: list[_Transcript] = []

    def work(self) -> None:
        if len(self._paths) == 1:
            self._transcripts = [self._read(self._paths[0])]
            return
        with ThreadPoolExecutor(len(self._paths)) as threads:
            self._transcripts = list(threads.map(self._read, self._paths))

    def check(self, source: Path) -> None:
        for path, transcript in zip(self._paths, self._transcripts, strict=True):
            original = source / path.name
            compare(f"the size of {path.name}", transcript.size_bytes, original.stat().st_size)
            with original.open("rb", buffering=0) as file:
                for offset, sample in transcript.samples:
                    right = os.pread(file.fileno(), len(sample), offset)
                    compare(f"{path.name} at {offset}", sample, right)

    def _read(self, path: Path) -> _Transcript:
        transcript = _Transcript()
        buffer = memoryview(bytearray(READ_BYTES))
        places = iter(self._places)
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                # A short read has its sample where it begins: more would be needed to draw another place.
                place = next(places, 0) if count == READ_BYTES else 0
                sample = bytes(buffer[place : min(place + SAMPLE_BYTES, count)])
                transcript.samples.append((transcript.size_bytes + place, sample))
                transcript.size_bytes += count
        return transcript


class ListTree:
    """`ls -lR`, its output to a file."""

    _ENTRY = re.compile(r"([-d])\S+ +\d+ +\S+ +\S+ +(\d+) +\S+ +\S+ +\S+ (.*)")

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._answer = ""

    def work(self) -> None:
        self._answer = self._list(self._directory)

    def check(self, source: Path) -> None:
        answer, right = list(self._entries(self._answer)), list(self._entries(self._list(source)))
        compare("the number of names", len(answer), len(right))
        for ours, theirs in zip(sorted(answer), sorted(right), strict=True):
            compare("a name and its size", ours, theirs)

    def _list(self, directory: Path) -> str:
        command = ["ls", "-lR", "."]
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            status = subprocess.run(
                command,
                cwd=directory,
                env=os.environ | {"LC_ALL": "C"},
                stdout=output,
                stderr=errors,
                check=False,
            ).returncode
            errors.seek(0)
            if status != 0:
                raise CommandFailed(command=command, status=status, said=errors.read(1000))
            output.seek(0)
            return output.read()

    def _entries(self, text: str) -> Iterator[tuple[str, str, str, int]]:
        """Directory, kind, name and, of a file, size."""
        heading = ""
        for line in text.splitlines():
            if line.endswith(":"):
                heading = line
            elif match := self._ENTRY.fullmatch(line):
                kind, size_bytes, name = match.groups()
                yield heading, kind, name, int(size_bytes) if kind == "-" else 0


class ReadSmallFiles:
    """Every file of a tree, one after another, directories and names in order."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._answers: list[tuple[str, bytes]] = []

    def work(self) -> None:
        self._answers = self._read_all(self._directory)

    def check(self, source: Path) -> None:
        right = self._read_all(source)
        compare("the number of files", len(self._answers), len(right))
        for (name, data), (right_name, right_data) in zip(self._answers, right, strict=True):
            compare(
                "a file's name", Path(name).relative_to(self._directory), Path(right_name).relative_to(source)
            )
            compare(name, data, right_data)

    def _read_all(self, top: Path) -> list[tuple[str, bytes]]:
        answers = []
        for directory, directories, names in os.walk(top, onerror=raise_error):
            directories.sort()
            for name in sorted(names):
                path = f"{directory}/{name}"
                with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # a Path each would be timed
                    answers.append((path, file.readall()))
        return answers


class ReadTensors:
    """safetensors' own reader, which maps the file; each tensor is copied to memory as whole."""

    def __init__(self, directory: Path, dataset: TensorFile, seed: str) -> None:
        self._path = directory / dataset.FILE_NAME
        self._all_names = dataset.names()
        self._names = sorted(random.Random(f"{seed} tensors").sample(self._all_names, TENSORS_READ))
        self._answers: list[Any] = []

    def work(self) -> None:
        self._answers = self._read(self._path)

    def check(self, source: Path) -> None:
        for name, answer, right in zip(
            self._names, self._answers, self._read(source / self._path.name), strict=True
        ):
            # As integers: among random floats are some that are not equal to themselves.
            if not numpy.array_equal(answer.view(numpy.uint32), right.view(numpy.uint32)):
                raise WrongAnswer(what=name)

    def _read(self, path: Path) -> list[Any]:
        with safe_open(path, framework="numpy") as file:
            compare("the names of the tensors", sorted(file.keys()), self._all_names)
            return [file.get_tensor(name) for name in self._names]


class StatMissingNames:
    """stat of names that differ from each other, in one directory that has others."""

    def __init__(self, directory: Path, count: int) -> None:
        self._paths = [f"{directory}/missing-{number:05}" for number in range(count)]
        self._missing_count = 0

    def work(self) -> None:
        for path in self._paths:
            try:
                os.stat(path)  # noqa: PTH116  # a Path each would be timed
            except FileNotFoundError:
                self._missing_count += 1

    def check(self, source: Path) -> None:
        compare("the names that are not there", self._missing_count, len(self._paths))
