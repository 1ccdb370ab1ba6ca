"""Real masters and real mounts. One pair serves all tests that break nothing; others make their own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import MakeMount, MountProcess
from support.podman import Podman, private_podman
from support.tree_snapshot import CheckElsewhere, assert_same_elsewhere

USER = "user-123"

_run_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def _fuse_device() -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        # Not pytest.exit: a process of several that run the tests must not leave the others without a word.
        pytest.fail("these tests mount for real: /dev/fuse is missing or may not be opened", pytrace=False)


@pytest.fixture(scope="session")
def shared_master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MasterProcess]:
    master = MasterProcess(tmp_path_factory.mktemp("shared-master") / "data")
    master.start()
    yield master
    master.terminate()


@pytest.fixture(scope="session")
def shared_mount(
    shared_master: MasterProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountProcess]:
    yield from _serve(shared_master, tmp_path_factory.mktemp("shared-mount"))


@pytest.fixture(scope="session")
def second_mount(
    shared_master: MasterProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountProcess]:
    """Another mount of the same user, as on another machine."""
    yield from _serve(shared_master, tmp_path_factory.mktemp("second-mount"))


def _serve(master: MasterProcess, directory: Path) -> Iterator[MountProcess]:
    mount = MountProcess(directory, master.address, master.make_token(USER))
    try:
        mount.start()
        yield mount
        mount.umount()
        assert "Traceback" not in mount.log_text()
    finally:
        mount.kill()


def next_run_name() -> str:
    number = next(_run_numbers)
    return f"2026-11-20_{number // 3600:02}-{number // 60 % 60:02}-{number % 60:02}"


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """Root's podman with a store of its own, and an image in it."""
    with private_podman() as podman:
        yield podman


@pytest.fixture
def run(shared_mount: MountProcess) -> Path:
    """An open run of its own for a test, in the shared mount."""
    return shared_mount.make_run(next_run_name())


@pytest.fixture
def check_elsewhere(run: Path, shared_mount: MountProcess, second_mount: MountProcess) -> CheckElsewhere:
    """Call it at the end of a test: what the master has of the run is what is seen here."""
    return lambda: assert_same_elsewhere(run, shared_mount, second_mount)


@pytest.fixture
def in_second_mount(shared_mount: MountProcess, second_mount: MountProcess) -> Callable[[Path], Path]:
    """Where a path of the shared mount is in the second."""
    return lambda path: second_mount.mount_point / path.relative_to(shared_mount.mount_point)


@pytest.fixture(scope="module")
def mount_shared(
    shared_master: MasterProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., MountProcess]]:
    """Further mounts of the shared master: `mount_shared(user, options)`, each with directories of its own."""
    made: list[MountProcess] = []

    def make(user: str = USER, options: str = "insecure,timeo=20") -> MountProcess:
        directory = tmp_path_factory.mktemp("further-mount")
        token = shared_master.make_token(user)
        mount = MountProcess(directory, shared_master.address, token, options=options)
        mount.start()
        made.append(mount)
        return mount

    yield make
    for mount in made:
        mount.umount()
        assert "Traceback" not in mount.log_text()


@pytest.fixture
def master(tmp_path: Path) -> Iterator[MasterProcess]:
    """A master that a test may kill."""
    master = MasterProcess(tmp_path / "master")
    master.start()
    yield master
    master.kill()


@pytest.fixture
def mounts() -> Iterator[list[MountProcess]]:
    """What a test mounts; killed afterwards."""
    made: list[MountProcess] = []
    yield made
    for mount in made:
        mount.kill()


@pytest.fixture
def mount_of(mounts: list[MountProcess], tmp_path: Path) -> MakeMount:
    """Mounts of any master, `mount_of(master, name)`, each with directories of its own, that a test may kill."""

    def make(master: MasterProcess, name: str = "mount", **arguments: str) -> MountProcess:
        mount = MountProcess(tmp_path / name, master.address, master.make_token(USER), **arguments)
        mounts.append(mount)
        mount.start()
        return mount

    return make


@pytest.fixture
def make_mount(master: MasterProcess, mount_of: MakeMount) -> MakeMount:
    """The same of `master`."""
    return partial(mount_of, master)
