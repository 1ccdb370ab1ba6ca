"""A full disk at either end is the writer's ENOSPC, and what was acknowledged is still there."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.files import write_synced
from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, wait_until

MIB = 1024 * 1024


@contextmanager
def small_disk(directory: Path, size_mib: int) -> Iterator[Path]:
    """A file system of this size on the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    options = f"size={size_mib}m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_full_disk_at_the_master_fails_fsync_and_keeps_what_was_acknowledged(
    tmp_path: Path, mount_of: MakeMount
) -> None:
    with small_disk(tmp_path / "disk", 40) as disk:
        master = MasterProcess(disk / "data")
        master.log_path = tmp_path / "master.log"
        master.start()
        try:
            mount = mount_of(master, "mount")
            run = mount.make_run(RUN)
            first = os.urandom(8 * MIB)
            write_synced(run / "first", first)
            filler = disk / "filler"
            with pytest.raises(OSError, match="No space"):
                filler.write_bytes(bytes(64 * MIB))

            second = os.urandom(8 * MIB)
            with pytest.raises(OSError) as refusal:
                write_synced(run / "second", second)
            assert refusal.value.errno == errno.ENOSPC
            assert mount.status(run / "second")["failed_count"] == 1

            filler.unlink()
            wait_until(lambda: mount.status()["pending_count"] == 0, "the upload when there is room again")
            other = mount_of(master, "other")
            elsewhere = other.mount_point / run.relative_to(mount.mount_point)
            assert (elsewhere / "first").read_bytes() == first
            assert (elsewhere / "second").read_bytes() == second
        finally:
            master.kill()


def test_full_staging_disk_fails_write_and_keeps_what_was_acknowledged(
    tmp_path: Path, master: MasterProcess, mount_of: MakeMount
) -> None:
    with small_disk(tmp_path / "mount" / "state", 24):
        mount = mount_of(master, "mount")
        run = mount.make_run(RUN)
        kept = os.urandom(4 * MIB)
        (run / "kept").write_bytes(kept)
        master.kill()  # nothing leaves the staging disk meanwhile

        descriptor = os.open(run / "big", os.O_WRONLY | os.O_CREAT)
        acknowledged = 0
        block = os.urandom(MIB)
        with pytest.raises(OSError) as refusal:
            while acknowledged < 64 * MIB:
                acknowledged += os.write(descriptor, block)
        assert refusal.value.errno == errno.ENOSPC
        with suppress(OSError):  # close may say it once more
            os.close(descriptor)
        master.start()
        mount.wait_durable()

        (run / "after").write_bytes(b"room again")
        mount.wait_durable()
        other = mount_of(master, "other")
        elsewhere = other.mount_point / run.relative_to(mount.mount_point)
        assert (elsewhere / "kept").read_bytes() == kept
        assert (elsewhere / "big").read_bytes()[:acknowledged] == (block * 64)[:acknowledged]
        assert (elsewhere / "after").read_bytes() == b"room again"
        mount.kill()
