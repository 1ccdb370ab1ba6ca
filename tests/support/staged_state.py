"""What a mount's state directory holds, looked at from outside and left as it is."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import NamedTuple


class StagedState(NamedTuple):
    """Rows of the journal, and how many of them have content."""

    pending_count: int
    pending_files: int


NOTHING_STAGED = StagedState(0, 0)


def read_dead_state(state_dir: Path) -> StagedState:
    """Of a mount whose daemon is dead. SQLite repairs what it opens: so it opens a copy."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in state_dir.glob("journal.sqlite*"):
            shutil.copy(path, scratch)
        return _count(Path(scratch) / "journal.sqlite")


def read_live_state(state_dir: Path) -> StagedState:
    """Of a mount that runs."""
    return _count(state_dir / "journal.sqlite")


def _count(journal: Path) -> StagedState:
    database = sqlite3.connect(f"file:{journal}?mode=rw", uri=True)
    try:
        row = database.execute("SELECT count(*), coalesce(sum(has_content), 0) FROM pending").fetchone()
    finally:
        database.close()
    return StagedState(*row)
