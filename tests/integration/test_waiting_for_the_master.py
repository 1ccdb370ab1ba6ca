"""Who waits for a master that says nothing, for whatever it is: they hold up nobody else."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until

EACH_COUNT = 40
WAITING_COUNT = 200
LOOK_SECONDS_MAX = 30.0
"""Nothing that is looked at takes long; who has to wait does so for a minute."""


def publish(mount: MountProcess) -> None:
    """A run with a directory of its own for each who changes one: the kernel has them wait for each other."""
    run = mount.make_run(RUN)
    (run / "known").write_bytes(b"known")
    for number in range(EACH_COUNT):
        mount.make_run(RUN, task=f"listed-{number}")
        mount.make_run(RUN, task=f"added-to-{number}")
        for kind in ("removed", "renamed", "linked"):
            (run / f"{kind}-{number}").mkdir()
            place = run / f"{kind}-{number}" / "name"
            if kind == "removed":
                place.mkdir()
            else:
                place.write_bytes(b"x")
    mount.wait_durable()


def commands_that_wait(run: Path) -> Iterator[list[str | Path]]:
    user = run.parent.parent
    for number in range(EACH_COUNT):
        yield ["ls", user / f"listed-{number}" / RUN]
        yield ["mkdir", user / f"added-to-{number}" / "2026-11-18_00-00-00"]
        yield ["rmdir", run / f"removed-{number}" / "name"]
        yield ["mv", run / f"renamed-{number}" / "name", run / f"renamed-{number}" / "moved"]
        yield ["ln", run / f"linked-{number}" / "name", run / f"linked-{number}" / "other"]


def is_waiting(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process sleeps until a FUSE daemon answers."""
    try:
        return "request_wait_answer" in Path(f"/proc/{process.pid}/wchan").read_text()
    except OSError:
        return False


def test_whoever_waits_for_the_master_holds_up_nothing_that_is_known(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R8. Who waits for the master, for whatever it is, holds up nobody who asks for what is known here; of more than
    448 at once, those beyond fail with EIO once the master has been silent for two seconds.
    """
    publish(make_mount())
    mount = make_mount("other", options="insecure,timeo=60")
    run = run_in(mount)
    assert len(os.listdir(run)) == 3 * EACH_COUNT + 1
    assert (run / "known").read_bytes() == b"known"
    with master.silent():
        processes = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for command in commands_that_wait(run)
        ]
        wait_until(lambda: all(map(is_waiting, processes)), "all wait for the master")
        before = time.monotonic()
        assert (run / "known").stat().st_size == 5
        assert (run / "known").read_bytes() == b"known"
        assert len(os.listdir(run)) == 3 * EACH_COUNT + 1
        assert not (run / "not-there").exists()
        (run / "new").write_bytes(b"new")
        assert mount.status()["fetched_bytes"] is not None
        assert time.monotonic() - before < LOOK_SECONDS_MAX
        assert len([*filter(is_waiting, processes)]) == WAITING_COUNT
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, b"")
