"""The durability promises, with real processes and kill -9."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until
from support.refusals import refused

MIB = 1024 * 1024


def random_bytes(size: int, seed: int = 0) -> bytes:
    """Bytes that no two chunks of share, made fast."""
    return hashlib.shake_256(str(seed).encode()).digest(min(size, MIB)) + os.urandom(max(0, size - MIB))


@contextmanager
def abandoned(path: Path, flags: int) -> Iterator[int]:
    """A descriptor whose daemon is killed before it is closed: closing it says so."""
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        with suppress(OSError):
            os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += os.write(descriptor, content[written:])


def stored_bytes(master: MasterProcess) -> int:
    """How much the master has on disk in whole chunks."""
    chunks = master.data_dir / "chunks"
    return sum(path.stat().st_size for path in chunks.rglob("*") if path.is_file() and len(path.name) == 64)


def test_written_bytes_survive_the_daemon(make_mount: MakeMount) -> None:
    """D1. After `write()` a file's bytes survive the death of the mount daemon."""
    mount = make_mount()
    run = mount.make_run(RUN)
    content = random_bytes(9 * MIB + 123)
    with abandoned(run / "open.bin", os.O_WRONLY | os.O_CREAT) as descriptor:
        write_all(descriptor, content)
        mount.kill()

    mount.start()

    assert (run_in(mount) / "open.bin").read_bytes() == content


def test_overwritten_range_of_a_published_file_survives_the_daemon(make_mount: MakeMount) -> None:
    """D1. After `write()` a file's bytes survive the death of the mount daemon."""
    mount = make_mount()
    run = mount.make_run(RUN)
    content = bytearray(random_bytes(9 * MIB))
    (run / "model.bin").write_bytes(content)
    mount.wait_durable()
    with abandoned(run / "model.bin", os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"changed", 5 * MIB + 7)
        mount.kill()
    content[5 * MIB + 7 : 5 * MIB + 14] = b"changed"

    mount.start()
    mount.wait_durable()

    assert (run_in(mount) / "model.bin").read_bytes() == content


def test_closed_file_survives_the_daemon_with_name_size_and_times(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """D2. After `close()` the file, with its name, size and times, survives the death of the mount daemon."""
    mount = make_mount()
    run = mount.make_run(RUN)
    run.joinpath("first").touch()
    mount.wait_durable()
    master.kill()
    (run / "deep" / "er").mkdir(parents=True)
    path = run / "deep" / "er" / "metrics.csv"
    path.write_bytes(b"epoch,loss\n")
    os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_987_654_321))
    path.chmod(0o640)
    plain = run / "plain"
    plain.write_bytes(b"as it is written")
    plain_time_ns = plain.stat().st_mtime_ns
    mount.kill()
    master.start()

    mount.start()
    mount.wait_durable()

    again = run_in(mount) / "deep" / "er" / "metrics.csv"
    assert again.read_bytes() == b"epoch,loss\n"
    assert again.stat().st_mtime_ns == 1_700_000_000_987_654_321
    assert again.stat().st_mode & 0o7777 == 0o640
    assert (run_in(mount) / "plain").read_bytes() == b"as it is written"
    assert (run_in(mount) / "plain").stat().st_mtime_ns == plain_time_ns


def test_synced_file_survives_the_loss_of_the_workstation(make_mount: MakeMount) -> None:
    """D3. After `fsync()` the file, with its name and its directories, is at the master and on its disk; it
    survives the loss of the workstation.
    """
    mount = make_mount()
    run = mount.make_run(RUN)
    content = random_bytes(6 * MIB)
    (run / "a" / "b").mkdir(parents=True)
    with abandoned(run / "a" / "b" / "last.safetensors", os.O_WRONLY | os.O_CREAT) as descriptor:
        write_all(descriptor, content)
        os.fsync(descriptor)
        mount.kill()
    shutil.rmtree(mount.state_dir)
    shutil.rmtree(mount.cache_dir)

    other = make_mount("other")

    assert (run_in(other) / "a" / "b" / "last.safetensors").read_bytes() == content


