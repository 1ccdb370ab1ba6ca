"""The reading promises: how much moves, what is verified, what is local."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until
from support.other_kinds import OTHER_KINDS, put_in_place
from support.tools import run_tool

MIB = 1024 * 1024
CHUNK = 4 * MIB
BLOCK = 64 * 1024


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


def test_reading_in_the_middle_of_a_gigabyte_moves_one_block(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R1. Opening a file moves none of it; a read moves the chunks that it covers, at most 4 MiB each, and where reads
    jump about the blocks of 64 KiB around each. A sequential reader moves a few chunks more ahead of it, a reader of
    small files the next ones of their directory.
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

    assert 4096 <= fetched_bytes(other) <= BLOCK


def test_chunk_damaged_at_the_master_is_eio_and_named_in_the_log(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R4. A chunk that is damaged at the master is EIO to the reader, and a line in the log names the file and the
    chunk.
    """
    mount = make_mount()
    content = os.urandom(CHUNK) + b"tail"
    write_run(mount, {"model": content})
    (victim,) = [path for path in chunk_files(master.data_dir / "chunks") if path.stat().st_size == CHUNK]
    damage(victim)
    other = make_mount("other")
    path = run_in(other) / "model"

    assert read_at(path, 0, 4096) == content[:4096]  # of a block that is not damaged
    with pytest.raises(OSError, match="Input/output error"):
        read_at(path, CHUNK // 2, 4096)
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
    assert read_at(path, CHUNK, 4) == b"tail"

    (line,) = [line for line in other.log_text().splitlines() if "damaged" in line and "ERROR" in line][:1]
    assert f"training/{RUN}/model" in line
    assert "chunk" in line


def test_chunk_lost_at_the_master_is_healed_by_who_writes_it_again(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R9. A chunk that was damaged or lost at the master is whole again once somebody writes those bytes again."""
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

    wait_until(lambda: content_or_none(run_in(other) / "again") == content, "the second file elsewhere")
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
    """R2. Each chunk is verified against its digest when it arrives and when it comes from the disk cache; a part of
    one against the digests of its blocks, which the master made when it verified the chunk.
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


def test_reads_hang_at_nothing_that_lies_in_the_cache_in_place_of_a_file(make_mount: MakeMount) -> None:
    mount = make_mount()
    files = {f"model-{kind}": os.urandom(CHUNK) for kind in OTHER_KINDS}
    write_run(mount, files)
    other = make_mount("other")
    for kind in OTHER_KINDS:
        path = run_in(other) / f"model-{kind}"
        assert path.read_bytes() == files[path.name]
    other.umount()
    cached = chunk_files(other.cache_dir / "chunks")
    sealed = [path for path in (other.cache_dir / "sealed").rglob("*") if path.is_file()]
    for kind, path in zip(OTHER_KINDS, cached, strict=True):
        put_in_place(path, kind)
    for path in sealed:
        put_in_place(path, "fifo")

    other.start()

    for name, content in files.items():
        assert (run_in(other) / name).read_bytes() == content
    assert fetched_bytes(other) == len(OTHER_KINDS) * CHUNK


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
    other = make_mount("other", options="insecure,timeo=60")
    run = run_in(other)
    assert len(list(run.iterdir())) == 30
    master.kill()
    readers = [threading.Thread(target=content_or_none, args=[run / name]) for name in files]
    for reader in readers:
        reader.start()
    wait_until(lambda: other.status()["counters"]["memory_misses"] >= len(files), "all readers' questions")

    for name in files:
        assert (run / name).stat().st_size == 100_000

    assert all(reader.is_alive() for reader in readers)
    master.start()
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
    wait_until(lambda: other.status()["counters"]["disk_misses"] > 0, "the reader's question")

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


SIXTEEN_CHUNKS = 16 * CHUNK


def random_places(count: int) -> list[int]:
    """Offsets of reads of 4 KiB in a file of sixteen chunks, each far from the one before and in every chunk alike."""
    order = random.Random(count)
    return [number * 5 % 16 * CHUNK + order.randrange(CHUNK - 4096) for number in range(count)]


def read_places(path: Path, content: bytes, places: list[int]) -> None:
    """Reads 4 KiB at each place and compares."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for place in places:
            assert os.pread(descriptor, 4096, place) == content[place : place + 4096], place
    finally:
        os.close(descriptor)


def block_files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.blocks"))


def test_random_reads_move_the_blocks_around_them_and_are_local_after_a_remount(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R5. What was read once is read from the disk cache after a remount; of a sealed run also while the master is
    away.
    """
    mount = make_mount()
    content = random.Random(1).randbytes(SIXTEEN_CHUNKS)
    write_run(mount, {"model": content})
    other = make_mount("other")
    path = run_in(other) / "model"
    few = random_places(48)

    read_places(path, content, few)

    # Of those that lie across the edge of two blocks, both.
    assert fetched_bytes(other) <= 2 * 48 * BLOCK < SIXTEEN_CHUNKS / 10
    other.umount()
    other.start()
    master.kill()
    read_places(path, content, few)
    assert fetched_bytes(other) == 0
    counters = other.status()["counters"]
    assert counters["disk_hits"] > 0
    assert counters["damaged_chunks"] == 0


def test_a_thousand_random_reads_move_a_file_little_more_than_once(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount()
    content = random.Random(2).randbytes(SIXTEEN_CHUNKS)
    write_run(mount, {"model": content})
    other = make_mount("other")
    path = run_in(other) / "model"
    many = random_places(1000)

    read_places(path, content, many)

    assert fetched_bytes(other) <= 1.5 * SIXTEEN_CHUNKS
    other.umount()
    other.start()
    master.kill()
    read_places(path, content, many)
    assert fetched_bytes(other) == 0


@pytest.mark.parametrize("damage", ["data", "digests", "truncated"])
def test_damaged_file_of_blocks_is_fetched_again(
    make_mount: MakeMount, master: MasterProcess, damage: str
) -> None:
    """R3. A damaged file in the disk cache is dropped and fetched again."""
    mount = make_mount()
    content = random.Random(3).randbytes(SIXTEEN_CHUNKS)
    write_run(mount, {"model": content})
    other = make_mount("other")
    path = run_in(other) / "model"
    places = random_places(16)
    read_places(path, content, places)
    other.umount()
    cached = block_files(other.cache_dir)
    assert len(cached) == 16
    for file in cached:
        with file.open("r+b") as stream:
            if damage == "truncated":
                stream.truncate(CHUNK)
                continue
            if damage == "digests":
                stream.seek(CHUNK)
            else:
                # All that is there: which of the chunks it is its name does not say.
                stream.seek(os.lseek(stream.fileno(), 0, os.SEEK_DATA))
            place = stream.tell()
            stored = stream.read(4096)
            stream.seek(place)
            stream.write(bytes(byte ^ 0xFF for byte in stored))

    other.start()
    read_places(path, content, places)

    assert 16 * BLOCK <= fetched_bytes(other) <= 2 * 16 * BLOCK
    assert other.status()["counters"]["damaged_chunks"] == 0
    other.umount()
    other.start()
    master.kill()
    read_places(path, content, places)
    assert fetched_bytes(other) == 0


def test_small_files_read_in_order_take_few_calls_and_are_local_after_a_remount(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R5. What was read once is read from the disk cache after a remount; of a sealed run also while the master is
    away.
    """
    mount = make_mount()
    files = {f"{number:04}.json": os.urandom(1000) for number in range(200)}
    write_run(mount, files)
    other = make_mount("other")
    run = run_in(other)

    for name, content in files.items():
        assert (run / name).read_bytes() == content

    counters = other.status()["counters"]
    assert counters["fetched_batches"] <= 10
    assert counters["fetched_chunks"] == 200
    assert counters["fetched_bytes"] == 200 * 1000
    other.umount()
    other.start()
    master.kill()
    for name, content in files.items():
        assert (run / name).read_bytes() == content
    assert fetched_bytes(other) == 0


def test_what_was_read_just_before_an_unmount_is_local_after_it(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """R5. What was read once is read from the disk cache after a remount; of a sealed run also while the master is
    away.
    """
    mount = make_mount()
    large = random.Random(4).randbytes(CHUNK)
    files = {f"{number:04}.json": os.urandom(1000) for number in range(20)}
    write_run(mount, {"large": large} | files)
    other = make_mount("other")
    run = run_in(other)
    assert (run / "large").stat().st_size == CHUNK

    read_places(run / "large", large, [5 * BLOCK])
    for name, content in files.items():
        assert (run / name).read_bytes() == content
    pid = other.pid
    run_tool("umount", other.mount_point)  # at once: what waits for the disk cache has not been written
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the daemon's end")

    other.start()
    master.kill()
    read_places(run / "large", large, [5 * BLOCK])
    for name, content in files.items():
        assert (run / name).read_bytes() == content
    assert fetched_bytes(other) == 0
