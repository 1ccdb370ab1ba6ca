"""The datasets of all workloads, as large as the scale leaves them; scale 1 is 1 GiB, 10,000 files, ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloudai_benchmarks.datasets import MIB, LargeFiles, SmallFiles, TensorFile
from cloudai_benchmarks.repository import Repository
from cloudai_benchmarks.workloads import scale_count

UPLOAD_BYTES_DEFAULT: Final = 2 * 1024**3
WRITER_COUNT_MAX: Final = 16


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Several workloads may share one."""

    scale: float
    large: LargeFiles
    streams: LargeFiles
    tensors: TensorFile
    tree: SmallFiles
    big_tree: SmallFiles
    small: SmallFiles
    repository: Repository
    upload: LargeFiles
    crowd: SmallFiles
    """A directory for each of as many writers as there are at most."""


def make_shapes(scale: float, upload_bytes: int) -> Shapes:
    """`upload_bytes` at scale 1."""
    return Shapes(
        scale=scale,
        large=LargeFiles(name="large", count=1, file_bytes=MIB * scale_count(1024, scale)),
        streams=LargeFiles(name="streams", count=8, file_bytes=MIB * scale_count(256, scale)),
        tensors=TensorFile(name="tensors", tensor_count=20, tensor_bytes=4096 * scale_count(13107, scale)),
        tree=SmallFiles(
            name="tree",
            directory_count=scale_count(100, scale, at_least=2),
            files_per_directory=100,
            file_bytes=200,
        ),
        big_tree=SmallFiles(
            name="big-tree",
            directory_count=scale_count(100, scale, at_least=2),
            files_per_directory=1000,
            file_bytes=200,
        ),
        small=SmallFiles(
            name="small",
            directory_count=scale_count(20, scale),
            files_per_directory=100,
            file_bytes=16 * 1024,
        ),
        repository=Repository(
            name="repository",
            directory_count=60,
            files_per_directory=scale_count(50, scale),
            file_bytes=4096,
        ),
        upload=LargeFiles(name="upload", count=1, file_bytes=MIB * scale_count(upload_bytes // MIB, scale)),
        crowd=SmallFiles(
            name="crowd",
            directory_count=WRITER_COUNT_MAX,
            files_per_directory=scale_count(200, scale),
            file_bytes=1024,
        ),
    )
