"""Empty files that were staged once and are staged again under another name.

A task that writes thousands of small files makes and removes as many staged ones within a second. A file system without
a journal looks at every inode that was removed lately before it takes one for a new file: half of the daemon's time
went there. With a journal a file that is renamed costs what one costs that is made and removed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

SPARE_FILES_MAX: Final = 1024
"""A few batches of commits: more are never waited for at once by a program that makes files one after another."""


class SpareFiles:
    """Those of one state directory. Used from the mount's loop only.

    Invariant: a spare file is empty, and nobody has it open.
    """

    def __init__(self, directory: Path) -> None:
        """Makes the directory, and removes what an earlier mount left in it. Raises OSError."""
        self._directory = directory
        self._numbers: list[int] = []
        self._next_number = 0
        directory.mkdir(mode=0o700, exist_ok=True)
        for left in directory.iterdir():
            left.unlink()

    def put(self, path: Path, descriptor: int) -> bool:
        """Takes the file at the path, open under the descriptor, out of its place. False: it stays as it was."""
        if len(self._numbers) >= SPARE_FILES_MAX:
            return False
        number = self._next_number
        try:
            # In this order: a loss of power may keep its journal's row, and an empty file in its place would be
            # uploaded over what the master acknowledged.
            os.rename(path, self._path_of(number))  # noqa: PTH104 - a Path costs as much again
        except OSError:
            return False
        self._next_number += 1
        try:
            os.ftruncate(descriptor, 0)
        except OSError:
            with suppress(OSError):  # not to be taken, and the next mount removes it
                os.unlink(self._path_of(number))  # noqa: PTH108
        else:
            self._numbers.append(number)
        return True

    def take(self, path: Path) -> bool:
        """Puts an empty file at the path. False: there is none, or it cannot be put there."""
        if not self._numbers:
            return False
        try:
            os.rename(self._path_of(self._numbers.pop()), path)  # noqa: PTH104
        except OSError:
            return False
        return True

    def _path_of(self, number: int) -> str:
        return f"{self._directory}/{number}"
