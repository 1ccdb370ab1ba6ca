"""sshfs with its default options, and an sshd of our own on the loopback."""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloudai_benchmarks.contenders.contender import Source
from cloudai_benchmarks.contenders.mounts import ClientMount
from cloudai_benchmarks.contenders.served import ServedContender
from cloudai_benchmarks.processes import name_of, read_bytes_of, run_command

SSHD: Final = "/usr/sbin/sshd"  # it wants to be called by its whole path
SFTP_SERVER: Final = "/usr/lib/openssh/sftp-server"
_PRIVILEGE_SEPARATION_DIR: Final = Path("/run/sshd")


class Sshfs(ServedContender):
    """Mounts the source as the user who runs the benchmark, with a key made for it."""

    def __init__(self, name: str, directory: Path, source: Source) -> None:
        super().__init__(name, directory, source)
        self._made_separation_dir = False

    def server_command(self) -> Sequence[str | Path]:
        self._make_key("host_key")
        self._make_key("user_key")
        (self.directory / "authorized_keys").write_bytes((self.directory / "user_key.pub").read_bytes())
        config = self.directory / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1:{self.port}\n"
            f"HostKey {self.directory}/host_key\n"
            f"AuthorizedKeysFile {self.directory}/authorized_keys\n"
            f"PidFile none\n"
            "UsePAM no\n"
            "StrictModes no\n"
            "PasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\n"
            # Sixteen clients connect one after another; sshd's own default begins to refuse at ten.
            "MaxStartups 100\n"
            f"Subsystem sftp {SFTP_SERVER}\n"
        )
        if os.geteuid() == 0 and not _PRIVILEGE_SEPARATION_DIR.exists():
            _PRIVILEGE_SEPARATION_DIR.mkdir(mode=0o755)
            self._made_separation_dir = True
        return (SSHD, "-D", "-e", "-f", config)

    def mount_command(self, mount: ClientMount) -> Sequence[str | Path]:
        options = (
            f"port={self.port}",
            f"IdentityFile={self.directory}/user_key",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        )
        return (
            "sshfs",
            "-f",
            *("-F", "/dev/null"),
            *("-o", ",".join(options)),
            f"{getpass.getuser()}@127.0.0.1:{self.source.directory}",
            mount.mount_point,
        )

    def sent_bytes(self) -> int | None:
        """What the sftp-servers read: while clients only write, their requests without ssh's encryption."""
        return read_bytes_of([pid for pid in self.server_pids() if name_of(pid) == Path(SFTP_SERVER).name])

    def stop_servers(self) -> None:
        super().stop_servers()
        if self._made_separation_dir:
            with suppress(OSError):
                _PRIVILEGE_SEPARATION_DIR.rmdir()

    def _make_key(self, name: str) -> None:
        run_command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / name)
