"""A git repository with a few thousand files, and how git is run so that nobody's own settings matter."""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudai_benchmarks.datasets import Dataset
from cloudai_benchmarks.processes import run_command

GIT_ENVIRONMENT: Final = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "user-123",
    "GIT_AUTHOR_EMAIL": "user-123@example.com",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "user-123",
    "GIT_COMMITTER_EMAIL": "user-123@example.com",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}
_GIT_SECONDS_MAX: Final = 300.0


def run_git(*arguments: str | Path) -> str:
    """Raises CommandFailed, TookTooLong."""
    return run_command("git", *arguments, environment=GIT_ENVIRONMENT, seconds_max=_GIT_SECONDS_MAX)


@dataclass(frozen=True, kw_only=True)
class Repository(Dataset):
    """`directory-00/file-0000.txt`, ..., committed once and packed, as what was cloned from elsewhere is."""

    directory_count: int
    files_per_directory: int
    file_bytes: int

    @property
    def size_bytes(self) -> int:
        """Of the files that are checked out."""
        return self.file_count * self.file_bytes

    @property
    def file_count(self) -> int:
        return self.directory_count * self.files_per_directory

    def write(self, directory: Path, seed: str) -> None:
        source = random.Random(f"{seed} {self.name}")
        for directory_number in range(self.directory_count):
            below = directory / f"directory-{directory_number:02}"
            below.mkdir()
            for file_number in range(self.files_per_directory):
                text = base64.encodebytes(source.randbytes(self.file_bytes))
                (below / f"file-{file_number:04}.txt").write_bytes(text[: self.file_bytes])
        run_git("init", "--quiet", "--initial-branch", "main", directory)
        run_git("-C", directory, "add", "--all")
        run_git("-C", directory, "commit", "--quiet", "--message", "All files")
        run_git("-C", directory, "gc", "--quiet")
