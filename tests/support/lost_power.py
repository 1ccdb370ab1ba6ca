"""A loss of power, as far as a state directory can tell."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from cloudai_fusefs.journal_log import mark_of_open
from cloudai_fusefs.journal_rescue import JOURNAL_NAME

EARLIER_BOOT = "an earlier one"


def lose_power(state_dir: Path) -> None:
    """The machine has another boot id since its mount ended."""
    journal = state_dir / JOURNAL_NAME
    with closing(sqlite3.connect(journal)) as database:
        database.execute("UPDATE boots SET boot_id = ?", (EARLIER_BOOT,))
        database.commit()
    if mark_of_open(journal).exists():
        mark_of_open(journal).write_text(EARLIER_BOOT)
