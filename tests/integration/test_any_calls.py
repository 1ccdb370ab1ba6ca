"""Any program's calls have on a mount the outcomes that they have on tmpfs.

`make test-conformance` does the same for longer, with other seeds.
"""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from conformance.two_filesystems import TwoFilesystems
from support.mount_process import RUN, MountProcess, wait_until
from support.tree_snapshot import differences, place_in, snapshot_tree
from support.xattrs import xattrs_below

EXAMPLES = int(os.environ.get("CONFORMANCE_EXAMPLES", "20"))
IS_LONG = "CONFORMANCE_EXAMPLES" in os.environ


@pytest.fixture
def reference() -> Iterator[Path]:
    """A directory on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="conformance-", dir="/dev/shm") as directory:
        yield Path(directory)


def is_same(directory: Path, other: Path) -> bool:
    try:
        is_same_tree = not differences(snapshot_tree(directory), snapshot_tree(other))
        return is_same_tree and xattrs_below(directory) == xattrs_below(other)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODATA):
            raise
        return False  # news are still coming


def test_any_calls_have_the_outcomes_that_they_have_on_tmpfs(
    mount_shared: Callable[..., MountProcess], reference: Path
) -> None:
    mounts = [mount_shared(options="insecure,timeo=20,allow_other,xattr") for _ in range(2)]
    run = mounts[0].make_run(RUN, task="any-calls")
    numbers = itertools.count()

    def find_elsewhere(directory: Path) -> Path:
        one, other = sorted(mounts, key=lambda mount: not directory.is_relative_to(mount.mount_point))
        elsewhere = place_in(one, directory, other)
        wait_until(lambda: is_same(directory, elsewhere), "the same on the other mount")
        return elsewhere

    def start() -> TwoFilesystems:
        name = f"{next(numbers)}"
        return TwoFilesystems(run / name, reference / name, find_elsewhere)

    run_state_machine_as_test(
        cast("type[TwoFilesystems]", start),  # any callable that makes one will do
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            derandomize=not IS_LONG,
            database=None,
            print_blob=IS_LONG,
            suppress_health_check=list(HealthCheck),
        ),
    )
