"""A damaged journal: it is set aside, what can be read goes on, and no staged byte is deleted or renamed wrongly."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudai_fusefs.damaged_journal import read_what_is_left
from cloudai_fusefs.journal import Journal
from cloudai_fusefs.journal_errors import JournalTooNew
from cloudai_fusefs.journal_log import mark_of_open, mark_open, note_moved
from cloudai_fusefs.journal_rescue import JOURNAL_NAME, directories_set_aside, open_journal
from cloudai_fusefs.journal_rows import JournalRecord, RemovalRecord, StrayRecord
from cloudai_fusefs.journal_schema import SCHEMA_VERSION
from cloudai_fusefs.node import FILE
from cloudai_fusefs.remains import has_remains
from support.lost_power import EARLIER_BOOT
from support.small_disk import fill, small_disk

TASK_ID = "t-1"
ROW_COUNT = 60
"""Some pages of rows, with a page above them."""

REMOVAL = RemovalRecord(
    node_id=901,
    user="user-123",
    task_id=TASK_ID,
    parent_node_id=77,
    name=b"removed",
    generation=2,
    removed_at_ns=1_700_000_000_123_456_789,
)

Rows = dict[int, JournalRecord]


def record(node_id: int) -> JournalRecord:
    return JournalRecord(
        node_id=node_id,
        user="user-123",
        task_id=TASK_ID,
        sequence=node_id,
        kind=FILE,
        path=b"directory/file-%d" % node_id,
        parent_node_id=77,
        place=True,
        has_content=True,
        mode=0o644,
        uid=1000,
        gid=1000,
        mtime_ns=1_700_000_000_123_456_789,
        ctime_ns=1,
        atime_ns=2,
        base=bytes(200),
        xattrs=None if node_id % 3 else bytes(node_id % 2),
    )


def make_state(directory: Path) -> Rows:
    """A state directory whose mount was killed: most of its rows in the database, the last ones in the log."""
    (directory / "staged" / TASK_ID).mkdir(parents=True)
    rows = {node_id: record(node_id) for node_id in range(1, ROW_COUNT + 1)}
    with closing(Journal(directory / "living")) as journal:
        for row in list(rows.values())[: ROW_COUNT * 2 // 3]:
            journal.put(row)
        with closing(sqlite3.connect(directory / "living")) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for row in list(rows.values())[ROW_COUNT * 2 // 3 :]:
            journal.put(row)
        journal.put_stray(StrayRecord(node_id=900, user="user-123", task_id=TASK_ID, after_node_id=3))
        journal.put_removal(REMOVAL)
        for suffix in ("", "-wal", "-shm", ".open"):
            shutil.copy2(directory / f"living{suffix}", directory / f"{JOURNAL_NAME}{suffix}")
    note_moved(directory / JOURNAL_NAME)  # as Journal.checkpoint does
    (directory / "living").unlink()
    for node_id in rows:
        (directory / "staged" / TASK_ID / str(node_id)).write_bytes(content_of(node_id))
    return rows


def content_of(node_id: int) -> bytes:
    return b"bytes of %d" % node_id


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    directory = tmp_path_factory.mktemp("whole")
    return directory, make_state(directory)


@pytest.fixture
def damaged(whole: tuple[Path, Rows], tmp_path: Path) -> tuple[Path, Rows]:
    """A copy, to be damaged."""
    directory = tmp_path / "state"
    shutil.copytree(whole[0], directory)
    return directory, whole[1]


def check_nothing_is_lost(directory: Path, rows: Rows) -> int:
    """Opens the journal; how many of the rows go on."""
    with closing(open_journal(directory)) as journal:
        found = {row.node_id: row for row in journal.records()}
        strays = journal.strays()
        removals = journal.removals()
    for node_id, row in found.items():
        assert row == rows[node_id]
    assert all((stray.node_id, stray.after_node_id) == (900, 3) for stray in strays)
    assert all(removal == REMOVAL for removal in removals)
    asides = directories_set_aside(directory)
    for node_id in rows:
        places = [directory] if node_id in found else asides
        copies = [place / "staged" / TASK_ID / str(node_id) for place in places]
        assert [path.read_bytes() for path in copies if path.exists()] == [content_of(node_id)]
    assert len(asides) == (len(found) < len(rows) or bool(asides))
    return len(found)


def flip(path: Path, offset_bytes: int, mask: int = 0x10) -> None:
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        byte = file.read(1)[0]
        file.seek(offset_bytes)
        file.write(bytes([byte ^ mask]))


def test_whole_journal_is_opened_as_it_is(damaged: tuple[Path, Rows]) -> None:
    directory, rows = damaged

    assert check_nothing_is_lost(directory, rows) == ROW_COUNT
    assert directories_set_aside(directory) == []


def fill_with_garbage(directory: Path) -> None:
    (directory / JOURNAL_NAME).write_bytes(os.urandom(50_000))


def cut_after_the_first_page(directory: Path) -> None:
    os.truncate(directory / JOURNAL_NAME, 6000)


def cut_to_nothing(directory: Path) -> None:
    os.truncate(directory / JOURNAL_NAME, 0)


def remove(directory: Path) -> None:
    (directory / JOURNAL_NAME).unlink()


def drop_the_table(directory: Path) -> None:
    with closing(sqlite3.connect(directory / JOURNAL_NAME)) as database:
        database.execute("DROP TABLE pending")


def blank_a_page_in_the_middle(directory: Path) -> None:
    with (directory / JOURNAL_NAME).open("r+b") as file:
        file.seek(3 * 4096)
        file.write(bytes(4096))


def change_a_path(directory: Path) -> None:
    """As a flipped bit would: SQLite has no checksum for it."""
    with closing(sqlite3.connect(directory / JOURNAL_NAME)) as database:
        database.execute("UPDATE pending SET path = CAST('directory/file-7' AS BLOB) WHERE node_id = 5")
        database.commit()


def damage_the_log(directory: Path) -> None:
    path = directory / f"{JOURNAL_NAME}-wal"
    flip(path, path.stat().st_size // 2)


def damage_the_beginning_of_the_log(directory: Path) -> None:
    flip(directory / f"{JOURNAL_NAME}-wal", 17)


def take_the_log_away(directory: Path) -> None:
    (directory / f"{JOURNAL_NAME}-wal").unlink()


def take_log_and_index_away(directory: Path) -> None:
    for path in directory.glob(f"{JOURNAL_NAME}-*"):
        path.unlink()


def empty_the_log(directory: Path) -> None:
    os.truncate(directory / f"{JOURNAL_NAME}-wal", 0)


def cut_the_log(directory: Path) -> None:
    log = directory / f"{JOURNAL_NAME}-wal"
    os.truncate(log, log.stat().st_size // 2)


def cut_the_log_and_take_its_index_away(directory: Path) -> None:
    cut_the_log(directory)
    (directory / f"{JOURNAL_NAME}-shm").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        fill_with_garbage,
        cut_after_the_first_page,
        cut_to_nothing,
        remove,
        drop_the_table,
        blank_a_page_in_the_middle,
        change_a_path,
        damage_the_log,
        damage_the_beginning_of_the_log,
        take_the_log_away,
        take_log_and_index_away,
        empty_the_log,
        cut_the_log,
        cut_the_log_and_take_its_index_away,
    ],
)
def test_damaged_journal_is_set_aside_with_the_files_whose_rows_are_lost(
    damaged: tuple[Path, Rows], damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    directory, rows = damaged
    damage(directory)

    check_nothing_is_lost(directory, rows)

    (aside,) = directories_set_aside(directory)
    assert str(aside) in caplog.text
    assert caplog.text.count("the journal is unusable") == 1
    assert "Nothing here is used any more" in (aside / "README").read_text()
    # The next mount finds nothing to say.
    caplog.clear()
    check_nothing_is_lost(directory, rows)
    assert caplog.text == ""


def test_rows_on_both_sides_of_an_unreadable_page_are_saved(damaged: tuple[Path, Rows]) -> None:
    directory, _ = damaged
    (directory / f"{JOURNAL_NAME}-wal").unlink()
    blank_a_page_in_the_middle(directory)

    with closing(open_journal(directory)) as journal:
        found = {row.node_id for row in journal.records()}

    assert 1 in found
    assert ROW_COUNT * 2 // 3 in found
    assert len(found) >= ROW_COUNT // 3


def test_journal_of_a_newer_version_stays_as_it_is(damaged: tuple[Path, Rows]) -> None:
    directory, _ = damaged
    with closing(sqlite3.connect(directory / JOURNAL_NAME)) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    mark_of_open(directory / JOURNAL_NAME).unlink()  # as whoever closes it does
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    with pytest.raises(JournalTooNew, match=f"version={SCHEMA_VERSION + 1}"):
        open_journal(directory)

    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_journal_that_cannot_be_opened_is_an_error_and_stays(damaged: tuple[Path, Rows]) -> None:
    directory, _ = damaged
    (directory / JOURNAL_NAME).unlink()
    (directory / JOURNAL_NAME).mkdir()

    with pytest.raises(IsADirectoryError):
        open_journal(directory)

    assert directories_set_aside(directory) == []


def test_removals_of_a_damaged_journal_go_on(damaged: tuple[Path, Rows]) -> None:
    directory, rows = damaged
    with closing(sqlite3.connect(directory / JOURNAL_NAME, isolation_level=None)) as database:
        database.execute("UPDATE pending SET path = ? WHERE node_id = 7", (b"another",))

    with closing(open_journal(directory)) as journal:
        assert {row.node_id for row in journal.records()} == rows.keys() - {7}
        assert journal.removals() == [REMOVAL]


def make_version_3(directory: Path, rows: Rows) -> None:
    with closing(Journal(directory / JOURNAL_NAME)) as journal:
        for row in rows.values():
            row.xattrs = None
            journal.put_again(row)
    with closing(sqlite3.connect(directory / JOURNAL_NAME, isolation_level=None)) as database:
        database.execute("ALTER TABLE pending DROP COLUMN xattrs")
        database.execute("ALTER TABLE strays DROP COLUMN places")
        database.execute("PRAGMA user_version = 3")


def test_rows_of_an_earlier_version_are_as_they_were_written(damaged: tuple[Path, Rows]) -> None:
    directory, rows = damaged
    rows = {node_id: replace(row) for node_id, row in rows.items()}
    make_version_3(directory, rows)

    assert check_nothing_is_lost(directory, rows) == ROW_COUNT
    assert directories_set_aside(directory) == []


def test_damaged_journal_of_an_earlier_version_is_read_without_being_upgraded(
    damaged: tuple[Path, Rows],
) -> None:
    directory, rows = damaged
    rows = {node_id: replace(row) for node_id, row in rows.items()}
    make_version_3(directory, rows)
    change_a_path(directory)

    found = read_what_is_left(directory / JOURNAL_NAME, ())

    assert found.records == {node_id: row for node_id, row in rows.items() if node_id != 5}


def test_log_whose_last_transaction_was_cut_short_is_whole(damaged: tuple[Path, Rows]) -> None:
    directory, rows = damaged
    path = directory / f"{JOURNAL_NAME}-wal"
    os.truncate(path, path.stat().st_size - 1000)
    mark_of_open(directory / JOURNAL_NAME).write_text(EARLIER_BOOT)  # the power was lost

    with closing(open_journal(directory)) as journal:
        assert {row.node_id for row in journal.records()} == rows.keys()
        assert len(journal.strays()) == 1
        assert journal.removals() == []  # it was the last
    assert directories_set_aside(directory) == []


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(["", "-wal"]), share=st.integers(0, 999_999), bit=st.integers(0, 7))
def test_flipped_bit_anywhere_changes_no_row_and_loses_no_staged_file(
    whole: tuple[Path, Rows],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    share: int,
    bit: int,
) -> None:
    directory = tmp_path_factory.mktemp("flip") / "state"
    shutil.copytree(whole[0], directory)
    path = directory / f"{JOURNAL_NAME}{name}"
    flip(path, share * path.stat().st_size // 1_000_000, 1 << bit)
    try:
        check_nothing_is_lost(directory, whole[1])
    except JournalTooNew:
        assert (directory / "staged" / TASK_ID / "1").exists()
    finally:
        shutil.rmtree(directory.parent)


def test_journal_that_was_closed_has_no_log_and_is_whole(damaged: tuple[Path, Rows]) -> None:
    directory, rows = damaged
    open_journal(directory).close()
    assert [path.name for path in directory.iterdir() if path.is_file()] == [JOURNAL_NAME]

    assert check_nothing_is_lost(directory, rows) == ROW_COUNT
    assert directories_set_aside(directory) == []


@pytest.mark.parametrize("first_look", [b"", bytes(32 * 1024)], ids=["empty", "not filled in"])
def test_journal_whose_next_first_look_died_is_whole(damaged: tuple[Path, Rows], first_look: bytes) -> None:
    """SQLite empties the index of a log before it fills it in anew."""
    directory, rows = damaged
    (directory / f"{JOURNAL_NAME}-shm").write_bytes(first_look)

    assert check_nothing_is_lost(directory, rows) == ROW_COUNT
    assert directories_set_aside(directory) == []


def test_log_that_was_kept_by_one_who_died_is_put_back(damaged: tuple[Path, Rows]) -> None:
    directory, rows = damaged
    log = directory / f"{JOURNAL_NAME}-wal"
    log.rename(directory / f"{JOURNAL_NAME}-wal.kept")

    assert check_nothing_is_lost(directory, rows) == ROW_COUNT
    assert directories_set_aside(directory) == []


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "no answer"), JournalTooNew(version=99)])
def test_start_that_fails_raises_no_alarm_at_the_next(
    damaged: tuple[Path, Rows], monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    directory, rows = damaged

    def fail(_: Journal) -> None:
        raise failure

    monkeypatch.setattr(Journal, "strays", fail)
    with pytest.raises(type(failure)):
        open_journal(directory)
    monkeypatch.undo()

    left = {path.name for path in directory.iterdir() if path.is_file()}
    assert left == {JOURNAL_NAME, f"{JOURNAL_NAME}-wal"}
    assert check_nothing_is_lost(directory, rows) == ROW_COUNT
    assert directories_set_aside(directory) == []


def test_look_with_sqlite_alone_is_no_damage(damaged: tuple[Path, Rows]) -> None:
    directory, rows = damaged
    with closing(sqlite3.connect(directory / JOURNAL_NAME)) as database:
        database.execute("SELECT * FROM pending").fetchall()
    assert not (directory / f"{JOURNAL_NAME}-wal").exists()

    assert check_nothing_is_lost(directory, rows) == ROW_COUNT
    assert directories_set_aside(directory) == []


async def test_log_that_is_gone_after_a_checkpoint_is_damage(tmp_path: Path) -> None:
    """The database is newer than when it was opened, but nobody else has moved the log into it."""
    with closing(open_journal(tmp_path)) as journal:
        (tmp_path / "staged" / TASK_ID).mkdir(parents=True)
        (tmp_path / "staged" / TASK_ID / "1").write_bytes(content_of(1))
        journal.put(record(2))
        await journal.checkpoint()
        journal.put(record(1))
        shutil.copytree(tmp_path, tmp_path / "left", copy_function=shutil.copy2)
    (tmp_path / "left" / f"{JOURNAL_NAME}-wal").unlink()

    open_journal(tmp_path / "left").close()

    (aside,) = directories_set_aside(tmp_path / "left")
    assert (aside / "staged" / TASK_ID / "1").read_bytes() == content_of(1)


def test_rescue_that_is_cut_off_is_begun_again(
    damaged: tuple[Path, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, rows = damaged
    cut_the_log(directory)
    new_path = directory / f"{JOURNAL_NAME}.new"

    def die(_: Journal, boot_id: str) -> None:
        for suffix in ("", "-wal", "-shm", ".open"):
            shutil.copy2(f"{new_path}{suffix}", tmp_of(directory) / f"{new_path.name}{suffix}")
        raise OSError(errno.ENOSPC, "full")

    tmp_of(directory).mkdir()
    monkeypatch.setattr(Journal, "note_boot", die)
    with pytest.raises(OSError, match="full"):
        open_journal(directory)
    monkeypatch.undo()
    for path in tmp_of(directory).iterdir():
        path.rename(directory / path.name)  # what a death in that place would have left
    for aside in directories_set_aside(directory):
        shutil.rmtree(aside)

    check_nothing_is_lost(directory, rows)


def tmp_of(directory: Path) -> Path:
    return directory.with_name("what-a-death-leaves")


def test_question_whether_anything_is_left_leaves_a_damaged_log_to_the_next_mount(
    damaged: tuple[Path, Rows],
) -> None:
    directory, rows = damaged
    mark_of_open(directory / JOURNAL_NAME).unlink()  # as after a loss of power
    damage_the_log(directory)

    assert has_remains(directory)

    assert check_nothing_is_lost(directory, rows) < ROW_COUNT
    assert len(directories_set_aside(directory)) == 1


@pytest.mark.parametrize("damage", [take_the_log_away, empty_the_log, cut_the_log, damage_the_log])
def test_log_of_a_damaged_journal_is_never_taken_for_the_next_ones(
    damaged: tuple[Path, Rows], damage: Callable[[Path], None]
) -> None:
    directory, rows = damaged
    damage(directory)
    with closing(open_journal(directory)) as journal:
        for node_id in rows:
            journal.remove(node_id)

    for _ in range(2):
        with closing(open_journal(directory)) as journal:
            assert journal.records() == []
    assert not (directory / f"{JOURNAL_NAME}-wal.kept").exists()


@pytest.mark.parametrize("damage", [cut_to_nothing, remove])
def test_staged_files_without_a_journal_are_something_that_is_left(
    damaged: tuple[Path, Rows], damage: Callable[[Path], None]
) -> None:
    directory, rows = damaged
    damage(directory)

    for _ in range(2):
        assert has_remains(directory)
    check_nothing_is_lost(directory, rows)


def test_new_journal_that_a_full_disk_keeps_in_its_log_does_not_take_the_damaged_ones_place(
    damaged: tuple[Path, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite closes in silence what it could not move."""
    directory, rows = damaged
    cut_the_log(directory)
    close = Journal.close

    def close_unmoved(journal: Journal) -> None:
        close(journal)
        for path in directory.glob(f"{JOURNAL_NAME}.new"):
            path.with_name(f"{path.name}-wal").touch()

    monkeypatch.setattr(Journal, "close", close_unmoved)
    with pytest.raises(OSError, match="cannot be written"):
        open_journal(directory)
    monkeypatch.undo()

    assert directories_set_aside(directory) == []
    check_nothing_is_lost(directory, rows)


