"""`rclone mount` of `rclone serve webdav`, with its cache of whole files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cloudai_benchmarks import fuse_mounts
from cloudai_benchmarks.contenders.contender import PlainContender, Source
from cloudai_benchmarks.contenders.ports import find_free_port, is_listening
from cloudai_benchmarks.errors import BenchmarkError
from cloudai_benchmarks.processes import Server, family_of


class Rclone(PlainContender):
    """Webdav, because over sftp `cp -p` loses files (rclone 1.60)."""

    def __init__(self, name: str, directory: Path, source: Source) -> None:
        super().__init__(name, directory, source)
        self._server: Server | None = None
        self._client: Server | None = None
        self._port = 0

    def start(self, datasets: object) -> None:
        (self.directory / "rclone.conf").touch()
        self._port = find_free_port()
        self._server = Server(
            "rclone",
            *("serve", "webdav", self.source.directory),
            *("--addr", f"127.0.0.1:{self._port}"),
            *self._own_places("server-cache"),
            log=self.directory / "serve.log",
        )
        self._server.wait_ready(lambda: is_listening(self._port))

    def start_client(self) -> None:
        self._client = Server(
            "rclone",
            *("mount", ":webdav:", self.mount_point),
            *("--webdav-url", f"http://127.0.0.1:{self._port}"),
            *("--vfs-cache-mode", "full"),
            *self._own_places("client/cache"),
            log=self.directory / "mount.log",
        )
        self._client.wait_ready(lambda: fuse_mounts.is_mounted(self.mount_point))

    def end_client(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            with suppress(BenchmarkError):
                fuse_mounts.unmount(self.mount_point)
                client.wait_ended()
        finally:
            client.stop()

    def client_pids(self) -> list[int]:
        return family_of(self._client.pid) if self._client else []

    def server_pids(self) -> list[int]:
        return family_of(self._server.pid) if self._server else []

    def stop_servers(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def _own_places(self, cache: str) -> tuple[str, ...]:
        return ("--config", str(self.directory / "rclone.conf"), "--cache-dir", str(self.directory / cache))
