"""A tree of thousands of files with everything that a name, a mode and a time may be goes in and comes out."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from support.mount_process import MountProcess, wait_until
from support.tools import run_tool
from support.tree_snapshot import differences, place_in, snapshot_tree

FILES = 5000

ODD_NAMES = (
    b"with spaces ",
    b" ",
    "наука-数据-é-🙂".encode(),
    b"two\nlines\n",
    b"-rf",
    b"--help",
    b"n" * 255,
    "ж".encode() * 127,
    b"\xff\xfe-not-utf-8",
    b"back\\slash",
    b"quotes'\"`$(x)",
    b"*?[a-z]",
    b"...",
    b"tab\there\x01\x7f",
    b"#file~",
    b":colon;semicolon",
)


def build_tree(root: Path) -> int:
    """Makes the tree and returns how many names it has. The same each time."""
    chance = random.Random(7)
    top = os.fsencode(root)
    directories = [top]
    os.mkdir(top)
    for number in range(200):
        parent = chance.choice(directories[-40:])
        directories.append(os.path.join(parent, b"d%d" % number))
        os.mkdir(directories[-1])
    files = [os.path.join(chance.choice(directories), b"f%d" % number) for number in range(FILES)]
    for number, path in enumerate(files):
        _write_file(path, chance.randbytes(0 if number % 10 == 0 else chance.randrange(1, 3000)))
    _write_file(os.path.join(top, b"big"), chance.randbytes(9_000_001))
    _add_odd_names(os.path.join(top, b"odd"))
    _add_symlinks(os.path.join(top, b"links"))
    for number in range(50):
        os.link(files[number * 7], os.path.join(top, b"hard-%d" % number))
        os.mkdir(os.path.join(chance.choice(directories), b"empty-%d" % number))
    _add_modes(os.path.join(top, b"modes"))
    return _set_times(top, chance)


def _write_file(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _add_odd_names(directory: bytes) -> None:
    os.mkdir(directory)
    for name in ODD_NAMES:
        _write_file(os.path.join(directory, name), name)
        os.mkdir(os.path.join(directory, name[:200] + b".d"))
        _write_file(os.path.join(directory, name[:200] + b".d", name), name[::-1])


def _add_symlinks(directory: bytes) -> None:
    os.mkdir(directory)
    targets = [b"../big", b"/absolute/and/dangling", b"dangling", b".", b"/", b"\xff\n ", b"x" * 255]
    targets += [b"l" * 4095, b"self-6", b"../" * 300]
    for number, target in enumerate(targets):
        os.symlink(target, os.path.join(directory, b"self-%d" % number))


def _add_modes(directory: bytes) -> None:
    os.mkdir(directory)
    for mode in (0o000, 0o001, 0o111, 0o222, 0o444, 0o640, 0o755, 0o777, 0o4755, 0o2755, 0o6711, 0o1777):
        path = os.path.join(directory, b"%04o" % mode)
        _write_file(path, b"mode")
        os.chown(path, 1000 + mode, 2000 + mode)
        os.chmod(path, mode)
        os.mkdir(path + b".d", mode)
        os.chmod(path + b".d", mode)


def _set_times(top: bytes, chance: random.Random) -> int:
    """From the leaves up, so that a directory's time stays; returns how many names there are."""
    count = 0
    for directory, directories, files in os.walk(top, topdown=False):
        for name in [*files, *directories]:
            count += 1
            moment_ns = chance.randrange(1, 2_000_000_000_000_000_000)
            path = os.path.join(directory, name)
            os.utime(path, ns=(moment_ns, moment_ns), follow_symlinks=False)
    os.utime(top, ns=(1, 1_234_567_890_123_456_789))
    return count


def assert_same(source: Path, copy: Path) -> None:
    """By three judges: rsync, diff, and this project's own."""
    # -@-1: to the nanosecond; -c: by content; -H: hard links too.
    assert run_tool("rsync", "-aHinc", "-@-1", "--delete", f"{source}/", f"{copy}/") == ""
    assert run_tool("diff", "-r", "--no-dereference", source, copy) == ""
    assert differences(snapshot_tree(source), snapshot_tree(copy)) == {}


def test_tree_of_thousands_of_files_comes_back_the_same(
    run: Path,
    shared_mount: MountProcess,
    mount_shared: Callable[..., MountProcess],
    tmp_path: Path,
) -> None:
    """T1. Mode, owner, group and modification time in nanoseconds are kept as they were set, so that a second
    `rsync -a` transfers nothing.
    """
    source = tmp_path / "source"
    assert build_tree(source) > FILES

    run_tool("rsync", "-aH", "-@-1", f"{source}/", run / "tree")

    assert_same(source, run / "tree")
    shared_mount.wait_durable(run)
    # An empty cache, and nothing known: all of it comes from the master.
    other = mount_shared()
    elsewhere = place_in(shared_mount, run / "tree", other)
    wait_until(elsewhere.exists, "the tree in the other mount")
    assert_same(source, elsewhere)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_name_is_listed_as_it_was_given(run: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(run), name)
    _write_file(path, b"content")

    assert os.listdir(os.fsencode(run)) == [name]
    os.rename(path, path[:-1] + b"2")
    os.unlink(path[:-1] + b"2")
    assert os.listdir(run) == []
