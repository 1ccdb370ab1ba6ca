"""The journal's rows: what is put comes back, in an order that recovery can follow; what is unusable is refused."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudai_fusefs.journal import Journal
from cloudai_fusefs.journal_errors import JournalDamaged, JournalTooNew
from cloudai_fusefs.journal_rows import JournalRecord, RemovalRecord
from cloudai_fusefs.journal_schema import SCHEMA_VERSION
from cloudai_fusefs.node import FILE


def record(node_id: int, path: bytes = b"f", *, sequence: int = 1) -> JournalRecord:
    return JournalRecord(
        node_id=node_id,
        user="user-123",
        task_id="t-1",
        sequence=sequence,
        kind=FILE,
        path=path,
        parent_node_id=(1 << 63) - 1,
        place=True,
        has_content=False,
        mode=0o100,
        uid=(1 << 32) - 1,
        gid=7,
        mtime_ns=-1,
        ctime_ns=1_700_000_000_123_456_789,
        atime_ns=0,
        symlink_target=b"\xff\n",
        base=b"\0\1",
        base_generation=3,
        committed=b"digest",
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, for a file `filler` that takes what is free."""
    with disk_of(tmp_path / "disk", "256k") as directory:
        yield directory


@contextmanager
def disk_of(directory: Path, size: str) -> Iterator[Path]:
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with closing(Journal(path)) as opened:
        yield opened


def test_row_comes_back_with_every_field(journal: Journal, path: Path) -> None:
    put = record(5, b"a\xff/b\n")
    journal.put(put)
    journal.close()

    with closing(Journal(path)) as reopened:
        assert reopened.records() == [put]
    assert put.written_at_ns > 1_700_000_000_000_000_000


@pytest.mark.parametrize("xattrs", [b"", b"\n\1\0", None])
def test_row_knows_extended_attributes_from_none_and_from_not_a_word_of_them(
    journal: Journal, path: Path, xattrs: bytes | None
) -> None:
    journal.put(replace(record(5), xattrs=xattrs))
    journal.close()

    with closing(Journal(path)) as reopened:
        assert [row.xattrs for row in reopened.records()] == [xattrs]


@pytest.mark.parametrize(("written", "damaged"), [(b"x", b"y"), (b"x", None), (None, b""), (b"", None)])
def test_damaged_extended_attributes_are_found(
    journal: Journal, path: Path, written: bytes | None, damaged: bytes | None
) -> None:
    journal.put(replace(record(5), xattrs=written))
    journal.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE pending SET xattrs = ?", (damaged,))

    with pytest.raises(JournalDamaged):
        Journal(path)


def test_row_put_again_replaces_the_earlier_one(journal: Journal) -> None:
    journal.put(record(5, b"old"))
    journal.put(record(5, b"new"))

    assert [row.path for row in journal.records()] == [b"new"]


def test_removed_row_is_gone_and_removing_it_again_does_nothing(journal: Journal) -> None:
    journal.put(record(5))
    journal.put(record(6))

    journal.remove(5)
    journal.remove(5)

    assert [row.node_id for row in journal.records()] == [6]


def test_rows_come_in_the_order_of_their_sequence(journal: Journal) -> None:
    for node_id, sequence in ((7, 3), (9, 1), (8, 2)):
        journal.put(record(node_id, sequence=sequence))

    assert [row.node_id for row in journal.records()] == [9, 8, 7]


def test_directory_comes_before_a_file_that_was_made_earlier_and_moved_into_it(journal: Journal) -> None:
    journal.put(record(7, b"d/f", sequence=1))
    journal.put(record(8, b"d", sequence=2))

    assert [row.path for row in journal.records()] == [b"d", b"d/f"]


def test_rows_survive_a_process_that_never_closed_the_journal(journal: Journal, path: Path) -> None:
    journal.put(record(5))

    # A second connection sees what kill -9 would leave in the page cache.
    with closing(Journal(path)) as other:
        assert [row.node_id for row in other.records()] == [5]


