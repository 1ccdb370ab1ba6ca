"""What a program can see of a tree, as a value: two trees are the same when their snapshots are equal."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from support.mount_process import MountProcess, wait_until


class Entry(NamedTuple):
    """One name. `content` is a file's SHA-256, a symlink's target, nothing of a directory."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size_bytes: int
    link_count: int
    content: bytes


def snapshot_tree(root: Path) -> dict[bytes, Entry]:
    """All below the root, and the root itself as b".", by relative path."""
    found: dict[bytes, Entry] = {}
    top = os.fsencode(root)
    found[b"."] = _entry(top)
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = _entry(path)
    return found


def _entry(path: bytes) -> Entry:
    status = os.lstat(path)
    # A directory's size is the filesystem's own business.
    size_bytes = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return Entry(
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        size_bytes,
        status.st_nlink,
        _content(path, status.st_mode),
    )


def _content(path: bytes, mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if stat.S_ISDIR(mode):
        return b""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def differences(one: dict[bytes, Entry], other: dict[bytes, Entry]) -> dict[bytes, object]:
    """Path to what differs: short enough to read in a failed assertion."""
    found: dict[bytes, object] = {}
    for path in one.keys() | other.keys():
        left, right = one.get(path), other.get(path)
        if left is None or right is None:
            found[path] = "only in the second" if left is None else "only in the first"
        elif left != right:
            found[path] = {
                field: (getattr(left, field), getattr(right, field))
                for field in Entry._fields
                if getattr(left, field) != getattr(right, field)
            }
    return found


def place_in(mount: MountProcess, path: Path, other: MountProcess) -> Path:
    """Where a path of one mount is in another."""
    return other.mount_point / path.relative_to(mount.mount_point)


def assert_same_elsewhere(run: Path, mount: MountProcess, other: MountProcess) -> None:
    """Once durable, the run in another mount, which has not looked into it yet, is the same to the last bit."""
    mount.wait_durable(run)
    elsewhere = place_in(mount, run, other)
    wait_until(elsewhere.exists, "the run in the other mount")
    found = differences(snapshot_tree(run), snapshot_tree(elsewhere))
    assert found == {}, found


CheckElsewhere = Callable[[], None]
"""The fixture `check_elsewhere`: the same of the test's own run in the two shared mounts."""

AtMaster = Callable[[], Path]
"""The fixture `at_master`: where the second mount has the test's own run, once it is compared in both."""


def contents(root: Path, *, but: str = "") -> dict[bytes, tuple[int, bytes]]:
    """Kinds and contents of all below the root: what a copy keeps whoever made it. `but`: a name left out there."""
    return {
        path: (stat.S_IFMT(entry.mode), entry.content)
        for path, entry in snapshot_tree(root).items()
        if path != b"." and path.split(b"/")[0] != os.fsencode(but)
    }
