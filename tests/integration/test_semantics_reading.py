"""The reading promises: how much moves, what is verified, what is local."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import MountProcess, wait_until

MIB = 1024 * 1024
CHUNK = 4 * MIB
RUN = "2026-11-20_15-04-05"

MakeMount = Callable[..., MountProcess]


def run_in(mount: MountProcess) -> Path:
    return mount.mount_point / "user-123" / "training" / RUN


def fetched_bytes(mount: MountProcess) -> int:
    return int(mount.status()["fetched_bytes"])


def write_run(mount: MountProcess, files: dict[str, bytes], *, seal: bool = True) -> None:
    """A run with these files, at the master."""
    run = mount.make_run(RUN)
    for name, content in files.items():
        (run / name).write_bytes(content)
    mount.wait_durable()
    if seal:
        mount.seal(run)


def read_at(path: Path, offset: int, length: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def content_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def chunk_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and len(path.name) == 64]


def test_reading_in_the_middle_of_a_gigabyte_moves_one_chunk(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R1. Opening a file moves none of it; a read moves the chunks that it covers, at most 4 MiB each, and a
    sequential reader a few more ahead of it.
    """
    mount = make_mount()
    run = mount.make_run(RUN)
    marker = os.urandom(4096)
    with (run / "big").open("wb") as file:
        file.truncate(1024 * MIB)
        file.seek(512 * MIB)
        file.write(marker)
    mount.wait_durable()
    other = make_mount("other")
    path = run_in(other) / "big"

    assert path.stat().st_size == 1024 * MIB
    with path.open("rb"):
        assert fetched_bytes(other) == 0
    assert read_at(path, 512 * MIB, 4096) == marker

    assert fetched_bytes(other) == CHUNK