def test_journal_of_a_newer_version_is_refused_and_left_alone(journal: Journal, path: Path) -> None:
    journal.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()

    with pytest.raises(JournalTooNew):
        Journal(path)

    assert path.read_bytes() == before


def test_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)

    with pytest.raises(JournalDamaged):
        Journal(path)

    assert path.read_bytes() == b"not a database at all" * 100


def test_damaged_journal_is_refused(journal: Journal, path: Path) -> None:
    for node_id in range(5, 500):
        journal.put(record(node_id, b"p" * 200))
    journal.close()
    size_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size_bytes - 2 * 4096))

    with pytest.raises(JournalDamaged):
        Journal(path)


async def test_checkpoint_moves_the_log_into_the_database(journal: Journal, path: Path) -> None:
    log = path.with_name(path.name + "-wal")
    journal.put(record(5))
    assert log.stat().st_size > 0

    await journal.checkpoint()

    assert log.stat().st_size == 0
    assert [row.node_id for row in journal.records()] == [5]
    journal.put(record(6))
    assert [row.node_id for row in journal.records()] == [5, 6]


async def test_checkpoint_has_moved_the_log_before_it_keeps_writers_out(
    journal: Journal, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes meanwhile waits for what came since, not for all that the log holds."""
    moved: list[list[int]] = []

    class Watched(sqlite3.Connection):
        def execute(self, statement: str, /, *values: Any) -> sqlite3.Cursor:
            if "TRUNCATE" in statement:
                # By another process: to close the file in this one would give up SQLite's locks.
                subprocess.run(["cp", path, tmp_path / "without-its-log.sqlite"], check=True)
                with closing(Journal(tmp_path / "without-its-log.sqlite")) as copy:
                    moved.append([row.node_id for row in copy.records()])
            return super().execute(statement, *values)

    journal.put(record(5))
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda database, **options: connect(database, **options, factory=Watched)
    )
    await journal.checkpoint()

    assert moved == [[5]]


def removal(node_id: int, removed_at_ns: int) -> RemovalRecord:
    return RemovalRecord(
        node_id=node_id,
        user="user-123",
        task_id="t-1",
        parent_node_id=(1 << 63) - 1,
        name=b"\xff\n",
        generation=3,
        removed_at_ns=removed_at_ns,
    )


def test_removals_come_back_in_their_order_and_go_together(journal: Journal, path: Path) -> None:
    for node_id, removed_at_ns in ((7, 1), (5, 2), (6, 3)):
        journal.put_removal(removal(node_id, removed_at_ns))
    journal.close()

    with closing(Journal(path)) as again:
        assert again.removals() == [removal(7, 1), removal(5, 2), removal(6, 3)]
        again.remove_removals([5, 7, 99])
        assert again.removals() == [removal(6, 3)]


def test_damaged_removal_is_found(journal: Journal, path: Path) -> None:
    journal.put_removal(removal(5, 1))
    journal.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE removals SET name = ?", (b"another",))

    with pytest.raises(JournalDamaged):
        Journal(path)


def test_full_disk_refuses_rows_and_removals_until_it_has_room_again(small_disk: Path) -> None:
    with closing(Journal(small_disk / "journal.sqlite")) as journal:
        journal.put(record(5))
        fill(small_disk)

        with pytest.raises(OSError, match="journal cannot be written") as refused_row:
            journal.put(replace(record(6), base=bytes(20_000)))
        with pytest.raises(OSError, match="journal cannot be written") as refused_removal:
            journal.remove(5)

        assert refused_row.value.errno == refused_removal.value.errno == errno.ENOSPC
        assert [row.node_id for row in journal.records()] == [5]
        (small_disk / "filler").unlink()
        journal.put(record(7))
        assert [row.node_id for row in journal.records()] == [5, 7]


def test_full_disk_that_keeps_the_logs_index_from_growing_is_told_as_one(tmp_path: Path) -> None:
    """SQLite makes an I/O error of it, where each other write says that the disk is full."""
    refusals: list[tuple[int | None, str]] = []
    with disk_of(tmp_path / "disk", "32m") as disk, closing(Journal(disk / "journal.sqlite")) as journal:
        log = disk / "journal.sqlite-wal"
        while log.stat().st_size < INDEX_GROWTH_BYTES - 4 * PAGE_BYTES:
            journal.put(record(5))
        fill(disk)
        while log.stat().st_size < INDEX_GROWTH_BYTES + PAGE_BYTES and len(refusals) < 20:
            try:
                journal.put(record(5))
            except OSError as refusal:
                refusals.append((refusal.errno, getattr(refusal.__cause__, "sqlite_errorname", "")))
                os.truncate(disk / "filler", (disk / "filler").stat().st_size - PAGE_BYTES)

    assert {number for number, _ in refusals} == {errno.ENOSPC}
    assert "SQLITE_IOERR_SHMSIZE" in {name for _, name in refusals}


PAGE_BYTES = 4096
INDEX_GROWTH_BYTES = 32 + 4062 * (24 + PAGE_BYTES)
"""The first part of the log's index holds so many pages."""


async def test_checkpoint_on_a_full_disk_is_refused_and_loses_nothing(small_disk: Path) -> None:
    with closing(Journal(small_disk / "journal.sqlite")) as journal:
        for node_id in range(5, 15):
            journal.put(replace(record(node_id), base=bytes(5_000)))
        fill(small_disk)

        with pytest.raises(OSError, match="journal cannot be written"):
            await journal.checkpoint()

        assert [row.node_id for row in journal.records()] == list(range(5, 15))


def test_what_is_put_together_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path)) as journal, closing(Journal(path)) as observer:
        journal.put(record(1))
        with journal.together():
            journal.put(record(2))
            journal.remove(1)
            assert [row.node_id for row in observer.records()] == [1]
        assert [row.node_id for row in observer.records()] == [2]

        with pytest.raises(ZeroDivisionError), journal.together():
            journal.put(record(3))
            journal.remove(2)
            raise ZeroDivisionError
        assert [row.node_id for row in observer.records()] == [2]


