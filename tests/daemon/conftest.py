"""Mounts by the real mount process around a tmpfs, and the program `cloudai` to ask them with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from cloudai_daemon.mount_table import find_mounted, unmount
from cloudai_daemon.mounting import start_mount
from cloudai_daemon.registry import RegistryEntry
from cloudai_fusefs.mount_control import MountConfig

CLOUDAI = Path(sys.executable).with_name("cloudai")
FAKE_MOUNT_PROCESS = (sys.executable, str(Path(__file__).with_name("fake_mount_process.py")))
COMMAND_SECONDS_MAX = 30

RunCloudai: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def private_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory of this test alone; no token or mount of whoever runs the tests."""
    runtime_dir = tmp_path / "runtime"
    monkeypatch.setenv("CLOUDAI_RUNTIME_DIR", str(runtime_dir))
    for name in ("CLOUDAI_TOKEN", "CLOUDAI_MOUNT", "CLOUDAI_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    return runtime_dir


@pytest.fixture
def cloudai() -> RunCloudai:
    """Runs the program to its end, without a terminal."""

    def run(
        *arguments: str | Path, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [CLOUDAI, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS_MAX,
            env={**os.environ, **(environment or {})},
            check=False,
        )

    return run


@dataclass(frozen=True)
class FakeMount:
    """A live mount of the fake filesystem."""

    entry: RegistryEntry

    @property
    def mount_point(self) -> Path:
        return self.entry.mount_point

    def hold_uploads(self) -> None:
        (self.entry.state_dir / "hold-uploads").touch()

    def release_uploads(self) -> None:
        (self.entry.state_dir / "hold-uploads").unlink()

    def fail_uploads(self, sentence: str) -> None:
        (self.entry.state_dir / "fail-uploads").write_text(sentence)

    def sealed_status(self, path: str) -> str | None:
        note = self.entry.state_dir / "sealed" / path
        return note.read_text() if note.exists() else None


def make_config(tmp_path: Path, name: str = "mnt", source: str = "127.0.0.1:7443") -> MountConfig:
    mount_point = tmp_path / name
    mount_point.mkdir(exist_ok=True)
    state_dir = tmp_path / f"{name}-state"
    state_dir.mkdir(mode=0o700, exist_ok=True)
    return MountConfig(
        source=source,
        mount_point=mount_point,
        state_dir=state_dir,
        cache_dir=tmp_path / "cache",
        insecure=True,
        token="token-of-user-123",
    )


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
        # Twice: the second one skips the wait for uploads.
        entry.process.send_signal(signal.SIGTERM)
        entry.process.send_signal(signal.SIGTERM)
        if not entry.process.wait_gone(10):
            entry.process.send_signal(signal.SIGKILL)
        while find_mounted(entry.mount_point):
            unmount(entry.mount_point, lazily=True)


@pytest.fixture
def fake_mount(mount_fake: Callable[[str], FakeMount]) -> FakeMount:
    return mount_fake("mnt")