def test_chunk_damaged_at_the_master_is_eio_and_named_in_the_log(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R4. A chunk that is damaged at the master is EIO to the reader, and a line in the log names the file and the
    chunk.
    """
    mount = make_mount()
    write_run(mount, {"model": os.urandom(CHUNK) + b"tail"})
    (victim,) = [path for path in chunk_files(master.data_dir / "chunks") if path.stat().st_size == CHUNK]
    damage(victim)
    other = make_mount("other")
    path = run_in(other) / "model"

    with pytest.raises(OSError, match="Input/output error"):
        read_at(path, 0, 4096)
    assert read_at(path, CHUNK, 4) == b"tail"

    (line,) = [line for line in other.log_text().splitlines() if "damaged" in line and "ERROR" in line][:1]
    assert f"training/{RUN}/model" in line
    assert "chunk" in line


def test_chunk_lost_at_the_master_is_healed_by_who_writes_it_again(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """D7. A commit names only chunks that the master has on disk."""
    mount = make_mount()
    content = os.urandom(CHUNK)
    write_run(mount, {"model": content}, seal=False)
    (victim,) = chunk_files(master.data_dir / "chunks")
    damage(victim)
    other = make_mount("other")
    with pytest.raises(OSError, match="Input/output error"):
        (run_in(other) / "model").read_bytes()

    (run_in(mount) / "again").write_bytes(content)
    mount.wait_durable()

    assert (run_in(other) / "again").read_bytes() == content
    assert (run_in(other) / "model").read_bytes() == content


def test_chunk_missing_at_the_master_is_eio(make_mount: MakeMount, master: MasterProcess) -> None:
    mount = make_mount()
    write_run(mount, {"model": os.urandom(1 * MIB)})
    (victim,) = chunk_files(master.data_dir / "chunks")
    victim.unlink()
    other = make_mount("other")

    with pytest.raises(OSError, match="Input/output error"):
        (run_in(other) / "model").read_bytes()


def test_damaged_cache_file_is_dropped_and_fetched_again(make_mount: MakeMount) -> None:
    """R2. Each chunk is verified against its digest when it arrives and when it comes from the disk cache.
    R3. A damaged file in the disk cache is dropped and fetched again.
    """
    mount = make_mount()
    content = os.urandom(CHUNK)
    write_run(mount, {"model": content})
    other = make_mount("other")
    assert (run_in(other) / "model").read_bytes() == content
    other.umount()
    (cached,) = chunk_files(other.cache_dir / "chunks")
    damage(cached)

    other.start()

    assert (run_in(other) / "model").read_bytes() == content
    assert fetched_bytes(other) == CHUNK


def test_what_was_read_once_is_local_after_a_remount_with_the_master_gone(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R5. What was read once is read from the disk cache after a remount; of a sealed run also while the master is
    away.
    """
    mount = make_mount()
    contents = {"model": os.urandom(9 * MIB), "summary": b"{}", "empty": b""}
    write_run(mount, contents)
    other = make_mount("other")
    for name, content in contents.items():
        assert (run_in(other) / name).read_bytes() == content
    other.umount()
    other.start()
    master.kill()

    for name, content in contents.items():
        assert (run_in(other) / name).read_bytes() == content

    assert fetched_bytes(other) == 0


def test_read_of_an_open_run_after_a_remount_fetches_nothing_again(make_mount: MakeMount) -> None:
    """R5. What was read once is read from the disk cache after a remount; of a sealed run also while the master is
    away.
    """
    mount = make_mount()
    content = os.urandom(9 * MIB)
    write_run(mount, {"model": content}, seal=False)
    other = make_mount("other")
    assert (run_in(other) / "model").read_bytes() == content
    other.umount()

    other.start()

    assert (run_in(other) / "model").read_bytes() == content
    assert fetched_bytes(other) == 0


def test_read_waits_for_the_master_at_most_timeo_and_the_mount_recovers(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R6. A read waits for an absent master at most `timeo` and then fails with EIO; the mount works again by itself
    when the master is back.
    """
    mount = make_mount()
    content = os.urandom(1 * MIB)
    write_run(mount, {"model": content})
    other = make_mount("other", options="insecure,timeo=2")
    path = run_in(other) / "model"
    assert path.stat().st_size == MIB
    master.kill()

    began = time.monotonic()
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
    assert 1.5 < time.monotonic() - began < 10
    master.start()

    wait_until(lambda: content_or_none(path) == content, "the mount's recovery", seconds_max=10)


def test_waiting_readers_do_not_keep_a_cached_stat_waiting(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount()
    files = {f"file{number}": os.urandom(100_000) for number in range(30)}
    write_run(mount, files)
    other = make_mount("other", options="insecure,timeo=3")
    run = run_in(other)
    assert len(list(run.iterdir())) == 30
    master.kill()
    readers = [threading.Thread(target=content_or_none, args=[run / name]) for name in files]
    for reader in readers:
        reader.start()
    began = time.monotonic()

    for name in files:
        assert (run / name).stat().st_size == 100_000

    assert time.monotonic() - began < 1.0
    for reader in readers:
        reader.join(20)


def test_read_goes_on_through_a_restart_of_the_master(make_mount: MakeMount, master: MasterProcess) -> None:
    mount = make_mount()
    content = os.urandom(1 * MIB)
    write_run(mount, {"model": content})
    other = make_mount("other")
    path = run_in(other) / "model"
    assert path.stat().st_size == MIB
    master.kill()
    results: list[bytes] = []
    reader = threading.Thread(target=lambda: results.append(path.read_bytes()))
    reader.start()
    time.sleep(0.5)  # the reader has asked, and nobody answers

    master.start()
    reader.join(20)

    assert results == [content]


def test_staged_disk_cache_and_state_are_their_owners_alone(make_mount: MakeMount) -> None:
    mount = make_mount()
    write_run(mount, {"model": os.urandom(MIB)}, seal=False)
    assert (run_in(mount) / "model").stat().st_size == MIB

    for root in (mount.state_dir, mount.cache_dir):
        for path in root.rglob("*"):
            assert path.lstat().st_mode & 0o077 == 0, path
