"""The file of a mount's log where it cannot be rotated; tests/integration/test_mount_log.py has whole mounts."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudai_daemon.mount_log import LOG_BYTES_MAX, LOG_NAME, RotatingLog
from support.small_disk import small_disk


def say(log: RotatingLog, text: str) -> None:
    log.handle(logging.LogRecord("test", logging.INFO, __file__, 0, text, (), None))


def test_lines_that_are_missing_are_told_of_although_the_first_line_about_them_is_missing_too(
    tmp_path: Path,
) -> None:
    log_file = tmp_path / LOG_NAME
    log = RotatingLog(tmp_path)
    os.truncate(log_file, LOG_BYTES_MAX - len("short\n") - 1)
    # The oldest log cannot be removed, so that none is renamed: lines that fit in are taken.
    (tmp_path / f"{LOG_NAME}.2").touch()
    in_the_way = tmp_path / f"{LOG_NAME}.3"
    in_the_way.mkdir()
    say(log, "too long for this file")
    say(log, "this one too")
    say(log, "short")
    assert log_file.read_bytes().endswith(b"\0short\n")
    in_the_way.rmdir()

    say(log, "a new file")

    log.close()
    assert log_file.read_text() == (
        "a new file\nthe log could not be written for a while: 2 lines are late or missing\n"
    )


@contextmanager
def log_as_stderr(directory: Path) -> Iterator[RotatingLog]:
    """Standard error is the file, as of a mount daemon; afterwards it is what it was."""
    before = os.dup(2)
    with (directory / LOG_NAME).open("ab") as file:
        os.dup2(file.fileno(), 2)
    log = RotatingLog(directory)
    try:
        yield log
    finally:
        log.close()
        os.dup2(before, 2)
        os.close(before)


def limit_names(disk: Path, count: int) -> None:
    """Of files and directories, itself among them."""
    subprocess.run(["mount", "-o", f"remount,nr_inodes={count}", disk], check=True)


def test_standard_error_follows_the_log_although_a_new_file_could_not_be_made_at_once(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state", 1) as directory, log_as_stderr(directory) as log:
        log_file = directory / LOG_NAME
        os.truncate(log_file, LOG_BYTES_MAX)
        limit_names(directory, 2)
        say(log, "renamed, and no room for a new file")
        assert standard_error() == f"{log_file}.1"
        limit_names(directory, 10)

        say(log, "a new file")

        assert standard_error() == str(log_file)


def standard_error() -> str:
    return os.readlink("/proc/self/fd/2")
