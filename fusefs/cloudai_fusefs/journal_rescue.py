"""What becomes of a state directory whose journal is damaged or missing: the mount starts all the same.

The damaged journal goes to `set-aside-<time>/` in the state directory, with the staged files whose rows are
lost; what can be read of it goes on in a new journal. Nothing is deleted, and a file `README` there says what
is what. Blocking, at the start of a mount only.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from cloudai_fusefs.damaged_journal import WhatIsLeft, read_what_is_left
from cloudai_fusefs.journal import Journal
from cloudai_fusefs.journal_errors import JournalDamaged
from cloudai_fusefs.journal_log import mark_of_open, mark_open

log = logging.getLogger(__name__)

JOURNAL_NAME: Final = "journal.sqlite"
FILES_NAME: Final = "staged"
ASIDE_PREFIX: Final = "set-aside-"

UNKNOWN_BOOT: Final = "unknown"
"""Of a journal too damaged to tell: by a loss of power, perhaps, which may have damaged staged files too."""

_LOG_NAME: Final = f"{JOURNAL_NAME}-wal"
_KEPT_LOG_NAME: Final = f"{JOURNAL_NAME}-wal.kept"
_RESCUED_NAME: Final = f"{JOURNAL_NAME}.rescued"
_JOURNAL_FILES: Final = (JOURNAL_NAME, _LOG_NAME, f"{JOURNAL_NAME}-shm")


def open_journal(directory: Path) -> Journal:
    """The state directory's journal; one that is damaged has been set aside, and what was readable saved.

    Raises JournalTooNew, and OSError when the disk refuses: nothing is changed then.
    """
    try:
        return open_undamaged(directory)
    except JournalDamaged as error:
        return _rescue(directory, error.detail)


def open_undamaged(directory: Path) -> Journal:
    """The state directory's journal. Raises JournalDamaged, with it and its log as they were; else as open_journal."""
    path = directory / JOURNAL_NAME
    log_path, kept_log_path = directory / _LOG_NAME, directory / _KEPT_LOG_NAME
    _finish_rescue(directory)
    _put_log_back(log_path, kept_log_path)  # a death came before the end of this, the last time
    has_no_rows = not path.exists() or path.stat().st_size == 0
    if has_no_rows and (log_path.exists() or staged_node_ids(directory)):
        raise JournalDamaged("it is missing, and there are changes", path=str(path))
    if log_path.exists():
        # SQLite removes the log when it lets go of the journal, damaged or not.
        _keep(log_path, kept_log_path)
    try:
        journal = Journal(path)
    except BaseException:
        _put_log_back(log_path, kept_log_path)
        raise
    kept_log_path.unlink(missing_ok=True)
    return journal


def _keep(log_path: Path, kept_log_path: Path) -> None:
    try:
        os.link(log_path, kept_log_path)
    except OSError:  # a file system without links
        unfinished = kept_log_path.with_name(kept_log_path.name + ".unfinished")
        shutil.copyfile(log_path, unfinished)
        unfinished.replace(kept_log_path)


def _put_log_back(log_path: Path, kept_log_path: Path) -> None:
    # (Not `replace` alone: of two names of one file it leaves both, and a log that is still kept when the journal is
    # closed in order would be taken for that of the next.)
    if kept_log_path.exists() and not log_path.exists():
        kept_log_path.replace(log_path)
    kept_log_path.unlink(missing_ok=True)


def directories_set_aside(directory: Path) -> list[Path]:
    """What was set aside by this mount or an earlier one, and nobody has taken away since; oldest first."""
    return sorted(path for path in directory.glob(f"{ASIDE_PREFIX}*") if path.is_dir())


def staged_node_ids(directory: Path) -> dict[int, list[Path]]:
    """The staged files with what belongs to them, by node id."""
    found: dict[int, list[Path]] = {}
    for path in sorted((directory / FILES_NAME).glob("*/*")):
        digits = path.name.partition(".")[0]
        if digits.isdigit():
            found.setdefault(int(digits), []).append(path)
    return found


def set_files_aside(directory: Path, paths: Iterable[Path], reason: str) -> Path:
    """Moves staged files to a directory of their own, with a README that says why; the directory.

    A crash leaves each file in one place or the other.
    """
    aside = _make_directory(directory)
    moved = list(paths)
    (aside / "README").write_text(_describe(reason, moved, saved_count=0))
    _move(moved, aside)
    log.error("%s; %d staged files are set aside in %s", reason, len(_contents(moved)), aside)
    return aside


