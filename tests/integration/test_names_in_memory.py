"""Sealed runs that nobody looks at any more leave a mount's memory, and what is in use of them does not notice.

On this kernel, and as on one from before Linux 6.18, where directories stay until the kernel gives them up.
"""

from __future__ import annotations

import ctypes
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from cloudai_fusefs.grpc_master_client import GrpcMasterClient
from cloudai_proto.storage.v1 import names_pb2 as names
from support.held import held_by
from support.master_process import MasterProcess
from support.mount_process import MountProcess, wait_until
from support.storage_requests import USER, commit, file_commit, request_id, seal

FORGETFUL_DAEMON = Path(__file__).parents[1] / "support" / "forgetful_daemon"

RUNS = [f"2026-11-20_00-00-0{number}" for number in range(5)]
DIRECTORY_COUNT = 2
FILE_COUNT = 600
"""In each run, in directories of directories; together they are three times the limit."""
NAMES_MAX = 1000

DIRECTORIES_IN_RUN = 2 * DIRECTORY_COUNT

KERNEL_PRUNES = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 18)

LISTED_BYTES = 4096
"""Of names at once: the least that the kernel asks for."""

Listing = dict[str, tuple[int, int, int, bytes]]

this_kernel = pytest.param("", id="this-kernel")
older_kernel = pytest.param("older_kernel", id="older-kernel")


async def make_sealed_runs(address: str, token: str) -> None:
    async with GrpcMasterClient(
        address, token_provider=lambda: token, insecure=True, call_deadline_seconds=60
    ) as client:
        for name in RUNS:
            run = await client.create_run(
                names.CreateRunRequest(request_id=request_id(), user=USER, task="walked", name=name)
            )
            files = [
                file_commit(f"d{number % DIRECTORY_COUNT}/e/file-{number}".encode(), content_of(name, number))
                for number in range(FILE_COUNT)
            ]
            answer = await commit(client, run, *files)
            assert not any(result.HasField("error") for result in answer.results)
            await seal(client, run)


def content_of(run: str, number: int) -> bytes:
    return f"{run} {number}\n".encode()


@pytest.fixture(scope="module")
def master_of_sealed_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MasterProcess]:
    master = MasterProcess(tmp_path_factory.mktemp("sealed-runs") / "data")
    master.start()
    trio.run(make_sealed_runs, master.address, master.make_token(USER))
    yield master
    master.kill()


@pytest.fixture
def mount_forgetful(
    master_of_sealed_runs: MasterProcess, mounts: list[MountProcess], tmp_path: Path
) -> Callable[[str], MountProcess]:
    """A mount that keeps 1000 names, and lets go of runs as the words say."""

    def make(words: str) -> MountProcess:
        token = master_of_sealed_runs.make_token(USER)
        options = f"insecure,timeo=20,names={NAMES_MAX}"
        mount = MountProcess(tmp_path / "mount", master_of_sealed_runs.address, token, options=options)
        mount.environment = {"PYTHONPATH": str(FORGETFUL_DAEMON), "FORGETFUL": words}
        mounts.append(mount)
        mount.start()
        return mount

    return make


def runs_of(mount: MountProcess) -> list[Path]:
    return [mount.mount_point / USER / "walked" / name for name in RUNS]


def list_all(run: Path) -> Listing:
    """Inode number, size, link count and content of all in the run, by path."""
    found: Listing = {}
    for path in sorted(run.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(run))] = status.st_ino, status.st_size, status.st_nlink, content
    return found


def known(mount: MountProcess) -> int:
    return held_by(mount).known_inodes


def wait_until_let_go(mount: MountProcess, run_count: int) -> None:
    wait_until(
        lambda: mount.status()["counters"]["let_go_count"] >= run_count and known(mount) <= NAMES_MAX,
        f"{run_count} runs let go of",
    )


@pytest.mark.parametrize("words", [this_kernel, older_kernel])
def test_names_of_runs_that_were_walked_through_leave_the_memory(
    mount_forgetful: Callable[[str], MountProcess], words: str
) -> None:
    mount = mount_forgetful(words)
    before = known(mount)
    seen = {run: list_all(run) for run in runs_of(mount)}
    assert len(seen[runs_of(mount)[0]]) == FILE_COUNT + DIRECTORIES_IN_RUN

    # All but the one that was looked into last; its root was known before.
    let_go_count = len(RUNS) - 1
    left = 0 if KERNEL_PRUNES and not words else let_go_count * DIRECTORIES_IN_RUN
    expected = before + FILE_COUNT + DIRECTORIES_IN_RUN + left
    wait_until(lambda: known(mount) == expected, f"{expected} names known")

    assert mount.status()["counters"]["let_go_count"] == let_go_count
    assert {run: list_all(run) for run in runs_of(mount)} == seen
    assert seen[runs_of(mount)[1]]["d1/e/file-7"][3] == content_of(RUNS[1], 7)


