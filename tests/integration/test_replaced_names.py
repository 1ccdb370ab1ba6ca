"""Names that were taken over from a published file, and given up again before the master heard of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.mount_process import MountProcess
from support.tree_snapshot import assert_same_elsewhere


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
    shared_mount: MountProcess, run: Path, published: Path, second_mount: MountProcess
) -> None:
    replace_with_new(published)
    shared_mount.wait_durable(run)
    replace_with_new(published)
    replace_with_new(published)

    assert published.read_bytes() == b"new"
    assert_same_elsewhere(run, shared_mount, second_mount)
