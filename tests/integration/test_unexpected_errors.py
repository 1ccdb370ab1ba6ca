"""A bug behind a handler costs the program that met it an EIO, and nobody else anything: on a real mount whose daemon
has the bugs that it is told to have (`support/faulty_daemon`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MountProcess, wait_until
from support.refusals import refused

from .conftest import USER

FAULTY_DAEMON = Path(__file__).parents[1] / "support" / "faulty_daemon"
NO_FAULT = ""


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """What is written there of the daemon's methods raises."""
    path = tmp_path / "faults"
    path.write_text(NO_FAULT)
    return path


@pytest.fixture
def mount(master: MasterProcess, mounts: list[MountProcess], tmp_path: Path, faults: Path) -> MountProcess:
    mount = MountProcess(tmp_path / "faulty", master.address, master.make_token(USER))
    mounts.append(mount)
    mount.environment = {"PYTHONPATH": str(FAULTY_DAEMON), "FAULTS": str(faults)}
    mount.start()
    return mount


def has_met_a_bug(mount: MountProcess, handler: str) -> bool:
    return f"{handler} failed unexpectedly" in mount.log_text()


def test_bug_behind_any_handler_is_eio_and_the_mount_goes_on(mount: MountProcess, faults: Path) -> None:
    """P16. A bug in the daemon is EIO to the program that met it, a traceback in the log, and a count among the
    metrics; the mount goes on.
    """
    run = mount.make_run(RUN)
    for name in ("file", "removed", "dropped"):
        (run / name).write_bytes(b"content")
    (run / "link").symlink_to("file")
    file, dropped = os.open(run / "file", os.O_RDWR), os.open(run / "dropped", os.O_RDONLY)
    (run / "dropped").unlink()
    cases: dict[str, tuple[str, Callable[[], object]]] = {
        "lookup": ("Namespace.lookup", (run / "unseen").exists),
        "opendir": ("Namespace.load", lambda: os.listdir(run)),
        "readdir": ("Namespace.list", lambda: os.listdir(run)),
        "create": ("Namespace.make_file", lambda: (run / "made").write_bytes(b"")),
        "mknod": ("Namespace.make_file", lambda: os.mknod(run / "node")),
        "mkdir": ("Namespace.make_directory", (run / "directory").mkdir),
        "symlink": ("Namespace.make_symlink", lambda: (run / "symlink").symlink_to("file")),
        "readlink": ("Namespace.readlink", (run / "link").readlink),
        "link": ("Rearrangements.link", lambda: (run / "second").hardlink_to(run / "file")),
        "setattr": ("Namespace.set_attributes", lambda: (run / "file").chmod(0o600)),
        "read": ("OpenFiles.read", lambda: os.pread(file, 10, 0)),
        "open": ("OpenFiles.open", lambda: (run / "file").read_bytes()),
        "write": ("OpenFiles.write_at_once", lambda: os.pwrite(file, b"written", 0)),
        "fsync": ("OpenFiles.fsync", lambda: os.fsync(file)),
        "unlink": ("Rearrangements.unlink_at_once", (run / "removed").unlink),
        "rename": ("Rearrangements.rename", lambda: (run / "file").rename(run / "renamed")),
        "rmdir": ("Rearrangements.rmdir", (run / "directory").rmdir),
    }

    for fault, call in cases.values():
        faults.write_text(fault)
        with refused(errno.EIO):
            call()
        faults.write_text(NO_FAULT)
        call()

    faults.write_text("RunNodes.forget_if_unused")
    os.close(dropped)
    for handler in ("release", "forget"):  # which the kernel waits for in vain
        wait_until(partial(has_met_a_bug, mount, handler), f"a bug in {handler}")
    faults.write_text(NO_FAULT)
    os.close(file)
    assert sorted(os.listdir(run)) == ["link", "made", "node", "renamed", "second", "symlink"]
    assert (run / "renamed").read_bytes() == b"written"
    counts = mount.status()["counters"]["unexpected_counts"]
    assert counts.keys() == {*cases, "release", "forget"}
    # Each with its traceback. (A task in the background may have met a bug too, and has begun again.)
    for handler, count in counts.items():
        assert mount.log_text().count(f": {handler} failed unexpectedly\nTraceback") == count
    mount.umount()