def _rescue(directory: Path, reason: str) -> Journal:
    staged = staged_node_ids(directory)
    aside = _make_directory(directory)
    with ExitStack() as on_failure:
        on_failure.callback(shutil.rmtree, aside, ignore_errors=True)  # nothing has been moved there yet
        # Copied, not moved: a crash before the end must find the journal where it was, with its log.
        for name in _JOURNAL_FILES:
            if (directory / name).exists():
                shutil.copy2(directory / name, aside / name)
        if (directory / JOURNAL_NAME).exists():
            mark_open(directory / JOURNAL_NAME)  # until another is in its place: a log that is gone is damage
        left = WhatIsLeft({}, {}, {}, "")
        if (aside / JOURNAL_NAME).exists():
            scratch = aside / "reading"
            scratch.mkdir(mode=0o700)
            # Looked at in yet another copy: SQLite may write to what it opens.
            for name in _JOURNAL_FILES[:2]:
                if (aside / name).exists():
                    shutil.copy2(aside / name, scratch / name)
            left = read_what_is_left(scratch / JOURNAL_NAME, staged)
            shutil.rmtree(scratch)

        new_path = directory / f"{JOURNAL_NAME}.new"
        mark_of_open(new_path).unlink(missing_ok=True)  # before what it says is there
        for suffix in ("", "-wal", "-shm"):
            new_path.with_name(new_path.name + suffix).unlink(missing_ok=True)
        # Closed, all of it is in the one file: it is the last connection.
        with closing(Journal(new_path)) as journal, journal.together():
            for record in left.records.values():
                journal.put_again(record)
            for stray in left.strays.values():
                if stray.node_id not in left.records:
                    journal.put_stray(stray)
            for removal in left.removals.values():
                journal.put_removal(removal)
            journal.note_boot(left.boot_id or UNKNOWN_BOOT)
        if new_path.with_name(new_path.name + "-wal").exists():
            # SQLite closes in silence what it could not move.
            raise OSError(errno.ENOSPC, "the new journal cannot be written", str(new_path))

        kept = {node_id for node_id, record in left.records.items() if record.has_content}
        lost = [path for node_id, paths in staged.items() if node_id not in kept for path in paths]
        (aside / "README").write_text(
            _describe(f"The journal was unusable: {reason}.", lost, len(left.records))
        )
        on_failure.pop_all()
    _move(lost, aside)
    new_path.rename(directory / _RESCUED_NAME)
    _finish_rescue(directory)
    log.error(
        "the journal is unusable, %s: %d changes could be read and go on; what is left of it, and %d staged "
        "files whose names are lost, are in %s",
        reason,
        len(left.records),
        len(_contents(lost)),
        aside,
    )
    return Journal(directory / JOURNAL_NAME)


def _finish_rescue(directory: Path) -> None:
    """Puts the journal that a rescue has made in the place of the damaged one, if there is one.

    In several strokes, as a log without its database would be taken for the new one's: whoever is killed between them
    leaves the rest to the next start.
    """
    rescued = directory / _RESCUED_NAME
    if rescued.exists():
        for name in (_KEPT_LOG_NAME, *_JOURNAL_FILES[1:]):
            (directory / name).unlink(missing_ok=True)
        # Of the damaged one: this one was closed.
        mark_of_open(directory / JOURNAL_NAME).unlink(missing_ok=True)
        rescued.rename(directory / JOURNAL_NAME)


def _make_directory(directory: Path) -> Path:
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.gmtime())
    number = 0
    while True:
        aside = directory / (f"{ASIDE_PREFIX}{moment}" + (f"-{number}" if number else ""))
        try:
            aside.mkdir(mode=0o700)
        except FileExistsError:
            number += 1
        else:
            return aside


def _move(paths: Iterable[Path], aside: Path) -> None:
    for path in paths:
        target = aside / FILES_NAME / path.parent.name
        (aside / FILES_NAME).mkdir(mode=0o700, exist_ok=True)
        target.mkdir(mode=0o700, exist_ok=True)
        path.rename(target / path.name)


def _contents(paths: Collection[Path]) -> list[Path]:
    return [path for path in paths if not path.suffix]


def _describe(reason: str, moved: Collection[Path], saved_count: int) -> str:
    lines = [
        reason,
        "",
        f"{saved_count} changes could be read from it and go on uploading. These could not, or were not written",
        f"down: {FILES_NAME}/<task id>/<node id> holds the bytes that were written; with an `.extents` file beside",
        "it only some ranges of the file, the rest is at the master. Some may be at the master as a whole.",
        "Nothing here is used any more: take what you need, then remove this directory.",
        "",
    ]
    for path in _contents(moved):
        status = path.stat()
        written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(status.st_mtime))
        lines.append(f"{path.parent.name}/{path.name}  {status.st_size} bytes, last written {written}")
    return "\n".join(lines) + "\n"
