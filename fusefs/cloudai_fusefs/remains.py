"""Whether a state directory still holds what is at no master, for who would delete it while no mount has it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from cloudai_fusefs.journal_rescue import JOURNAL_NAME, directories_set_aside, open_undamaged, staged_node_ids
from cloudai_fusefs.state_lock import own_state_directory
from cloudai_model.errors import CloudAIError


def has_remains(state_dir: Path) -> bool:
    """True as well while a mount has it, and for a journal that cannot be read: who knows what is in there. Blocks."""
    if not (state_dir / JOURNAL_NAME).exists():
        return state_dir.is_dir() and bool(directories_set_aside(state_dir) or staged_node_ids(state_dir))
    try:
        with own_state_directory(state_dir):
            return bool(directories_set_aside(state_dir)) or _has_rows(state_dir)
    except (CloudAIError, OSError):
        return True


def _has_rows(state_dir: Path) -> bool:
    with closing(open_undamaged(state_dir)) as journal:
        return bool(journal.records() or journal.strays() or journal.removals())
