"""The log of a mount: `daemon.log` in its state directory, and standard error where the mount is in the foreground.

The mount daemon writes the file and rotates it; its supervisor follows the name. Under systemd standard error is the
journal, which is told how grave each line is. A disk that is full or a directory that is gone costs lines, never the
mount: that some are missing is said as soon as the next one can be written.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Final

LOG_NAME: Final = "daemon.log"
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# Three old logs of 10 MiB: weeks of a healthy mount.
LOG_BYTES_MAX: Final = 10 * 1024 * 1024
LOG_FILES_OLD: Final = 3

_STDERR: Final = 2


class _LineCounter(logging.Handler):
    """Beside a handler of a file: counts the lines that the file does not take, rather than to complain of each on
    standard error, which is the same file as a rule.
    """

    _refused_count = 0

    def emit(self, record: logging.LogRecord) -> None:
        missing_count = self._refused_count
        if not self._write(record) or not missing_count:
            return
        text = "the log could not be written for a while: %d lines are late or missing"
        said = (__name__, logging.WARNING, __file__, 0, text, (missing_count,), None)
        # Where there was room for one line and not for two, the next one brings it.
        self._refused_count = 0 if self._write(logging.LogRecord(*said)) else missing_count

    def _write(self, record: logging.LogRecord) -> bool:
        """Whether the file took it; it is counted if not."""
        count_before = self._refused_count
        try:
            super().emit(record)
        except OSError:  # not every handler sees to all of them
            self.handleError(record)
        return self._refused_count == count_before

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the library's name)
        if isinstance(sys.exc_info()[1], OSError):
            self._refused_count += 1
        else:
            super().handleError(record)


class RotatingLog(_LineCounter, logging.handlers.RotatingFileHandler):
    """The daemon's end of the file."""

    _is_stderr = False
    """Found out once: where a new file cannot be opened at once, standard error stays with an old one meanwhile."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError."""
        super().__init__(directory / LOG_NAME, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES_OLD)
        with suppress(OSError):  # there may be no standard error
            self._is_stderr = os.path.samestat(Path(self.baseFilename).stat(), os.fstat(_STDERR))

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        if self._is_stderr:
            # What libraries and a crash say goes on where it is looked for, and not into a file that is deleted.
            os.dup2(stream.fileno(), _STDERR)
        return stream


class FollowedLog(_LineCounter, logging.handlers.WatchedFileHandler):
    """The supervisor's end of the file, which the daemon rotates."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError."""
        super().__init__(directory / LOG_NAME)


def log_to(*handlers: logging.Handler) -> None:
    """From here on this process's log goes there, and nowhere else."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, handlers=handlers, force=True)
