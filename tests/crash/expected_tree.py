"""The reference: what must be there after the operations that were acknowledged, by docs/SEMANTICS.md.

A tree in memory. Each file also knows what may be at the master under its name once everything on the
workstation is lost: after an fsync what it held then (D3), or anything that it has held since.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from crash.operations import Call, Operation


@dataclass(eq=False)
class File:
    content: bytearray = field(default_factory=bytearray)
    mode: int = 0o644
    mtime_ns: int | None = None
    """As the writer was shown it after fsync or at close; None: written since."""
    is_synced: bool = False
    """fsync was acknowledged at least once."""
    versions: list[bytes] = field(default_factory=list)
    """What it held at its last fsync, or when it replaced a synced file, and after each change since. None: there
    was neither."""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    xattrs_versions: list[dict[str, bytes]] = field(default_factory=list)
    """Those of its last fsync, and after each change since."""

    def note_change(self) -> None:
        self.mtime_ns = None
        if self.versions:
            self.versions.append(bytes(self.content))

    def note_xattrs(self) -> None:
        if self.xattrs_versions:
            self.xattrs_versions.append(dict(self.xattrs))


@dataclass(eq=False)
class Symlink:
    target: str


@dataclass(eq=False)
class Directory:
    children: dict[str, Node] = field(default_factory=dict)
    covered: dict[str, list[File]] = field(default_factory=dict)
    """By name, the synced files that were replaced by one that is not: either may be there (D6)."""


Node = File | Symlink | Directory


def write_into(content: bytearray, offset_bytes: int, data: bytes) -> None:
    """As pwrite(2): a gap before the offset reads as zeros; no bytes change nothing."""
    if not data:
        return
    if offset_bytes > len(content):
        content.extend(bytes(offset_bytes - len(content)))
    content[offset_bytes : offset_bytes + len(data)] = data


class ExpectedTree:
    """Applies operations to a tree. Each must be possible there."""

    def __init__(self) -> None:
        self.root = Directory()
        self.slots: dict[int, File] = {}

    def files(self) -> Iterator[tuple[str, File]]:
        return ((path, node) for path, node in self.walk() if isinstance(node, File))

    def directories(self) -> Iterator[tuple[str, Directory]]:
        return ((path, node) for path, node in self.walk() if isinstance(node, Directory))

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Everything by its path; the root, "", first."""
        waiting: list[tuple[str, Node]] = [("", self.root)]
        while waiting:
            path, node = waiting.pop()
            yield path, node
            if isinstance(node, Directory):
                waiting += [(f"{path}/{name}".lstrip("/"), child) for name, child in node.children.items()]

    def find(self, path: str) -> Node:
        node: Node = self.root
        for name in path.split("/") if path else ():
            assert isinstance(node, Directory), path
            node = node.children[name]
        return node

    def covered_versions(self, path: str) -> list[bytes]:
        """Of the file that the one at the path replaced and whose place it may not have taken at the master."""
        directory, name = self._place_of(path)
        return [version for file in directory.covered.get(name, []) for version in file.versions]

    def apply(self, operation: Operation) -> None:
        """Carries the operation out."""
        match operation.call:
            case Call.CREATE:
                file = File()
                self._add(operation.path, file)
                self.slots[operation.slot] = file
            case Call.OPEN:
                self.slots[operation.slot] = self.file_at(operation.path)
            case Call.OPEN_TRUNCATED:
                file = self.slots[operation.slot] = self.file_at(operation.path)
                self._resize(file, 0)
            case Call.WRITE:
                file = self.slots[operation.slot]
                write_into(file.content, operation.number, operation.content)
                file.note_change()
            case Call.TRUNCATE:
                self._resize(self.slots[operation.slot], operation.number)
            case Call.TRUNCATE_PATH:
                self._resize(self.file_at(operation.path), operation.number)
            case Call.FSYNC:
                self._note_synced(self.slots[operation.slot])
            case Call.CLOSE:
                del self.slots[operation.slot]
            case Call.RENAME:
                self._rename(operation.path, operation.target)
            case Call.UNLINK | Call.RMDIR:
                self._take_away(operation.path)
            case Call.LINK:
                self._add(operation.target, self.file_at(operation.path))
            case Call.SYMLINK:
                self._add(operation.path, Symlink(operation.target))
            case Call.MKDIR:
                self._add(operation.path, Directory())
            case Call.CHMOD:
                self.file_at(operation.path).mode = operation.number
            case Call.UTIME:
                self.file_at(operation.path).mtime_ns = operation.number
            case Call.SET_XATTR:
                file = self.file_at(operation.path)
                file.xattrs[operation.target] = operation.content
                file.note_xattrs()
            case Call.REMOVE_XATTR:
                file = self.file_at(operation.path)
                del file.xattrs[operation.target]
                file.note_xattrs()

    def file_at(self, path: str) -> File:
        node = self.find(path)
        assert isinstance(node, File), path
        return node

    def _place_of(self, path: str) -> tuple[Directory, str]:
        parent, _, name = path.rpartition("/")
        directory = self.find(parent)
        assert isinstance(directory, Directory), path
        return directory, name

    def _add(self, path: str, node: Node) -> None:
        directory, name = self._place_of(path)
        assert name not in directory.children, path
        directory.children[name] = node

    def _take_away(self, path: str) -> Node:
        directory, name = self._place_of(path)
        directory.covered.pop(name, None)
        return directory.children.pop(name)

    def _rename(self, path: str, target: str) -> None:
        replaced_directory, replaced_name = self._place_of(target)
        replaced = replaced_directory.children.get(replaced_name)
        covered = replaced_directory.covered.get(replaced_name, [])
        if isinstance(replaced, File) and (replaced.is_synced or covered):
            covered = [*covered, replaced]
        node = self.find(path)
        if replaced is node:
            return  # two names of one file: nothing happens (rename(2))
        self._take_away(path)
        directory, name = self._place_of(target)
        directory.children[name] = node
        directory.covered.pop(name, None)
        if covered and isinstance(node, File) and not node.is_synced:
            directory.covered[name] = covered
            node.versions = node.versions or [bytes(node.content)]

    def _resize(self, file: File, size_bytes: int) -> None:
        del file.content[size_bytes:]
        file.content.extend(bytes(size_bytes - len(file.content)))
        file.note_change()

    def _note_synced(self, file: File) -> None:
        file.versions = [bytes(file.content)]
        file.xattrs_versions = [dict(file.xattrs)]
        file.is_synced = True
        for _, directory in self.directories():
            for name in [name for name in directory.covered if directory.children[name] is file]:
                del directory.covered[name]
