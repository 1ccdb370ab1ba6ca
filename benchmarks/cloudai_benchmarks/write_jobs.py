"""What is done to files: written, copied, cloned, removed; and a checkpoint after another."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy
from safetensors.numpy import load_file, save_file

from cloudai_benchmarks.arrival import Outcome
from cloudai_benchmarks.comparison import compare, compare_files, compare_trees, list_files
from cloudai_benchmarks.datasets import MIB, TensorFile
from cloudai_benchmarks.errors import CommandFailed, WrongAnswer
from cloudai_benchmarks.repository import GIT_ENVIRONMENT, run_git
from cloudai_benchmarks.workloads import Figures
from cloudai_benchmarks.write_place import WritePlace

WRITE_BYTES: Final = MIB
TENSORS_CHANGED: Final = 2
"""Of twenty."""

_SAID_BYTES_MAX: Final = 1000


class PlacedJob:
    """The parts of a WriteJob that most have nothing to do in."""

    def __init__(self, place: WritePlace, source: Path) -> None:
        self.place = place
        self.source = source

    def prepare(self) -> list[Outcome]:
        """Nothing has to be there before."""
        return []

    def finish(self) -> Figures:
        """Nothing to tell."""
        return {}


class WriteAndSync(PlacedJob):
    """A file in writes of 1 MiB from memory, fsync, close."""

    def __init__(self, place: WritePlace, source: Path, name: str) -> None:
        super().__init__(place, source)
        self._original = source / name
        self._name = name
        self._data = memoryview(b"")

    def load(self) -> list[Outcome]:
        self._data = memoryview(self._original.read_bytes())
        return [{self._name: len(self._data)}]

    def work(self) -> None:
        with (self.place.directory / self._name).open("wb", buffering=0) as file:
            for begin in range(0, len(self._data), WRITE_BYTES):
                write_whole(file.fileno(), self._data[begin : begin + WRITE_BYTES])
            os.fsync(file.fileno())

    def check(self, stored: list[Path]) -> None:
        compare_files(stored[0] / self._name, self._original)


class CopyFile(PlacedJob):
    """`cp` of one file."""

    def __init__(self, place: WritePlace, source: Path, name: str) -> None:
        super().__init__(place, source)
        self._original = source / name
        self._name = name

    def load(self) -> list[Outcome]:
        return [{self._name: self._original.stat().st_size}]

    def work(self) -> None:
        run_at_once(["cp", self._original, self.place.directory / self._name])

    def check(self, stored: list[Path]) -> None:
        compare_files(stored[0] / self._name, self._original)


class CopyTrees(PlacedJob):
    """`cp -r` of a tree by every writer to its own mount, all at once; each has its share of the directories."""

    def load(self) -> list[Outcome]:
        files = list_files(self.source)
        shares = [set(names) for names in self._shares()]
        return [
            {path: size for path, size in files.items() if path.partition("/")[0] in share}
            for share in shares
        ]

    def work(self) -> None:
        commands: list[list[str | Path]] = [
            ["cp", "-r", *(self.source / name for name in names), directory]
            for names, directory in zip(self._shares(), self.place.directories, strict=True)
        ]
        run_at_once(*commands)

    def check(self, stored: list[Path]) -> None:
        for names, directory in zip(self._shares(), stored, strict=True):
            compare("the names at the server", sorted(path.name for path in directory.iterdir()), names)
            for name in names:
                compare_trees(directory / name, self.source / name)

    def _shares(self) -> list[list[str]]:
        names = sorted(path.name for path in self.source.iterdir())
        writer_count = len(self.place.directories)
        return [names[index::writer_count] for index in range(writer_count)]


class RemoveTree(CopyTrees):
    """`rm -r` of a tree that was copied on the same mount and had arrived."""

    def prepare(self) -> list[Outcome]:
        outcomes = super().load()
        super().work()
        return outcomes

    def load(self) -> list[Outcome]:
        # And the directories: that they go last is nothing that anybody promises.
        return [dict.fromkeys([*files, *self._names()]) for files in super().load()]

    def work(self) -> None:
        run_at_once(["rm", "-r", *(self.place.directory / name for name in self._names())])

    def check(self, stored: list[Path]) -> None:
        compare("what is left at the server", [path.name for path in stored[0].iterdir()], [])

    def _names(self) -> list[str]:
        return self._shares()[0]


class WriteNextCheckpoint(PlacedJob):
    """safetensors' own writer, of a model of which some tensors have not changed since the last checkpoint.

    The file is a new one, as training programs make it; the one before is there and has arrived.
    """

    _BEFORE: Final = "step-1000.safetensors"
    _NEXT: Final = "step-2000.safetensors"

    def __init__(self, place: WritePlace, source: Path, dataset: TensorFile, seed: str) -> None:
        super().__init__(place, source)
        self._original = source / dataset.FILE_NAME
        self._names = dataset.names()
        self._seed = seed
        self._tensors: dict[str, Any] = {}

    def prepare(self) -> list[Outcome]:
        save_file(load_file(self._original), self.place.directory / self._BEFORE)
        return [{self._BEFORE: self._original.stat().st_size}]

    def load(self) -> list[Outcome]:
        self._tensors = self._next_tensors()
        # Names, types and shapes are the same, and so is the header.
        return [{self._NEXT: self._original.stat().st_size}]

    def work(self) -> None:
        save_file(self._tensors, self.place.directory / self._NEXT)

    def check(self, stored: list[Path]) -> None:
        compare_files(stored[0] / self._BEFORE, self._original)
        right, answer = self._next_tensors(), load_file(stored[0] / self._NEXT)
        compare("the names of the tensors", sorted(answer), sorted(right))
        for name, tensor in right.items():
            if not numpy.array_equal(answer[name].view(numpy.uint32), tensor.view(numpy.uint32)):
                raise WrongAnswer(what=name)

    def _next_tensors(self) -> dict[str, Any]:
        tensors = load_file(self._original)
        for name in random.Random(f"{self._seed} changed").sample(self._names, TENSORS_CHANGED):
            tensors[name] = (~tensors[name].view(numpy.uint32)).view(numpy.float32)
        return dict(tensors)


class CloneRepository(PlacedJob):
    """`git clone --no-hardlinks` of a local repository."""

    _NAME: Final = "clone"
    _INDEX: Final = ".git/index"
    """The state of its files is in it, with inode numbers and times."""
    _CONFIG: Final = ".git/config"
    """What the filesystem can do is in it: whether there are modes and symbolic links."""
    _LOGS: Final = ".git/logs/"
    """The time of the clone is in them."""

    def load(self) -> list[Outcome]:
        with tempfile.TemporaryDirectory(dir=self.source.parent) as directory:
            run_at_once(self._clone_into(Path(directory, self._NAME)), environment=GIT_ENVIRONMENT)
            files = list_files(Path(directory))
        del files[f"{self._NAME}/{self._CONFIG}"]
        return [files]

    def work(self) -> None:
        run_at_once(self._clone_into(self.place.directory / self._NAME), environment=GIT_ENVIRONMENT)

    def finish(self) -> Figures:
        # How long it would be nobody knew before.
        name = f"{self._NAME}/{self._CONFIG}"
        self.place.arrival.wait({name: (self.place.directory / name).stat().st_size})
        return {}

    def check(self, stored: list[Path]) -> None:
        clone = stored[0] / self._NAME
        with tempfile.TemporaryDirectory(dir=self.source.parent) as directory:
            right = Path(directory, self._NAME)
            run_at_once(self._clone_into(right), environment=GIT_ENVIRONMENT)
            own = {path for path in list_files(right) if path.startswith(self._LOGS)}
            compare_trees(clone, right, leave_out=frozenset({self._INDEX, self._CONFIG, *own}))
        # git itself reads what was left out.
        git = ("-c", "safe.directory=*", "-C", clone)
        run_git(*git, "fsck", "--full", "--strict")
        compare("the files in the index", run_git(*git, "ls-files", "-s"), self._files_of_source())

    def _clone_into(self, directory: Path) -> list[str | Path]:
        return ["git", "clone", "--quiet", "--no-hardlinks", self.source, directory]

    def _files_of_source(self) -> str:
        return run_git("-C", self.source, "ls-files", "-s")


def write_whole(descriptor: int, data: memoryview) -> None:
    """All of it, also where the filesystem takes less at once. Raises OSError."""
    while data:
        data = data[os.write(descriptor, data) :]


def run_at_once(*commands: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
    """Starts all of them, and returns when the last has ended. Raises CommandFailed for the first that failed.

    Nothing but the processes themselves: this is timed. Whoever waits too long is killed with what it started.
    """
    with ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in commands]
        processes = [
            subprocess.Popen(
                [*command], stdin=subprocess.DEVNULL, stderr=said, env=os.environ | (environment or {})
            )
            for command, said in zip(commands, errors, strict=True)
        ]
        statuses = [process.wait() for process in processes]
        for command, said, status in zip(commands, errors, statuses, strict=True):
            if status != 0:
                said.seek(0)
                raise CommandFailed(
                    command=[str(word) for word in command][:5],
                    status=status,
                    said=said.read(_SAID_BYTES_MAX),
                )