@pytest.mark.parametrize("damage", [take_the_log_away, empty_the_log, cut_the_log])
def test_rescue_that_cannot_make_its_mark_leaves_what_tells_of_the_lost_log(
    damaged: tuple[Path, Rows], monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    """A death there leaves the same, and the next mount must not take what is there for all that there was."""
    directory, rows = damaged
    damage(directory)
    mark = mark_of_open(directory / JOURNAL_NAME)
    before = mark.read_bytes(), mark.stat().st_mtime_ns

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(os, "utime", fail)
    with pytest.raises(OSError, match="no answer"):
        mark_open(directory / JOURNAL_NAME)
    monkeypatch.undo()

    assert (mark.read_bytes(), mark.stat().st_mtime_ns) == before
    assert not list(directory.glob("*.unfinished"))
    assert check_nothing_is_lost(directory, rows) < ROW_COUNT


def test_new_journal_that_cannot_be_marked_raises_no_alarm_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(os, "utime", fail)
    with pytest.raises(OSError, match="no answer"):
        open_journal(tmp_path)
    monkeypatch.undo()

    open_journal(tmp_path).close()
    assert directories_set_aside(tmp_path) == []


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_flipped_bit_in_the_words_of_the_last_table_keeps_no_mount_from_starting(
    damaged: tuple[Path, Rows], mask: int
) -> None:
    """It is read by the mount's start alone; and SQLite's message about it may be no UTF-8."""
    directory, rows = damaged
    open_journal(directory).close()
    data = (directory / JOURNAL_NAME).read_bytes()
    whole = directory.with_name("whole")
    shutil.copytree(directory, whole)
    words = b"boot_id TEXT"
    for offset_bytes in range(data.index(b"boots"), data.index(words) + len(words)):
        shutil.rmtree(directory)
        shutil.copytree(whole, directory)
        flip(directory / JOURNAL_NAME, offset_bytes, mask)

        check_nothing_is_lost(directory, rows)

        with closing(open_journal(directory)) as journal, journal.together():
            journal.note_boot(journal.boot_id)


@pytest.mark.parametrize("bit", range(16))
def test_flipped_bit_in_the_header_that_says_the_format_keeps_no_mount_from_starting(
    damaged: tuple[Path, Rows], bit: int
) -> None:
    """SQLite opens a format that it does not know for reading alone."""
    directory, rows = damaged
    open_journal(directory).close()
    flip(directory / JOURNAL_NAME, 18 + bit // 8, 1 << bit % 8)

    check_nothing_is_lost(directory, rows)

    with closing(open_journal(directory)) as journal, journal.together():
        journal.note_boot("written")


def test_rows_that_a_full_disk_keeps_from_being_read_are_not_taken_for_lost(
    damaged: tuple[Path, Rows], tmp_path: Path
) -> None:
    """SQLite needs room to look at a log; what is copied for its look leaves enough for a journal of no rows."""
    whole, rows = damaged
    damage_the_log(whole)
    counts = set()
    with small_disk(tmp_path / "disk", 2) as disk:
        for free_kib in range(100, 900, 8):
            directory = disk / "state"
            shutil.copytree(whole, directory, copy_function=shutil.copy2)
            filler = fill(disk)
            os.truncate(filler, filler.stat().st_size - 1024 * free_kib)
            with suppress(OSError):
                counts.add(check_nothing_is_lost(directory, rows))
            filler.unlink()
            shutil.rmtree(directory)

    assert len(counts) == 1
    assert counts.pop() > ROW_COUNT * 2 // 3


@pytest.mark.parametrize("name", [f"{JOURNAL_NAME}-wal", f"{JOURNAL_NAME}-shm", f"{JOURNAL_NAME}.open"])
def test_rescue_that_is_cut_off_at_its_end_is_finished_by_the_next_start(
    damaged: tuple[Path, Rows], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The damaged log is gone then, and what could be read of it must not be."""
    directory, rows = damaged
    cut_the_log(directory)
    shutil.copytree(directory, tmp_of(directory), copy_function=shutil.copy2)
    count = check_nothing_is_lost(tmp_of(directory), rows)
    assert count > ROW_COUNT * 2 // 3
    unlink = Path.unlink

    def die(path: Path, missing_ok: bool = False) -> None:
        if path == directory / name:
            raise OSError(errno.EIO, "no answer")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(OSError, match="no answer"):
        open_journal(directory)
    monkeypatch.undo()

    assert check_nothing_is_lost(directory, rows) == count
    assert {path.name for path in directory.iterdir() if path.is_file()} == {JOURNAL_NAME}


def test_mark_that_the_disk_keeps_raises_no_alarm_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_journal(tmp_path).close()
    unlink = Path.unlink

    def keep(path: Path, missing_ok: bool = False) -> None:
        if path == mark_of_open(tmp_path / JOURNAL_NAME):
            raise OSError(errno.EDQUOT, "no room for a change")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", keep)
    open_journal(tmp_path).close()
    monkeypatch.undo()

    open_journal(tmp_path).close()
    assert directories_set_aside(tmp_path) == []