@pytest.mark.parametrize("words", [this_kernel, older_kernel])
def test_what_is_in_use_of_a_run_that_was_let_go_of_stays_as_it_is(
    mount_forgetful: Callable[[str], MountProcess], words: str
) -> None:
    """R11. A mount that walks through any number of sealed runs keeps no more than `names=` of their names in memory,
    beside those of the last minute and of the run looked into last; an open file or directory and a working directory
    in the others stay what they are.
    """
    mount = mount_forgetful(words)
    used, *others = runs_of(mount)
    seen = list_all(used)
    with ExitStack() as opened:
        # One that asks the kernel where it is, each time that it is told to.
        shell = opened.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", SHELL],
                cwd=used / "d0",
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        opened.callback(shell.kill)
        file = opened.enter_context((used / "d1" / "e" / "file-1").open("rb"))
        for other in others:
            list_all(other)
        wait_until_let_go(mount, len(RUNS) - 2)

        assert ask(shell) == f"{used}/d0 {seen['d0'][0]} {['e']}"
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), 100, 0) == seen["d1/e/file-1"][3]
        status = os.fstat(file.fileno())
        assert (status.st_ino, status.st_nlink) == (seen["d1/e/file-1"][0], 1)
        assert list_all(used) == seen
        assert ask(shell) == f"{used}/d0 {seen['d0'][0]} {['e']}"


SHELL = """
import os, sys
for _ in sys.stdin:
    print(os.getcwd(), os.stat(".").st_ino, os.listdir("."), flush=True)
"""


def ask(shell: subprocess.Popen[str]) -> str:
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write("\n")
    shell.stdin.flush()
    return shell.stdout.readline().strip()


def read_some_names(directory: int) -> list[str]:
    """The next names of an open directory, as few as the kernel asks for at once; none at its end."""
    buffer = ctypes.create_string_buffer(LISTED_BYTES)
    size_bytes = ctypes.CDLL(None, use_errno=True).getdents64(directory, buffer, LISTED_BYTES)
    assert size_bytes >= 0, os.strerror(ctypes.get_errno())
    found, offset = [], 0
    while offset < size_bytes:
        (length,) = struct.unpack_from("=H", buffer.raw, offset + 16)
        found.append(buffer.raw[offset + 19 : offset + length].split(b"\0", 1)[0].decode())
        offset += length
    return found


def test_open_directory_is_listed_to_its_end_whoever_walks_elsewhere(
    mount_forgetful: Callable[[str], MountProcess],
) -> None:
    mount = mount_forgetful("restless")
    used, *others = runs_of(mount)
    directory = os.open(used / "d0" / "e", os.O_RDONLY)
    try:
        listed = read_some_names(directory)
        for other in others:
            list_all(other)
        wait_until(lambda: mount.status()["counters"]["let_go_count"] >= 2, "others let go of")

        while some := read_some_names(directory):
            listed += some
    finally:
        os.close(directory)

    in_directory = [f"file-{number}" for number in range(0, FILE_COUNT, DIRECTORY_COUNT)]
    assert sorted(listed) == sorted([".", "..", *in_directory])


def test_run_that_was_let_go_of_is_looked_into_while_the_master_is_away(
    mount_forgetful: Callable[[str], MountProcess], master_of_sealed_runs: MasterProcess
) -> None:
    mount = mount_forgetful("")
    seen = {run: list_all(run) for run in runs_of(mount)}
    wait_until_let_go(mount, len(RUNS) - 2)

    with master_of_sealed_runs.silent():
        assert {run: list_all(run) for run in runs_of(mount)} == seen


@pytest.mark.parametrize("words", [this_kernel, older_kernel])
def test_whoever_looks_while_runs_are_let_go_of_sees_all_of_them(
    mount_forgetful: Callable[[str], MountProcess], words: str
) -> None:
    mount = mount_forgetful(f"restless {words}")
    seen = {run: list_all(run) for run in runs_of(mount)}
    end_seconds = time.monotonic() + 10

    def look(seed: int) -> int:
        chance = random.Random(seed)
        look_count = 0
        while time.monotonic() < end_seconds or not look_count:
            run = chance.choice(list(seen))
            if chance.random() < 0.3:
                assert list_all(run) == seen[run]
            for _ in range(20):
                path, (ino, size_bytes, link_count, content) = chance.choice(list(seen[run].items()))
                status = (run / path).lstat()
                assert (status.st_ino, status.st_size, status.st_nlink) == (ino, size_bytes, link_count)
                assert not content or (run / path).read_bytes() == content
            look_count += 1
            time.sleep(chance.random() / 10)
        return look_count

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(look, range(4)))

    let_go_count = mount.status()["counters"]["let_go_count"]
    assert let_go_count > len(RUNS)
    assert "Traceback" not in mount.log_text()
