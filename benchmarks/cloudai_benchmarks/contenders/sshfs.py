"""sshfs with its default options, and an sshd of our own on the loopback."""

from __future__ import annotations

import getpass
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloudai_benchmarks import fuse_mounts
from cloudai_benchmarks.contenders.contender import PlainContender, Source
from cloudai_benchmarks.contenders.ports import find_free_port, is_listening
from cloudai_benchmarks.errors import BenchmarkError
from cloudai_benchmarks.processes import Server, family_of, run_command

SSHD: Final = "/usr/sbin/sshd"  # it wants to be called by its whole path
SFTP_SERVER: Final = "/usr/lib/openssh/sftp-server"
_PRIVILEGE_SEPARATION_DIR: Final = Path("/run/sshd")


class Sshfs(PlainContender):
    """Mounts the source as the user who runs the benchmark, with a key made for it."""

    def __init__(self, name: str, directory: Path, source: Source) -> None:
        super().__init__(name, directory, source)
        self._sshd: Server | None = None
        self._client: Server | None = None
        self._port = 0
        self._made_separation_dir = False

    def start(self, datasets: object) -> None:
        self._make_key("host_key")
        self._make_key("user_key")
        (self.directory / "authorized_keys").write_bytes((self.directory / "user_key.pub").read_bytes())
        self._port = find_free_port()
        config = self.directory / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1:{self._port}\n"
            f"HostKey {self.directory}/host_key\n"
            f"AuthorizedKeysFile {self.directory}/authorized_keys\n"
            f"PidFile none\n"
            "UsePAM no\n"
            "StrictModes no\n"
            "PasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\n"
            f"Subsystem sftp {SFTP_SERVER}\n"
        )
        if os.geteuid() == 0 and not _PRIVILEGE_SEPARATION_DIR.exists():
            _PRIVILEGE_SEPARATION_DIR.mkdir(mode=0o755)
            self._made_separation_dir = True
        self._sshd = Server(SSHD, "-D", "-e", "-f", config, log=self.directory / "sshd.log")
        self._sshd.wait_ready(lambda: is_listening(self._port))

    def start_client(self) -> None:
        options = (
            f"port={self._port}",
            f"IdentityFile={self.directory}/user_key",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        )
        self._client = Server(
            "sshfs",
            "-f",
            *("-F", "/dev/null"),
            *("-o", ",".join(options)),
            f"{getpass.getuser()}@127.0.0.1:{self.source.directory}",
            self.mount_point,
            log=self.directory / "sshfs.log",
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
        return family_of(self._sshd.pid) if self._sshd else []

    def stop_servers(self) -> None:
        server, self._sshd = self._sshd, None
        if server is not None:
            server.stop()
        if self._made_separation_dir:
            with suppress(OSError):
                _PRIVILEGE_SEPARATION_DIR.rmdir()

    def _make_key(self, name: str) -> None:
        run_command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / name)
