"""The data that is read: random bytes, so that nothing compresses and every chunk is another.

The same seed makes the same bytes. What is written here is what local disk, sshd and `rclone serve` give;
a master gets a copy of it through a mount.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy
from safetensors.numpy import save_file

MIB: Final = 1024**2


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """One directory with something to read."""

    name: str

    @property
    @abstractmethod
    def size_bytes(self) -> int: ...

    @property
    @abstractmethod
    def file_count(self) -> int: ...

    @abstractmethod
    def write(self, directory: Path, seed: str) -> None:
        """Makes the files in a directory that is there and empty."""


@dataclass(frozen=True, kw_only=True)
class LargeFiles(Dataset):
    """`file-0`, `file-1`, ... directly in the directory."""

    count: int
    file_bytes: int

    @property
    def size_bytes(self) -> int:
        return self.count * self.file_bytes

    @property
    def file_count(self) -> int:
        return self.count

    def names(self) -> list[str]:
        return [f"file-{number}" for number in range(self.count)]

    def write(self, directory: Path, seed: str) -> None:
        for name in self.names():
            source = random.Random(f"{seed} {self.name} {name}")
            with (directory / name).open("wb") as file:
                left_bytes = self.file_bytes
                while left_bytes:
                    left_bytes -= file.write(source.randbytes(min(MIB, left_bytes)))


@dataclass(frozen=True, kw_only=True)
class SmallFiles(Dataset):
    """`directory-000/file-0000`, ...: directories of equally many files of one size."""

    directory_count: int
    files_per_directory: int
    file_bytes: int

    @property
    def size_bytes(self) -> int:
        return self.file_count * self.file_bytes

    @property
    def file_count(self) -> int:
        return self.directory_count * self.files_per_directory

    def write(self, directory: Path, seed: str) -> None:
        source = random.Random(f"{seed} {self.name}")
        for directory_number in range(self.directory_count):
            below = directory / f"directory-{directory_number:03}"
            below.mkdir()
            for file_number in range(self.files_per_directory):
                (below / f"file-{file_number:04}").write_bytes(source.randbytes(self.file_bytes))


@dataclass(frozen=True, kw_only=True)
class TensorFile(Dataset):
    """`model.safetensors` with `tensor-00`, ..., all of one size, float32."""

    FILE_NAME = "model.safetensors"
    _ROW_BYTES = 4096

    tensor_count: int
    tensor_bytes: int

    @property
    def size_bytes(self) -> int:
        return self.tensor_count * self.tensor_bytes

    @property
    def file_count(self) -> int:
        return 1

    def names(self) -> list[str]:
        return [f"tensor-{number:02}" for number in range(self.tensor_count)]

    def write(self, directory: Path, seed: str) -> None:
        source = random.Random(f"{seed} {self.name}")
        row_count = self.tensor_bytes // self._ROW_BYTES
        tensors = {
            name: numpy.frombuffer(source.randbytes(row_count * self._ROW_BYTES), numpy.float32).reshape(
                row_count, -1
            )
            for name in self.names()
        }
        save_file(tensors, directory / self.FILE_NAME)
