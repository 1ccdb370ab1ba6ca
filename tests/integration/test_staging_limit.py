"""What may be staged has a limit: writers wait for uploads, and are told in time when none come."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until

MIB = 1024 * 1024


def fill(run: Path) -> dict[str, bytes]:
    """Writes files of 1 MiB until there is no room; those that were acknowledged."""
    written: dict[str, bytes] = {}
    for number in range(64):
        content = os.urandom(MIB)
        try:
            (run / f"file-{number}").write_bytes(content)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return written
        written[f"file-{number}"] = content
    raise AssertionError("there was room for all")


def open_run(mount: MountProcess) -> Path:
    run = mount.make_run(RUN)
    (run / "first").write_text("looked into, so that the master is not needed")
    mount.wait_durable()
    return run


def test_full_staging_fails_write_after_timeo_and_keeps_what_was_acknowledged(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """U3. Where as much is staged as `staging_size=` allows, or as the disk holds, a write waits for uploads for at
    most `timeo` and then fails with ENOSPC; what was acknowledged before is kept.
    """
    mount = make_mount(options="insecure,timeo=1,staging_size=8M")
    run = open_run(mount)
    free_before = os.statvfs(mount.mount_point).f_bavail
    master.kill()

    written = fill(run)

    assert 6 <= len(written) <= 8
    assert os.statvfs(mount.mount_point).f_bavail == free_before
    master.start()
    mount.wait_durable()
    elsewhere = run_in(make_mount("other"))
    assert {name: (elsewhere / name).read_bytes() for name in written} == written
    (run / "after").write_bytes(bytes(4 * MIB))  # there is room again


def test_writer_waits_for_uploads_when_staging_is_full(make_mount: MakeMount, master: MasterProcess) -> None:
    mount = make_mount(options="insecure,timeo=20,staging_size=4M")
    run = open_run(mount)
    master.kill()
    contents = [os.urandom(MIB) for _ in range(8)]
    done = threading.Event()

    def write_all() -> None:
        for number, content in enumerate(contents):
            (run / f"file-{number}").write_bytes(content)
        done.set()

    writer = threading.Thread(target=write_all, daemon=True)
    writer.start()
    wait_until(lambda: mount.status()["staged_bytes"] >= 3 * MIB, "a full staging")
    assert not done.is_set()

    master.start()

    assert done.wait(20)
    mount.wait_durable()
    elsewhere = run_in(make_mount("other"))
    assert [(elsewhere / f"file-{number}").read_bytes() for number in range(8)] == contents


def test_single_file_over_the_limit_is_refused_at_once(make_mount: MakeMount) -> None:
    mount = make_mount(options="insecure,timeo=60,staging_size=4M")
    run = open_run(mount)

    with pytest.raises(OSError, match="No space"):
        (run / "big").write_bytes(bytes(8 * MIB))

    mount.wait_durable()
    mount.umount()
