"""What a writer does to the mount: one system call each, as a value that goes into its log and back."""

from __future__ import annotations

import os
import random
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class Call(StrEnum):
    """The system call of an operation, and which of an operation's fields it uses."""

    CREATE = "create"  # path, slot: a new file, opened
    OPEN = "open"  # path, slot
    OPEN_TRUNCATED = "open truncated"  # path, slot
    WRITE = "write"  # slot, number (offset), length_bytes, content_seed
    TRUNCATE = "truncate"  # slot, number (size)
    TRUNCATE_PATH = "truncate path"  # path, number (size)
    FSYNC = "fsync"  # slot
    CLOSE = "close"  # slot
    RENAME = "rename"  # path, target
    UNLINK = "unlink"  # path
    LINK = "link"  # path, target
    SYMLINK = "symlink"  # path, target: what is in the link
    MKDIR = "mkdir"  # path
    RMDIR = "rmdir"  # path
    CHMOD = "chmod"  # path, number (mode)
    UTIME = "utime"  # path, number (nanoseconds)
    SET_XATTR = "set xattr"  # path, target: its name, length_bytes, content_seed
    REMOVE_XATTR = "remove xattr"  # path, target: its name


@dataclass(frozen=True, kw_only=True)
class Operation:
    """`path` and `target` are relative to the writer's directory, `slot` names one of its descriptors."""

    call: Call
    path: str = ""
    target: str = ""
    slot: int = 0
    number: int = 0
    length_bytes: int = 0
    content_seed: int = 0

    @property
    def content(self) -> bytes:
        """The bytes of a write, or of an extended attribute: the same for the same seed, and of no two seeds."""
        return random.Random(self.content_seed).randbytes(self.length_bytes)

    def to_json(self) -> dict[str, object]:
        return {field: value for field, value in asdict(self).items() if value or field == "call"}

    @classmethod
    def from_json(cls, fields: dict[str, object]) -> Operation:
        return cls(**{**fields, "call": Call(fields["call"])})  # type: ignore[arg-type]


class Descriptors:
    """The writer's hands: carries operations out below a directory. Raises what the system call raises."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[int, int] = {}

    def carry_out(self, operation: Operation) -> os.stat_result | None:
        """The file's status after fsync and before close, as the program could see it; otherwise None."""
        path = self._root / operation.path
        match operation.call:
            case Call.CREATE:
                self._open[operation.slot] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            case Call.OPEN:
                self._open[operation.slot] = os.open(path, os.O_RDWR)
            case Call.OPEN_TRUNCATED:
                self._open[operation.slot] = os.open(path, os.O_RDWR | os.O_TRUNC)
            case Call.WRITE:
                content = operation.content
                written_bytes = 0
                while written_bytes < len(content):  # it is short when the daemon dies in the middle
                    written_bytes += os.pwrite(
                        self._open[operation.slot], content[written_bytes:], operation.number + written_bytes
                    )
            case Call.TRUNCATE:
                os.ftruncate(self._open[operation.slot], operation.number)
            case Call.TRUNCATE_PATH:
                os.truncate(path, operation.number)
            case Call.FSYNC:
                os.fsync(self._open[operation.slot])
                return os.fstat(self._open[operation.slot])
            case Call.CLOSE:
                descriptor = self._open.pop(operation.slot)
                status = os.fstat(descriptor)
                os.close(descriptor)
                return status
            case Call.RENAME:
                os.rename(path, self._root / operation.target)
            case Call.UNLINK:
                os.unlink(path)
            case Call.LINK:
                os.link(path, self._root / operation.target)
            case Call.SYMLINK:
                os.symlink(operation.target, path)
            case Call.MKDIR:
                os.mkdir(path, 0o755)
            case Call.RMDIR:
                os.rmdir(path)
            case Call.CHMOD:
                os.chmod(path, operation.number)
            case Call.UTIME:
                os.utime(path, ns=(operation.number, operation.number))
            case Call.SET_XATTR:
                os.setxattr(path, operation.target, operation.content)
            case Call.REMOVE_XATTR:
                os.removexattr(path, operation.target)
        return None
