"""What tests of the command line work with: the program, and mounts of the fake filesystem."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cloudai_daemon.registry import RegistryEntry
from cloudai_fusefs.mount_control import MountConfig

FAKE_MOUNT_PROCESS = (sys.executable, str(Path(__file__).with_name("fake_mount_process.py")))
COMMAND_SECONDS_MAX = 30

RunCloudai: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]


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

    def is_drained(self) -> bool:
        """Whether somebody waits for the end of its uploads in order to unmount it."""
        return (self.entry.state_dir / "drain-begun").exists()

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
