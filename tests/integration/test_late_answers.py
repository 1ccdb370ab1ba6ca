"""Answers that the kernel takes in another order than that in which the mount gave them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudai_fusefs.late_answers import DELAY_SECONDS
from support.mount_process import MountProcess, wait_until

ATTEMPTS_MAX = 5

OCCUPY = """
import sys, time
sys.stdin.read(1)
print(flush=True)
until = time.monotonic() + 0.2
while time.monotonic() < until:
    pass
"""


def test_times_of_a_directory_that_one_looks_at_while_another_changes_it(
    run: Path, shared_mount: MountProcess
) -> None:
    """P4. Modification and change times move with the calls that POSIX names and with no other; a truncation moves both
    although the size stays. A second after a name came or went they are right, whoever looked at them meanwhile.
    """
    if subprocess.run(["chrt", "--fifo", "1", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no program go before all others")
    for number in range(ATTEMPTS_MAX):
        directory = run / f"directory-{number}"
        directory.mkdir()
        time.sleep(2 * DELAY_SECONDS)
        # The kernel then needs to ask nothing to know who may write there, and takes no answer about it in between.
        before_ns = directory.stat().st_mtime_ns
        found = look_and_change(directory, shared_mount)
        # Without a notification the kernel would show for half a minute what it took last.
        wait_until(lambda: directory.stat().st_mtime_ns > before_ns, "the new time", seconds_max=5)  # noqa: B023
        if found == f"{before_ns // 10**9}.{before_ns % 10**9:09}":
            return  # answered before the change, and taken after it
    raise AssertionError("the mount never answered in the order in which it was asked")


def look_and_change(directory: Path, mount: MountProcess) -> str:
    """What `stat` is answered, which asks before another makes a name, and runs after that has ended; "" where it
    does not.
    """
    all_cpus = os.sched_getaffinity(0)
    on_first, on_last = (("taskset", "--cpu-list", str(cpu)) for cpu in (min(all_cpus), max(all_cpus)))
    os.sched_setaffinity(mount.pid, {max(all_cpus)})
    try:
        with occupying(on_first) as occupy:
            os.kill(mount.pid, signal.SIGSTOP)
            try:
                look = subprocess.Popen(
                    [*on_first, "stat", "--cached=never", "--format=%.9Y", directory],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                wait_until(lambda: is_asleep(look.pid, "stat"), "stat's question")
                change = subprocess.Popen([*on_last, "mkdir", directory / "new"])
                wait_until(lambda: is_asleep(change.pid, "mkdir"), "mkdir's question")
                occupy()
            finally:
                os.kill(mount.pid, signal.SIGCONT)
            assert change.wait() == 0
            is_late = look.poll() is None
            found, _ = look.communicate()
            assert look.returncode == 0
    finally:
        os.sched_setaffinity(mount.pid, all_cpus)
    return found.strip() if is_late else ""


@contextmanager
def occupying(on_cpu: tuple[str, ...]) -> Iterator[Callable[[], None]]:
    """Yields what takes the processor from everything else for a fifth of a second, from its return on."""
    program = [*on_cpu, "chrt", "--fifo", "1", sys.executable, "-c", OCCUPY]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def occupy() -> None:
            stdin.write(b"x")
            stdin.flush()
            stdout.readline()

        yield occupy


def is_asleep(pid: int, name: str) -> bool:
    """Whether the process has become this program, and waits for something twice in a row."""

    def waits() -> bool:
        before, _, after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        return before.endswith(f"({name}") and after.split()[0] in "SD"

    if not waits():
        return False
    time.sleep(0.05)
    return waits()
