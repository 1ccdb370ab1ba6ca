"""Programs that are killed while they ask: the kernel takes back what they asked, from under the daemon's hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cloudai_daemon.control_client import ControlClient
from cloudai_daemon.mount_lookup import find_at
from support.master_process import MasterProcess
from support.mount_process import MountProcess
from support.storage_requests import USER

COUNTED_REQUESTS = Path(__file__).parents[1] / "support" / "counted_requests"

ROUNDS = 120
"""Without what this tests, one in ten left the daemon standing until somebody asked for something else."""

ANSWER_SECONDS_MAX = 10

ASK_AND_DIE = """
import os, signal, sys, time

directory, rounds = sys.argv[1], int(sys.argv[2])
for number in range(rounds):
    children = []
    for child in range(8):
        pid = os.fork()
        if pid == 0:
            count = 0
            while True:
                count += 1
                try:
                    os.stat(f"{directory}/missing-{number}-{child}-{count}")
                except OSError:
                    pass
        children.append(pid)
    time.sleep(0.005 + number % 8 * 0.005)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)
    print(number, flush=True)
    sys.stdin.readline()
"""


def test_programs_that_are_killed_keep_nobody_waiting(run: Path, shared_mount: MountProcess) -> None:
    """R12. Programs that are killed in the middle of a request keep nobody waiting: what others have asked for, uploads
    and `fsync` go on.
    """
    entry = find_at(shared_mount.mount_point)
    assert entry is not None
    with subprocess.Popen(
        [sys.executable, "-c", ASK_AND_DIE, run, str(ROUNDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as programs:
        assert programs.stdin is not None
        assert programs.stdout is not None
        for number in range(ROUNDS):
            assert programs.stdout.readline() == f"{number}\n"
            # By its socket: a request by way of the kernel would free it.
            with ControlClient(entry) as client:
                client.status(timeout_seconds=ANSWER_SECONDS_MAX)
            programs.stdin.write("\n")
            programs.stdin.flush()
    assert programs.returncode == 0


def test_requests_are_taken_under_the_lock_that_this_depends_on(
    shared_master: MasterProcess, mounts: list[MountProcess], tmp_path: Path
) -> None:
    """A release of pyfuse3 that takes lock and wait from elsewhere would go on as if nothing were."""
    counted = tmp_path / "counted"
    mount = MountProcess(tmp_path / "mount", shared_master.address, shared_master.make_token(USER))
    mounts.append(mount)
    mount.environment = {"PYTHONPATH": str(COUNTED_REQUESTS), "COUNTED_REQUESTS": str(counted)}
    mount.start()
    before_count = counted.stat().st_size
    for number in range(100):
        assert not (mount.mount_point / f"missing-{number}").exists()
    # For the first of them it was there already.
    assert counted.stat().st_size >= before_count + 99