def test_full_disk_refuses_all_of_what_is_put_together(small_disk: Path) -> None:
    with closing(Journal(small_disk / "journal.sqlite")) as journal:
        journal.put(record(1))
        fill(small_disk)
        with pytest.raises(OSError, match="journal") as refusal, journal.together():
            for number in range(2, 200):
                journal.put(record(number, b"x" * 1000))
        assert refusal.value.errno == errno.ENOSPC
        assert [row.node_id for row in journal.records()] == [1]

        (small_disk / "filler").unlink()
        with journal.together():
            journal.put(record(2))
        assert [row.node_id for row in journal.records()] == [1, 2]


@pytest.mark.parametrize("has_log", [False, True], ids=["anew", "after a death"])
def test_another_process_that_looks_into_it_takes_nothing_away(tmp_path: Path, has_log: bool) -> None:
    path = tmp_path / "journal"
    if has_log:
        with closing(Journal(tmp_path / "dying")) as dying:
            dying.put(record(1))
            for left in tmp_path.glob("dying*"):
                shutil.copy(left, left.with_name(left.name.replace("dying", "journal")))
    with closing(Journal(path)) as journal:
        journal.put(record(1))
        journal.sync_now()

        subprocess.run(["sqlite3", path, "SELECT count(*) FROM pending"], check=True, capture_output=True)

        assert path.with_name("journal-wal").exists()
        assert path.with_name("journal-shm").exists()
        journal.put(record(2))
    with closing(Journal(path)) as reopened:
        assert {found.node_id for found in reopened.records()} == {1, 2}


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """So many files can be opened, and then no more."""
    first_free = os.open("/dev/null", os.O_RDONLY)
    os.close(first_free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_checkpoint_without_a_descriptor_left_is_refused_as_by_a_disk(journal: Journal) -> None:
    """A mount goes on without: an error of SQLite's own would end it."""
    journal.put(record(5))

    with descriptors_left(0), pytest.raises(OSError, match="journal cannot be written"):
        await journal.checkpoint()

    assert [row.node_id for row in journal.records()] == [5]


@pytest.mark.parametrize("count", range(12))
def test_journal_without_enough_descriptors_is_refused_as_by_a_disk_and_keeps_none(
    journal: Journal, path: Path, count: int
) -> None:
    journal.put(record(5))
    journal.close()
    before = os.listdir("/proc/self/fd")

    with descriptors_left(count), suppress(OSError), closing(Journal(path)):
        pass

    assert os.listdir("/proc/self/fd") == before
    with closing(Journal(path)) as again:
        assert [row.node_id for row in again.records()] == [5]


@pytest.mark.parametrize("count_after", [0, 1, 2])
def test_what_a_full_disk_refused_does_not_come_back_after_a_death(tmp_path: Path, count_after: int) -> None:
    """SQLite has written all of it to its log, the commit as well, when the log's index cannot grow."""
    left = tmp_path / "left"
    left.mkdir()
    last_refusal = ""
    with disk_of(tmp_path / "disk", "32m") as disk, closing(Journal(disk / "journal.sqlite")) as journal:
        log = disk / "journal.sqlite-wal"
        while log.stat().st_size < INDEX_GROWTH_BYTES - 4 * PAGE_BYTES:
            journal.put(record(5))
        fill(disk)
        for _ in range(200):
            if last_refusal == "SQLITE_IOERR_SHMSIZE":
                break
            try:
                with journal.together():
                    journal.remove(5)
                    for node_id in range(6, 60):
                        journal.put(replace(record(node_id), base=bytes(2000)))
            except OSError as refusal:
                last_refusal = getattr(refusal.__cause__, "sqlite_errorname", "")
                os.truncate(disk / "filler", (disk / "filler").stat().st_size - PAGE_BYTES)
        assert last_refusal == "SQLITE_IOERR_SHMSIZE"
        for _ in range(count_after):
            journal.put(record(5))
        # By another process: to close the files in this one would give up SQLite's locks.
        subprocess.run(["cp", "-p", *disk.glob("journal.sqlite*"), left], check=True)

    with closing(Journal(left / "journal.sqlite")) as reopened:
        assert [row.node_id for row in reopened.records()] == [5]


def test_row_whose_removal_a_full_disk_refused_is_there_after_a_death(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    refusals: list[str] = []
    with disk_of(tmp_path / "disk", "32m") as disk, closing(Journal(disk / "journal.sqlite")) as journal:
        log = disk / "journal.sqlite-wal"
        journal.put(record(7))
        while log.stat().st_size < INDEX_GROWTH_BYTES:
            journal.put(record(5))
        fill(disk)
        while "SQLITE_IOERR_SHMSIZE" not in refusals and len(refusals) < 20:
            with pytest.raises(OSError, match="journal cannot be written") as refused:
                journal.remove(7)
            refusals.append(getattr(refused.value.__cause__, "sqlite_errorname", ""))
            os.truncate(disk / "filler", (disk / "filler").stat().st_size - PAGE_BYTES)
        subprocess.run(["cp", "-p", *disk.glob("journal.sqlite*"), left], check=True)

    with closing(Journal(left / "journal.sqlite")) as reopened:
        assert [row.node_id for row in reopened.records()] == [5, 7]


@pytest.mark.parametrize("is_together", [False, True])
def test_lock_of_another_is_waited_for_once(journal: Journal, path: Path, *, is_together: bool) -> None:
    """Nothing was written: there is nothing to be cut off the log, for which it would have to be waited again."""
    statements: list[str] = []
    journal._database.execute("PRAGMA busy_timeout = 0")
    journal._database.set_trace_callback(statements.append)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(OSError, match="locked"), journal.together() if is_together else nullcontext():
            journal.put(record(5))

    assert "BEGIN IMMEDIATE" not in statements


def test_journal_that_sqlite_could_open_for_reading_alone_is_refused(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does without a word where the system has no file left for a moment: each row would be refused later."""
    journal.close()
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3,
        "connect",
        lambda database, **options: connect(f"file:{database}?mode=ro", uri=True, **options),
    )

    with pytest.raises(OSError, match="readonly"):
        Journal(path)
