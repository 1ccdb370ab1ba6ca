"""What came out, compared with what should have; every difference is a WrongAnswer that says where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cloudai_benchmarks.errors import WrongAnswer

_READ_BYTES: Final = 4 * 1024**2


def compare(what: str, answer: object, right: object) -> None:
    """Raises WrongAnswer, which shows both unless they are bytes."""
    if answer == right:
        return
    if isinstance(answer, bytes) or isinstance(right, bytes):
        raise WrongAnswer(what=what)
    raise WrongAnswer(what=f"{what}: {answer}, not {right}")


def compare_files(answer: Path, right: Path) -> None:
    """Two files, every byte. Raises WrongAnswer, OSError."""
    with answer.open("rb") as ours, right.open("rb") as theirs:
        compare(
            f"the size of {answer.name}", os.fstat(ours.fileno()).st_size, os.fstat(theirs.fileno()).st_size
        )
        offset_bytes = 0
        while expected := theirs.read(_READ_BYTES):
            if ours.read(len(expected)) != expected:
                raise WrongAnswer(what=f"{answer.name} in the {len(expected):,} bytes at {offset_bytes:,}")
            offset_bytes += len(expected)


def compare_trees(answer: Path, right: Path, *, leave_out: frozenset[str] = frozenset()) -> None:
    """All names below two directories, and every byte of the files, but for the paths in `leave_out`.

    Raises WrongAnswer, OSError.
    """
    ours, theirs = list_tree(answer), list_tree(right)
    for path in sorted(ours.keys() ^ theirs.keys()):
        if path not in leave_out:
            raise WrongAnswer(what=f"{path} is {'missing' if path in theirs else 'not in the original'}")
    for path, size_bytes in theirs.items():
        if size_bytes is not None and path not in leave_out:
            compare_files(answer / path, right / path)


def list_tree(directory: Path) -> dict[str, int | None]:
    """Everything below a directory by relative path: a file's size in bytes, None of a directory."""
    found: dict[str, int | None] = {}
    for parent, directories, names in os.walk(directory, onerror=raise_error):
        relative = os.path.relpath(parent, directory)
        prefix = "" if relative == "." else f"{relative}/"
        found.update({f"{prefix}{name}": None for name in directories})
        found.update({f"{prefix}{name}": Path(parent, name).lstat().st_size for name in names})
    return found


def list_files(directory: Path) -> dict[str, int]:
    """The files of list_tree."""
    return {path: size_bytes for path, size_bytes in list_tree(directory).items() if size_bytes is not None}


def raise_error(error: OSError) -> None:
    """For os.walk, which says nothing of errors otherwise."""
    raise error
