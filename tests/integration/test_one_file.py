"""What is written to a file is what is read from it, on a real mount: any calls in any order, and what comes between.

`make test-conformance` does the same for longer, with other seeds.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conformance.one_file import OneFile
from support.mount_process import RUN, MakeMount, MountProcess
from support.tree_snapshot import place_in

CALLS = int(os.environ.get("CONFORMANCE_CALLS", "600"))
SEED = int(os.environ.get("CONFORMANCE_SEED", "0"))
CALLS_TO_AN_EVICTION = 100
CALLS_TO_A_DEATH = 300

DENSE_BYTES = 300_000
"""Where everything lies over everything."""
CHUNKED_BYTES = 9_000_000
"""More than two chunks."""

sizes = pytest.mark.parametrize("size_bytes_max", [DENSE_BYTES, CHUNKED_BYTES])


@sizes
def test_what_is_read_is_what_was_written(
    size_bytes_max: int, run: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    file = OneFile(run / "file", SEED, size_bytes_max=size_bytes_max)

    file.run(CALLS)

    file.evict()
    file.look()
    assert place_in(shared_mount, file.path, second_mount).read_bytes() == file.path.read_bytes()


@sizes
def test_what_is_read_was_at_the_master_meanwhile(size_bytes_max: int, run: Path) -> None:
    file = OneFile(run / "file", SEED, size_bytes_max=size_bytes_max)
    for _ in range(CALLS // CALLS_TO_AN_EVICTION):
        file.run(CALLS_TO_AN_EVICTION)
        file.evict()
        file.look()


@sizes
def test_what_is_read_was_written_before_the_daemon_was_killed(
    size_bytes_max: int, make_mount: MakeMount
) -> None:
    """D1. After `write()` a file's bytes survive the death of the mount daemon."""
    mount = make_mount()
    file = OneFile(mount.make_run(RUN) / "file", SEED, size_bytes_max=size_bytes_max)
    for number in range(CALLS // CALLS_TO_A_DEATH):
        file.run(CALLS_TO_A_DEATH)
        mount.kill()
        file.forget_descriptors()
        if number % 2:
            mount.clear_cache()
        mount.start()
        file.look()
