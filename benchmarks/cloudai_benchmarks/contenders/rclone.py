"""`rclone mount` of `rclone serve webdav`, with its cache of whole files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cloudai_benchmarks.contenders.mounts import ClientMount
from cloudai_benchmarks.contenders.served import ServedContender
from cloudai_benchmarks.processes import read_bytes_of


class Rclone(ServedContender):
    """Webdav, because over sftp `cp -p` loses files (rclone 1.60)."""

    def server_command(self) -> Sequence[str | Path]:
        self._config.touch()
        return (
            "rclone",
            *("serve", "webdav", self.source.directory),
            *("--addr", f"127.0.0.1:{self.port}"),
            *self._own_places(self.directory / "server-cache"),
        )

    def mount_command(self, mount: ClientMount) -> Sequence[str | Path]:
        return (
            "rclone",
            *("mount", ":webdav:", mount.mount_point),
            *("--webdav-url", f"http://127.0.0.1:{self.port}"),
            *("--vfs-cache-mode", "full"),
            *self._own_places(mount.client_dir / "cache"),
        )

    def sent_bytes(self) -> int | None:
        """What the server read: while clients only write, their requests."""
        return read_bytes_of(self.server_pids())

    @property
    def _config(self) -> Path:
        return self.directory / "rclone.conf"

    def _own_places(self, cache: Path) -> tuple[str | Path, ...]:
        return ("--config", self._config, "--cache-dir", cache)
