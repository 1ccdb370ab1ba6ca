"""Readers of a master that does not answer: whom they hold up, and how they end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from cloudai_fusefs.kernel_knobs import BACKGROUND_REQUESTS_MAX, background_knobs
from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until

MIB = 1024 * 1024
READERS = 99

CROWD = 1500
CROWD_STEP_BYTES = 120_000
"""So far apart that the kernel has a request for each, and the daemon its own blocks."""

# As one program of many threads: as many programs would keep the machine for longer than the master is silent.
CROWD_SCRIPT = """
import os, sys, threading

def read(number):
    try:
        outcomes[number] = len(os.pread(file, 4096, number * step)) - 4096
    except OSError as error:
        outcomes[number] = error.errno

path, count, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
file = os.open(path, os.O_RDONLY)
outcomes = [-1] * count
threading.stack_size(65536)
readers = [threading.Thread(target=read, args=(number,)) for number in range(count)]
for reader in readers:
    reader.start()
print("all ask", flush=True)
for reader in readers:
    reader.join()
print(*outcomes)
"""


def start_reader(path: Path, offset: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["dd", f"if={path}", "of=/dev/null", "bs=4k", "count=1", f"skip={offset // 4096}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def read_from_the_daemon(path: Path) -> bytes:
    """The first MiB of the file, of which the kernel has forgotten what it had."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.read(descriptor, MIB)
    finally:
        os.close(descriptor)


def is_waiting_in_read(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process sleeps in the system call read(2), on this machine's numbers."""
    try:
        call = Path(f"/proc/{process.pid}/syscall").read_text().split()
    except OSError:
        return False
    return call[0] == {"x86_64": "0", "aarch64": "63"}[os.uname().machine]


def all_threads_read(process: subprocess.Popen[str]) -> bool:
    """Whether all of its threads that are left, but the first, sleep in pread64(2), on this machine's numbers."""
    number = {"x86_64": "17", "aarch64": "67"}[os.uname().machine]
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        try:
            call = (thread / "syscall").read_text().split()
        except OSError:
            continue  # it has ended
        if thread.name != str(process.pid) and call[0] != number:
            return False
    return True


def await_killed(readers: Iterable[subprocess.Popen[bytes]]) -> None:
    """Once the master answers again: of so many the kernel may ask again for one as it dies (R7)."""
    for reader in readers:
        assert reader.wait(10) == -signal.SIGKILL


def publish(mount: MountProcess, size: int) -> None:
    run = mount.make_run(RUN)
    (run / "big").write_bytes(os.urandom(size))
    (run / "cached").write_bytes(os.urandom(MIB))
    for number in range(5):
        (run / f"small-{number}").write_bytes(b"x")
    mount.wait_durable()


def test_killed_reader_ends_at_once_while_the_master_says_nothing(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R7. A reader that is killed while it waits ends at once."""
    publish(make_mount(), 8 * MIB)
    path = run_in(make_mount("other", options="insecure,timeo=60")) / "big"
    assert path.stat().st_size == 8 * MIB
    with master.silent():
        reader = start_reader(path, 4 * MIB)
        wait_until(lambda: is_waiting_in_read(reader), "the reader waits for the master")
        reader.kill()
        assert reader.wait(10) == -signal.SIGKILL


def test_many_waiting_readers_hold_up_nothing_that_is_known(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    publish(make_mount(), READERS * MIB)
    other = make_mount("other", options="insecure,timeo=60")
    run = run_in(other)
    assert (run / "small-0").read_bytes() == b"x"
    readers: list[subprocess.Popen[bytes]] = []
    with master.silent():
        try:
            readers += [start_reader(run / "big", number * MIB) for number in range(READERS)]
            wait_until(lambda: all(map(is_waiting_in_read, readers)), "all readers wait")
            before = time.monotonic()
            assert (run / "big").stat().st_size == READERS * MIB
            assert sorted(os.listdir(run)) == ["big", "cached", *(f"small-{number}" for number in range(5))]
            assert (run / "small-0").read_bytes() == b"x"
            assert not (run / "not-there").exists()
            assert other.status()["fetched_bytes"] is not None
            # None of them may wait for the readers, who wait for a minute.
            assert time.monotonic() - before < 30
        finally:
            for reader in readers:
                reader.kill()
    await_killed(readers)
    assert (run / "big").read_bytes()[:1]


def test_large_read_of_what_is_cached_passes_readers_that_wait_where_the_kernels_limit_is_raised(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    publish(make_mount(), READERS * MIB)
    run = run_in(make_mount("other", options="insecure,timeo=60"))
    limit, _ = background_knobs(run.stat().st_dev)
    if limit.read() != BACKGROUND_REQUESTS_MAX:
        pytest.skip(f"{limit.path} is not there, or may not be raised")
    cached = run / "cached"
    assert len(cached.read_bytes()) == MIB
    readers: list[subprocess.Popen[bytes]] = []
    with master.silent():
        try:
            readers += [start_reader(run / "big", number * MIB) for number in range(READERS)]
            wait_until(lambda: all(map(is_waiting_in_read, readers)), "all readers wait")
            before = time.monotonic()
            assert len(read_from_the_daemon(cached)) == MIB
            assert time.monotonic() - before < 30  # the readers wait for a minute
        finally:
            for reader in readers:
                reader.kill()
    await_killed(readers)


def test_more_readers_than_may_wait_hold_up_what_is_known_for_moments(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """To R8: behind more than 512 at once whoever asks for what is known waits for these two seconds, and for up to
    three eighths of a second for each 64 of those before him.
    """
    writer = make_mount()
    publish(writer, 0)
    os.truncate(run_in(writer) / "big", CROWD * CROWD_STEP_BYTES)
    writer.wait_durable()
    run = run_in(make_mount("other", options="insecure,timeo=60"))
    assert (run / "big").stat().st_size == CROWD * CROWD_STEP_BYTES
    with master.silent():
        crowd = subprocess.Popen(
            [sys.executable, "-c", CROWD_SCRIPT, run / "big", str(CROWD), str(CROWD_STEP_BYTES)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == "all ask\n"
        wait_until(lambda: all_threads_read(crowd), "all readers ask")
        before = time.monotonic()
        assert not (run / "not-there").exists()  # which the kernel does not know
        assert (run / "big").stat().st_size == CROWD * CROWD_STEP_BYTES
        assert time.monotonic() - before < 30  # eight by the promise; those before it would wait for a minute
    said, _ = crowd.communicate(timeout=60)
    outcomes = Counter(map(int, said.split()))
    assert outcomes.total() == CROWD
    assert set(outcomes) == {0, errno.EIO}