def test_write_to_a_file_opened_for_it_is_at_the_master_when_it_returns(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """D13. A `write()` to a file that was opened with `O_SYNC` or `O_DSYNC` returns as an `fsync()` after it would."""
    mount = make_mount(options="insecure,timeo=1")
    other = make_mount("other")
    run = mount.make_run(RUN)
    with ExitStack() as opened:
        descriptors = {
            name: opened.enter_context(abandoned(run / name, os.O_CREAT | flags))
            for name, flags in {
                "synced": os.O_WRONLY | os.O_SYNC,
                "data-synced": os.O_WRONLY | os.O_DSYNC,
                "appended": os.O_WRONLY | os.O_APPEND | os.O_DSYNC,
                "read": os.O_RDWR | os.O_DSYNC,
            }.items()
        }
        for descriptor in descriptors.values():
            os.write(descriptor, b"first")
        assert {name: (run_in(other) / name).read_bytes() for name in descriptors} == dict.fromkeys(
            descriptors, b"first"
        )

        master.kill()
        for descriptor in descriptors.values():
            with refused(errno.EIO):
                os.write(descriptor, b"second")


def test_fsync_without_a_master_fails_within_timeo_and_the_bytes_go_on(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """D4. `fsync()` waits at most `timeo` and then fails with EIO; the bytes stay staged and go on uploading."""
    mount = make_mount(options="insecure,timeo=2")
    run = mount.make_run(RUN)
    (run / "warm").touch()
    mount.wait_durable()
    master.kill()
    with (run / "log").open("wb") as file:
        file.write(b"line\n")
        file.flush()
        began = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(file.fileno())
        assert 1.5 < time.monotonic() - began < 10
    master.start()

    mount.wait_durable()

    other = make_mount("other")
    assert (run_in(other) / "log").read_bytes() == b"line\n"


def test_staged_backlog_is_uploaded_by_the_next_mount(make_mount: MakeMount, master: MasterProcess) -> None:
    """D5. What is staged when a mount ends, however it ends, is uploaded by the next mount with the same state
    directory.
    """
    mount = make_mount()
    run = mount.make_run(RUN)
    (run / "warm").touch()
    mount.wait_durable()
    master.kill()
    for number in range(200):
        (run / f"file-{number}").write_bytes(str(number).encode())
    (run / "link").symlink_to("file-7")
    os.rename(run / "file-8", run / "renamed")
    (run / "file-9").unlink()
    mount.kill()
    master.start()
    mount.start()
    mount.wait_durable()

    other = make_mount("other")

    expected = {f"file-{number}" for number in range(200)} - {"file-8", "file-9"} | {
        "renamed",
        "link",
        "warm",
    }
    assert {path.name for path in run_in(other).iterdir()} == expected
    assert (run_in(other) / "renamed").read_bytes() == b"8"
    assert os.readlink(run_in(other) / "link") == "file-7"
    assert mount.status()["pending_count"] == 0


def test_replacing_by_rename_is_whole_on_every_mount(make_mount: MakeMount) -> None:
    """D6. A file that is replaced by renaming another over it is replaced as a whole: at the master and on every
    mount there is the old content or the new, never a part.
    """
    mount, other = make_mount(), make_mount("other")
    run = mount.make_run(RUN)
    size = 5 * MIB
    (run / "last").write_bytes(b"\0" * size)
    mount.wait_durable()
    wait_until(lambda: (run_in(other) / "last").exists(), "the first checkpoint elsewhere")
    seen: set[tuple[int, int]] = set()
    failures: list[str] = []
    stop = threading.Event()

    def read_elsewhere() -> None:
        while not stop.is_set():
            content = (run_in(other) / "last").read_bytes()
            seen.add((content[0], len(content)))
            if len(content) != size or content != content[:1] * size:
                failures.append(f"{len(content)} bytes, {sorted(set(content))}")

    reader = threading.Thread(target=read_elsewhere)
    reader.start()
    for generation in range(1, 6):
        with (run / "last.tmp").open("wb") as file:
            file.write(bytes([generation]) * size)
            if generation % 2:
                os.fsync(file.fileno())
        os.rename(run / "last.tmp", run / "last")
    mount.wait_durable()
    wait_until(lambda: (5, size) in seen or bool(failures), "the last checkpoint elsewhere")
    stop.set()
    reader.join()

    assert failures == []
    assert sorted(path.name for path in run_in(other).iterdir()) == ["last"]


def test_full_chunks_leave_while_the_file_is_open(make_mount: MakeMount, master: MasterProcess) -> None:
    """256 MiB written and not yet closed are at least half at the master a few seconds later."""
    mount = make_mount()
    run = mount.make_run(RUN)
    with (run / "big").open("wb", buffering=0) as file:
        for _ in range(256):
            file.write(os.urandom(MIB))
        wait_until(lambda: stored_bytes(master) >= 128 * MIB, "half of an open file at the master")


def upload_with_death_between(
    mount: MountProcess, master: MasterProcess, die: Callable[[], None], size_mib: int
) -> tuple[str, int]:
    """Writes a file, calls `die` in the middle of its upload; returns its SHA-256 and how much was stored."""
    run = mount.make_run(RUN)
    digest = hashlib.sha256()
    with (run / "big").open("wb", buffering=0) as file:
        for _ in range(size_mib):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    wait_until(lambda: stored_bytes(master) >= size_mib * MIB // 4, "a quarter at the master")
    die()
    return digest.hexdigest(), stored_bytes(master)


IN_FLIGHT_BYTES_MAX = 4 * 4 * MIB


def test_upload_goes_on_where_it_stood_when_the_daemon_was_killed(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """After kill -9 of the mount daemon in the middle of an upload of 1 GiB, the next mount sends what the master
    lacks and at most what was in flight besides.
    """
    mount = make_mount()
    digest, stored = upload_with_death_between(mount, master, mount.kill, 1024)

    mount.start()
    mount.wait_durable()

    assert mount.status()["sent_bytes"] <= 1024 * MIB - stored + IN_FLIGHT_BYTES_MAX
    other = make_mount("other")
    with (run_in(other) / "big").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest


def test_upload_goes_on_where_it_stood_when_the_master_was_killed(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """After kill -9 of the master in the middle of an upload of 1 GiB, the mount sends what it lacks and at most
    what was in flight besides.
    """
    mount = make_mount()
    digest, _ = upload_with_death_between(mount, master, master.restart, 1024)

    mount.wait_durable()

    assert mount.status()["sent_bytes"] <= 1024 * MIB + IN_FLIGHT_BYTES_MAX
    other = make_mount("other")
    with (run_in(other) / "big").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest


def test_waiting_for_a_path_returns_when_it_is_durable(make_mount: MakeMount, master: MasterProcess) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    content = random_bytes(20 * MIB)
    (run / "big").write_bytes(content)

    mount.wait_durable(run / "big")

    assert stored_bytes(master) == 20 * MIB
    assert mount.status(run / "big")["pending_count"] == 0


def test_status_names_what_is_staged_while_the_master_is_away(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    (run / "warm").touch()
    mount.wait_durable()
    master.kill()
    (run / "staged.bin").write_bytes(b"x" * 1000)

    pending = {entry["path"]: entry for entry in mount.status()["pending"]}

    entry = pending[f"user-123/training/{RUN}/staged.bin"]
    assert entry["size_bytes"] == 1000
    assert entry["state"] in ("staged", "uploading")
