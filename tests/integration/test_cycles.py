"""A mount's daemon hardly ever searches for cycles (cloudai_model.memory): what it does must not leave any."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX
from support.master_process import MasterProcess
from support.mount_process import MountProcess
from support.storage_requests import USER

COUNTED_CYCLES = Path(__file__).parents[1] / "support" / "counted_cycles"

FILES = 200
CHUNKS = 3


def count_of(address: Path) -> int:
    """The objects in cycles that were found since the last time."""
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.connect(str(address))
        return int(daemon.makefile().read())


def write_and_remove(directory: Path) -> None:
    directory.mkdir()
    for number in range(FILES):
        (directory / f"{number}").write_bytes(b"content")
    for number in range(0, FILES, 20):
        with (directory / f"{number}").open("ab") as file:
            os.fsync(file.fileno())
    for number in range(FILES):
        (directory / f"{number}").unlink()
    directory.rmdir()


def look_at(directory: Path) -> None:
    for number in range(FILES):
        assert not (directory / f"missing-{number}").exists()
    for path in directory.iterdir():
        path.stat()


def read_here_and_there(path: Path, content: bytes) -> None:
    with path.open("rb", buffering=0) as file:
        for offset_bytes in range(len(content) - BLOCK_BYTES, 0, -BLOCK_BYTES):
            assert os.pread(file.fileno(), 100, offset_bytes) == content[offset_bytes : offset_bytes + 100]


def test_requests_leave_no_cycles(
    run: Path, shared_master: MasterProcess, mounts: list[MountProcess], tmp_path: Path
) -> None:
    content = os.urandom(CHUNKS * CHUNK_BYTES_MAX)
    with (run / "large").open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    counted_cycles = tmp_path / "cycles"
    mount = MountProcess(tmp_path / "mount", shared_master.address, shared_master.make_token(USER))
    mounts.append(mount)
    mount.environment = {"PYTHONPATH": str(COUNTED_CYCLES), "COUNTED_CYCLES": str(counted_cycles)}
    mount.start()
    there = mount.mount_point / run.relative_to(run.parents[2])
    write_and_remove(there / "first")
    count_of(counted_cycles)  # what was loaded, and is done once

    write_and_remove(there / "second")
    look_at(there)
    read_here_and_there(there / "large", content)

    # Seven requests for each of the files, and a range for each block; what is found is of this question itself, and of
    # what is done once in a while.
    assert count_of(counted_cycles) < FILES
