"""A disk cache whose disk is full: reads go on without it, and it is said once."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.mount_refusals import warn_of_full_cache
from cloudai_fusefs.mount_control import CACHE_FREE_BYTES_MIN
from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until
from support.small_disk import MIB, fill, small_disk

FULL = "is full: nothing more is cached until there is room, and reads go on"
CONTENTS = {f"file-{number}": bytes([number]) * 300_000 for number in range(20)}


@pytest.fixture
def mount(
    make_mount: MakeMount, master: MasterProcess, mounts: list[MountProcess], tmp_path: Path
) -> MountProcess:
    """Not started; the contents are in a sealed run."""
    writer = make_mount("writer")
    run = writer.make_run(RUN)
    for name, content in CONTENTS.items():
        (run / name).write_bytes(content)
    writer.wait_durable()
    writer.seal(run)
    writer.umount()
    mount = MountProcess(tmp_path / "mount", master.address, master.make_token("user-123"))
    mounts.append(mount)
    return mount


def read_some(mount: MountProcess, first: int, last: int) -> bool:
    """Whether they are right."""
    return all((run_in(mount) / name).read_bytes() == CONTENTS[name] for name in list(CONTENTS)[first:last])


def lines_of(mount: MountProcess, text: str) -> list[str]:
    return [line for line in mount.log_text().splitlines() if text in line]


def cached_bytes(mount: MountProcess) -> int:
    return sum(path.stat().st_size for path in (mount.cache_dir / "chunks").rglob("*") if path.is_file())


@pytest.mark.parametrize("is_there", [True, False])
def test_mount_with_a_cache_on_a_full_disk_warns_and_reads_without_it(
    mount: MountProcess, is_there: bool
) -> None:
    with small_disk(mount.cache_dir, 4) as disk:
        mount.cache_dir = disk / "cache"
        if is_there:
            mount.cache_dir.mkdir(mode=0o700)
        fill(disk)

        done = mount.mount_command()

        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == (
            f"cloudai: warning: {mount.cache_dir} has 0 B free: nothing more is cached until there is 1.0 GiB; make"
            " room there, or give another cache_dir=\n"
        )
        entry = find_at(mount.mount_point)
        assert entry is not None
        mount.pid = entry.process.pid
        assert read_some(mount, 0, 10)
        wait_until(lambda: lines_of(mount, FULL) != [], "the line in the log", seconds_max=30)
        assert read_some(mount, 10, 20)
        assert (
            "its disk is full: nothing more is cached"
            in mount.cloudai("status", str(mount.mount_point)).stdout
        )
        said = mount.cloudai("doctor", str(mount.mount_point)).stdout.splitlines()
        (finding,) = [line for line in said if line.split()[1:2] == ["cache"]]
        assert finding.split()[0] == "note"
        assert finding.endswith(
            "0 B free: nothing more is cached until there is 1 GiB: make room there, or give another cache_dir="
        )
        mount.umount()
    assert len(lines_of(mount, FULL)) == 1
    assert "Traceback" not in mount.log_text()


def test_cache_whose_disk_fills_up_takes_nothing_more_until_there_is_room_again(mount: MountProcess) -> None:
    with small_disk(mount.cache_dir, CACHE_FREE_BYTES_MIN // MIB + 64) as disk:
        mount.start()
        assert read_some(mount, 0, 2)
        wait_until(lambda: cached_bytes(mount) > 0, "what was read in the cache")
        filler = disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(
                file.fileno(), 0, CACHE_FREE_BYTES_MIN // 2
            )  # what is left is not for the cache

        assert read_some(mount, 2, 10)
        wait_until(lambda: len(lines_of(mount, FULL)) == 1, "the line in the log", seconds_max=30)
        assert "its disk is full" in mount.cloudai("status", str(mount.mount_point)).stdout
        filler.unlink()

        assert read_some(mount, 10, 20)
        wait_until(
            lambda: cached_bytes(mount) > 9 * 300_000, "what was read since in the cache", seconds_max=30
        )
        assert "its disk is full" not in mount.cloudai("status", str(mount.mount_point)).stdout
        assert len(lines_of(mount, FULL)) == 1
        mount.umount()


def test_cache_whose_disk_does_not_answer_is_warned_of_in_time(make_mount: MakeMount) -> None:
    disk = make_mount("disk")
    cache_dir = disk.mount_point / "cache"
    said: list[str] = []
    # A call that waits for it without a bound cannot be interrupted.
    goes_on = threading.Timer(30, os.kill, (disk.pid, signal.SIGCONT))
    goes_on.start()
    os.kill(disk.pid, signal.SIGSTOP)
    try:
        warn_of_full_cache(cache_dir, said.append)
    finally:
        goes_on.cancel()
        os.kill(disk.pid, signal.SIGCONT)

    assert said == [f"warning: {cache_dir}: Connection timed out"]
