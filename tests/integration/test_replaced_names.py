"""Names that were taken over from a published file, and given up again before the master heard of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import MountProcess
from support.tree_snapshot import assert_same_elsewhere, place_in

REPLACEMENTS = 300
READERS = 4


@pytest.fixture
def published(run: Path, shared_mount: MountProcess) -> Path:
    """A file that the master has."""
    path = run / "last.safetensors"
    path.write_bytes(b"old")
    shared_mount.wait_durable(run)
    return path


def replace_with_new(path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"new")
    temporary.rename(path)


def test_replaced_and_removed_name_does_not_come_back(
    run: Path, published: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    replace_with_new(published)
    published.unlink()

    assert list(run.iterdir()) == []
    assert_same_elsewhere(run, shared_mount, second_mount)


def test_replaced_and_renamed_name_does_not_come_back(
    run: Path, published: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    replace_with_new(published)
    published.rename(run / "other")

    assert [path.name for path in run.iterdir()] == ["other"]
    assert_same_elsewhere(run, shared_mount, second_mount)


def test_name_replaced_twice_and_removed_does_not_come_back(
    run: Path, published: Path, shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    replace_with_new(published)
    replace_with_new(published)
    published.unlink()

    assert list(run.iterdir()) == []
    assert_same_elsewhere(run, shared_mount, second_mount)


def test_name_replaced_before_a_crash_and_removed_after_it_does_not_come_back(
    make_mount: Callable[..., MountProcess], master: MasterProcess
) -> None:
    mount = make_mount()
    run = mount.make_run("2026-11-20_15-04-05")
    path = run / "last.safetensors"
    path.write_bytes(b"old")
    mount.wait_durable()
    master.kill()
    replace_with_new(path)
    mount.kill()
    master.start()
    mount.start()
    assert path.read_bytes() == b"new"

    path.unlink()

    mount.wait_durable()
    elsewhere = place_in(mount, run, make_mount("other"))
    assert list(elsewhere.iterdir()) == []


def test_file_that_is_replaced_all_the_time_is_read_as_a_whole(run: Path) -> None:
    """D6. A file that is replaced by renaming another over it is replaced as a whole: at the master and on every mount
    there is the old content or the new, never a part.
    """
    path = run / "last.safetensors"
    replace_with_new(path)
    is_over = threading.Event()

    def read_on() -> set[bytes]:
        found = set()
        while not is_over.is_set():
            found.add(path.read_bytes())
        return found

    with ThreadPoolExecutor(READERS) as readers:
        reading = [readers.submit(read_on) for _ in range(READERS)]
        try:
            for _ in range(REPLACEMENTS):
                replace_with_new(path)
        finally:
            is_over.set()
    assert [reader.result() for reader in reading] == [{b"new"}] * READERS
