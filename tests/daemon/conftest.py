"""Mounts by the real mount process around a tmpfs, and the program `cloudai` to ask them with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudai_daemon.mount_table import find_mounted, unmount
from cloudai_daemon.mounting import start_mount
from cloudai_daemon.registry import RegistryEntry
from support.fake_mount import (
    COMMAND_SECONDS_MAX,
    FAKE_MOUNT_PROCESS,
    FakeMount,
    RunCloudai,
    make_config,
)
from support.mount_process import PROGRAM


@pytest.fixture(autouse=True)
def private_places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The runtime directory of this test alone; no token, mount or option of whoever runs the tests.

    Not below tmp_path: a socket's path has at most 107 bytes, and pytest's folders can be deep.
    """
    runtime_dir = Path(tempfile.mkdtemp(prefix="cloudai-"))
    for name in [name for name in os.environ if name.startswith("CLOUDAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDAI_RUNTIME_DIR", str(runtime_dir))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(runtime_dir / "config"))
    yield runtime_dir
    shutil.rmtree(runtime_dir, ignore_errors=True)


@pytest.fixture
def cloudai() -> RunCloudai:
    """Runs the program to its end, without a terminal."""

    def run(
        *arguments: str | Path, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS_MAX,
            env={**os.environ, **(environment or {})},
            check=False,
        )

    return run


@pytest.fixture
def mount_fake(tmp_path: Path) -> Iterator[Callable[[str], FakeMount]]:
    """Mounts at a name below the test's directory; all are gone afterwards."""
    started: list[RegistryEntry] = []

    def mount(name: str) -> FakeMount:
        entry = start_mount(make_config(tmp_path, name), FAKE_MOUNT_PROCESS)
        started.append(entry)
        return FakeMount(entry)

    yield mount
    for entry in started:
        (entry.state_dir / "hold-uploads").unlink(missing_ok=True)
        entry.process.send_signal(signal.SIGTERM)
        if not entry.process.wait_gone(10):
            entry.process.send_signal(signal.SIGKILL)
        while find_mounted(entry.mount_point):
            unmount(entry.mount_point, lazily=True)


@pytest.fixture
def fake_mount(mount_fake: Callable[[str], FakeMount]) -> FakeMount:
    return mount_fake("mnt")
