"""The daemon's memory stays below its `memory=` and 150 MiB, whatever is read, however many files are open and
however sparse they are.
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, FILE_BYTES_MAX, KIB, MIB
from support.mount_process import RUN, MakeMount, run_in, wait_until

FILE_COUNT = 8
FILE_BYTES = 40 * MIB
SMALL_COUNT = 500
OPEN_COUNT = 800
PEAK_BYTES_MAX = (64 + 150) * MIB
SPARSE_COUNT = 20
SPARSE_BYTES = 64 * 1024 * MIB
SPARSE_PEAK_BYTES_MAX = (32 + 150) * MIB


def peak_bytes(pid: int) -> int:
    """The most that was resident of a process since it began."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * KIB for line in lines if line.startswith("VmHWM:"))


def read_here_and_there(paths: list[Path]) -> None:
    """Every block of the files, in no order, through more handles than anything is kept for."""
    places = [(path, offset) for path in paths for offset in range(0, FILE_BYTES, BLOCK_BYTES)]
    random.Random(20).shuffle(places)
    with ExitStack() as open_files:
        files: dict[Path, list[int]] = {path: [] for path in paths}
        for number in range(OPEN_COUNT):
            path = paths[number % len(paths)]
            descriptor = os.open(path, os.O_RDONLY)
            open_files.callback(os.close, descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            files[path].append(descriptor)
        for number, (path, offset_bytes) in enumerate(places):
            descriptor = files[path][number % len(files[path])]
            assert len(os.pread(descriptor, 4 * KIB, offset_bytes)) == 4 * KIB


def read_through(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # so that the daemon is asked
        return sum(iter(lambda: len(os.read(descriptor, MIB)), 0))
    finally:
        os.close(descriptor)


def test_memory_is_bounded_whatever_is_read_and_however_many_files_are_open(make_mount: MakeMount) -> None:
    writer = make_mount("writer")
    run = writer.make_run(RUN)
    for number in range(FILE_COUNT):
        with (run / f"large-{number}").open("wb") as file:
            for _ in range(FILE_BYTES // CHUNK_BYTES_MAX):
                file.write(os.urandom(CHUNK_BYTES_MAX))
    for number in range(SMALL_COUNT):
        (run / f"small-{number}").write_bytes(os.urandom(16 * KIB))
    writer.wait_durable()
    writer.umount()

    reader = make_mount("reader", options="insecure,timeo=20,memory=64M")
    paths = [run_in(reader) / f"large-{number}" for number in range(FILE_COUNT)]
    read_here_and_there(paths)
    with ThreadPoolExecutor(FILE_COUNT) as threads:
        assert sum(threads.map(read_through, paths)) == FILE_COUNT * FILE_BYTES
    for number in range(SMALL_COUNT):
        assert len((run_in(reader) / f"small-{number}").read_bytes()) == 16 * KIB
    assert peak_bytes(reader.pid) < PEAK_BYTES_MAX


def test_memory_is_bounded_however_sparse_the_files_are_that_are_written(make_mount: MakeMount) -> None:
    """A byte at the end of 1 TiB stands for a quarter of a million chunks, which are yet to be made."""
    mount = make_mount("sparse", options="insecure,timeo=20,memory=32M")
    run = mount.make_run(RUN)
    short = run / "short"
    sizes_bytes = {short: SPARSE_BYTES} | {run / f"{n}": FILE_BYTES_MAX for n in range(SPARSE_COUNT)}
    for path, size_bytes in sizes_bytes.items():
        with path.open("wb") as file:
            os.pwrite(file.fileno(), b"z", size_bytes - 1)
    assert peak_bytes(mount.pid) < SPARSE_PEAK_BYTES_MAX

    mount.wait_durable(short)
    wait_until(
        lambda: all(file["uploaded_bytes"] > 0 for file in mount.status()["pending"]),
        "something of each of them at the master",
    )

    assert peak_bytes(mount.pid) < SPARSE_PEAK_BYTES_MAX
    mount.kill()
