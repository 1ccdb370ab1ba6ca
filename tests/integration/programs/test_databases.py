"""SQLite in a run: its locks, its journals and its syncs, and what is left when somebody dies in the middle."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, wait_until
from support.tools import TOOL_SECONDS_MAX, run_tool
from support.tree_snapshot import AtMaster, place_in

JOURNAL_MODES = ("delete", "persist", "wal")
ROWS_COMMITTED = 600
SIGHT = "PRAGMA integrity_check; SELECT count(*), sum(epoch), sum(length(weights)) FROM metrics"
COMMITTED = f"ok\n{ROWS_COMMITTED}|{sum(range(ROWS_COMMITTED))}|{ROWS_COMMITTED * 500}\n"


class SqliteProgram:
    """The program `sqlite3` with one database open; it is asked one statement after another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, statements: str) -> str:
        """The first line that it prints."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{statements};\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")

    def kill(self) -> None:
        """kill -9. It may be dead already, of a mapped page that is no more."""
        self._process.kill()
        self._process.wait(TOOL_SECONDS_MAX)


@contextmanager
def open_database(path: Path) -> Iterator[SqliteProgram]:
    # stdbuf: into a pipe it would keep its answers until it ends.
    with subprocess.Popen(
        ["stdbuf", "-oL", "sqlite3", "-bail", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        program = SqliteProgram(process)
        try:
            yield program
        finally:
            program.kill()


def commit_rows(program: SqliteProgram, journal_mode: str) -> None:
    """600 rows in three transactions, each of which SQLite has called committed."""
    assert program.ask(f"PRAGMA journal_mode={journal_mode}") == journal_mode
    # EXTRA: the removal of a journal, which is the commit, is synced as well.
    program.ask("PRAGMA synchronous=EXTRA; SELECT 1")
    program.ask("CREATE TABLE metrics (epoch INTEGER PRIMARY KEY, weights BLOB); SELECT 1")
    for first in range(0, ROWS_COMMITTED, 200):
        rows = (
            f"WITH RECURSIVE n(i) AS (VALUES ({first}) UNION ALL SELECT i + 1 FROM n WHERE i < {first + 199})"
        )
        program.ask(f"BEGIN; {rows} INSERT INTO metrics SELECT i, randomblob(500) FROM n; COMMIT; SELECT 1")


def begin_change(program: SqliteProgram) -> None:
    """Changes rows and writes their pages into the files, as those that do not fit into memory are, uncommitted."""
    program.ask("PRAGMA cache_size=10; SELECT 1")
    change = "UPDATE metrics SET weights = randomblob(900), epoch = epoch + 10000 WHERE epoch < 100"
    program.ask(f"BEGIN; {change}; SELECT 1")


def look_into_copy(database: Path, directory: Path) -> str:
    """What SQLite finds in a copy of the database and of its journals."""
    directory.mkdir()
    for path in database.parent.glob(f"{database.name}*"):
        shutil.copy(path, directory)
    return run_tool("sqlite3", directory / database.name, SIGHT)


@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_database_is_whole_at_the_master_after_its_program_was_killed(
    run: Path, tmp_path: Path, journal_mode: str, at_master: AtMaster
) -> None:
    with open_database(run / "results.sqlite") as program:
        commit_rows(program, journal_mode)
        begin_change(program)
        program.kill()

    elsewhere = at_master()

    journal = "results.sqlite-wal" if journal_mode == "wal" else "results.sqlite-journal"
    assert (elsewhere / journal).stat().st_size > 0
    assert look_into_copy(elsewhere / "results.sqlite", tmp_path / "copy") == COMMITTED
    assert run_tool("sqlite3", run / "results.sqlite", SIGHT) == COMMITTED
    assert run_tool("sqlite3", run / "results.sqlite", f"DELETE FROM metrics; VACUUM; {SIGHT}") == "ok\n0||\n"


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_database_is_whole_without_the_workstation_and_after_its_mount_was_killed(
    shared_master: MasterProcess,
    mount_of: MakeMount,
    second_mount: MountProcess,
    tmp_path: Path,
    journal_mode: str,
) -> None:
    """P11. A SQLite database, with a rollback journal or in WAL mode, is whole at the master whoever dies: its program,
    the mount daemon or the workstation; with `synchronous=EXTRA` it has every transaction that was committed.
    """
    doomed = mount_of(shared_master, "doomed")
    database = doomed.make_run(RUN, task=f"database-{journal_mode}") / "results.sqlite"
    with open_database(database) as program:
        commit_rows(program, journal_mode)
        begin_change(program)
        doomed.kill()

    elsewhere = place_in(doomed, database, second_mount)
    wait_until(elsewhere.exists, "the database in the other mount")
    assert look_into_copy(elsewhere, tmp_path / "lost") == COMMITTED
    doomed.start()
    assert run_tool("sqlite3", database, SIGHT) == COMMITTED
    doomed.wait_durable()
    doomed.umount()


@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_programs_take_turns_at_one_database(
    run: Path, tmp_path: Path, journal_mode: str, at_master: AtMaster
) -> None:
    """Locks, and what one has in its cache when another has changed the file."""
    database = run / "results.sqlite"
    with open_database(database) as one, open_database(database) as other:
        commit_rows(one, journal_mode)
        assert other.ask("SELECT count(*) FROM metrics") == str(ROWS_COMMITTED)
        one.ask("BEGIN IMMEDIATE; DELETE FROM metrics WHERE epoch % 3 = 0; SELECT 1")
        # -bail: it ends when it is refused, and prints nothing.
        with open_database(database) as refused:
            assert refused.ask("BEGIN IMMEDIATE; SELECT 1") == ""
        one.ask("COMMIT; SELECT 1")
        assert other.ask("SELECT count(*) FROM metrics") == "400"
        assert other.ask("BEGIN IMMEDIATE; INSERT INTO metrics VALUES (0, NULL); COMMIT; SELECT 1") == "1"
        assert one.ask("SELECT count(*) FROM metrics") == "401"
        assert one.ask("VACUUM; PRAGMA integrity_check") == "ok"

    found = look_into_copy(at_master() / "results.sqlite", tmp_path / "copy")

    assert found.splitlines()[0] == "ok"
    assert found.splitlines()[1].startswith("401|")
