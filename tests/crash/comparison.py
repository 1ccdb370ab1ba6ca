"""What a mount shows of a writer's directory, beside what must be there."""

from __future__ import annotations

import copy
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crash.expected_tree import Directory, ExpectedTree, File, Symlink, write_into
from crash.operations import Call, Operation
from support.xattrs import xattrs_of


@dataclass(frozen=True)
class Seen:
    """One name as a mount shows it. `content` is a file's bytes, or a symlink's target."""

    kind: str
    mode: int
    mtime_ns: int
    link_count: int
    content: bytes
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    """Of a file."""


Observed = Mapping[str, Seen]
"""By path, relative to the writer's directory, which is itself "" (empty: there is no such directory)."""


def observe(root: Path) -> Observed:
    """Reads everything below the directory. Raises OSError for what cannot be read."""
    seen: dict[str, Seen] = {}
    if os.path.lexists(root):
        _observe_into(seen, root, "")
    return seen


def _observe_into(seen: dict[str, Seen], place: Path, path: str) -> None:
    status = place.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        seen[path] = Seen("directory", mode, 0, 0, b"")
        for name in sorted(os.listdir(place)):
            _observe_into(seen, place / name, f"{path}/{name}".lstrip("/"))
    elif stat.S_ISLNK(status.st_mode):
        seen[path] = Seen("symlink", 0, 0, status.st_nlink, os.readlink(os.fsencode(place)))
    else:
        content = place.read_bytes()
        assert len(content) == status.st_size, f"{path}: {len(content)} bytes, {status.st_size} by its size"
        seen[path] = Seen("file", mode, status.st_mtime_ns, status.st_nlink, content, xattrs_of(place))


def find_differences(tree: ExpectedTree, in_flight: Operation | None, observed: Observed) -> list[str]:
    """What is not as it must be: without what was in flight, or with it. Empty: all is as it must be.

    Of a write that was in flight, any of its bytes may be there.
    """
    before = _compare(tree, in_flight, observed)
    if not before or in_flight is None or in_flight.call in (Call.WRITE, Call.FSYNC, Call.CLOSE):
        return before
    after = copy.deepcopy(tree)
    after.apply(in_flight)
    remaining = _compare(after, None, observed)
    return remaining and [
        *(f"without {in_flight.to_json()}: {line}" for line in before),
        *(f"with it: {line}" for line in remaining),
    ]


def _compare(tree: ExpectedTree, in_flight: Operation | None, observed: Observed) -> list[str]:
    expected = dict(tree.walk())
    link_counts: dict[File, int] = {}
    for _, file in tree.files():
        link_counts[file] = link_counts.get(file, 0) + 1
    found = [f"{path}: not expected" for path in observed.keys() - expected.keys()]
    for path, node in expected.items():
        seen = observed.get(path)
        if seen is None:
            found.append(f"{path}: missing")
        elif isinstance(node, Directory):
            found += [] if seen.kind == "directory" else [f"{path}: {seen.kind}, not a directory"]
        elif isinstance(node, Symlink):
            found += [] if os.fsencode(node.target) == seen.content else [f"{path}: another target"]
        else:
            found += [f"{path}: {what}" for what in _compare_file(tree, node, in_flight, seen)]
            if seen.link_count != link_counts[node]:
                found.append(f"{path}: {seen.link_count} links, not {link_counts[node]}")
    return found


def _compare_file(tree: ExpectedTree, file: File, in_flight: Operation | None, seen: Seen) -> list[str]:
    if seen.kind != "file":
        return [f"{seen.kind}, not a file"]
    found = []
    expected = bytes(file.content)
    is_being_written = (
        in_flight is not None and in_flight.call is Call.WRITE and tree.slots[in_flight.slot] is file
    )
    if in_flight is not None and is_being_written:
        expected = _with_what_is_seen_of(in_flight, file, seen.content)
    if seen.content != expected:
        found.append(_describe_difference(expected, seen.content))
    if seen.mode != file.mode:
        found.append(f"mode {seen.mode:o}, not {file.mode:o}")
    if seen.xattrs != file.xattrs:
        found.append(f"extended attributes {sorted(seen.xattrs)}, not {sorted(file.xattrs)}, or other values")
    if file.mtime_ns is not None and not is_being_written and seen.mtime_ns != file.mtime_ns:
        found.append(f"mtime {seen.mtime_ns}, not {file.mtime_ns}")
    return found


def _with_what_is_seen_of(write: Operation, file: File, seen: bytes) -> bytes:
    """The file with what is seen of a write that was in flight: of each of its bytes the old or the new one, as on
    a local disk.
    """
    written = bytearray(file.content)
    write_into(written, write.number, write.content)
    if seen == written:
        return seen
    old = bytes(file.content).ljust(len(written), b"\0")
    for index in range(write.number, min(len(written), len(seen))):
        if seen[index] == old[index]:
            written[index] = old[index]
    return bytes(written[: max(len(seen), len(file.content))])


def _common_length(one: bytes, other: bytes) -> int:
    """How many first bytes are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _describe_difference(expected: bytes, seen: bytes) -> str:
    place = _common_length(expected, seen)
    what = f"{len(seen)} bytes, not {len(expected)}, other from byte {place}"
    rest = seen[place:]
    return f"{what} (zeros from there)" if rest and not rest.strip(b"\0") else what


def find_losses(tree: ExpectedTree, in_flight: Operation | None, observed: Observed) -> tuple[list[str], int]:
    """After the loss of the workstation: which synced files are not at the master as they must be, and how many
    had to be there.

    A synced file that was changed since may be there with any later content, or the beginning of one; one that
    was replaced by a file that was not synced may be either.
    """
    required = _required_versions(tree)
    alternative_tree = tree
    if in_flight is not None:
        alternative_tree = copy.deepcopy(tree)
        alternative_tree.apply(in_flight)
    alternative = _required_versions(alternative_tree)
    losses = []
    for path in sorted(required.keys() & alternative.keys()):
        versions = required[path] + alternative[path]
        seen = observed.get(path)
        if seen is None:
            losses.append(f"{path}: synced, and missing")
        elif not _is_one_of(seen.content, versions):
            losses.append(
                f"{path}: synced, and not what it was: {_describe_difference(versions[0], seen.content)}"
            )
    return losses + _find_lost_xattrs(tree, alternative_tree, observed), len(required)


def _find_lost_xattrs(tree: ExpectedTree, alternative: ExpectedTree, observed: Observed) -> list[str]:
    """Which synced files do not have the extended attributes of then, or of later."""
    required, may_be = _required_xattrs(tree), _required_xattrs(alternative)
    return [
        f"{path}: synced, and without the extended attributes of then"
        for path in sorted(required.keys() & may_be.keys() & observed.keys())
        if observed[path].xattrs not in required[path] + may_be[path]
    ]


def _required_xattrs(tree: ExpectedTree) -> dict[str, list[dict[str, bytes]]]:
    return {
        path: file.xattrs_versions
        for path, file in tree.files()
        if file.is_synced and not tree.covered_versions(path)
    }


def _required_versions(tree: ExpectedTree) -> dict[str, list[bytes]]:
    """By path, what may be there; a name that is not here may be missing."""
    required = {}
    for path, file in tree.files():
        covered = tree.covered_versions(path)
        if file.is_synced or covered:
            required[path] = covered + file.versions
    return required


def _is_one_of(content: bytes, versions: list[bytes]) -> bool:
    if content in versions:
        return True
    if len(versions) == 1:
        return False
    size_bytes_min = min(len(version) for version in versions)
    return len(content) >= size_bytes_min and any(version.startswith(content) for version in versions)
