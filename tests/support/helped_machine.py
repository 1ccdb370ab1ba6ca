"""A machine where `cloudai install-helper` was called: a mount namespace in which mount(8) mounts for real."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from support import automounter
from support.mount_namespace import ENVIRONMENT, MountNamespace
from support.mount_process import PROGRAM, WAIT_SECONDS_MAX, wait_until


class HelpedMachine:
    """A context: at its end nothing is mounted and nothing installed. `options` are what each mount needs."""

    def __init__(self, source: str, token: str) -> None:
        self.source = source
        self._token = token

    def __enter__(self) -> HelpedMachine:
        with ExitStack() as made:
            # A short path: the control socket is below it.
            self.directory = Path(tempfile.mkdtemp(prefix="cloudai-", dir="/tmp"))
            made.callback(shutil.rmtree, self.directory)
            self.mount_point = self.make_directory("mnt")
            self.token_file = self.directory / "token"
            self.token_file.touch(mode=0o600)
            self.token_file.write_text(self._token)
            self.cache_dir = self.directory / "cache"
            self.options = self.options_of("state")
            self.namespace = made.enter_context(MountNamespace())
            self.namespace.keep_to_itself(Path("/sbin"), self.make_directory("sbin"))
            self.environment = {"CLOUDAI_RUNTIME_DIR": str(self.make_directory("run"))}
            self.namespace.must(PROGRAM, "install-helper")
            made.callback(self._unmount_all)
            self._made = made.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._made.close()

    def make_directory(self, name: str) -> Path:
        directory = self.directory / name
        directory.mkdir(mode=0o700)
        return directory

    def options_of(self, state_name: str) -> str:
        """What a mount with a state directory of this name needs."""
        places = f"token_file={self.token_file},state_dir={self.directory / state_name}"
        return f"insecure,timeo=20,{places},cache_dir={self.cache_dir}"

    def write_fstab(self, *lines: str) -> Path:
        fstab = self.directory / "fstab"
        fstab.write_text("".join(f"{line}\n" for line in lines))
        return fstab

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """As root on this machine; the status is not checked."""
        return self.namespace.run(*command, environment=self.environment)

    def mount(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """`mount -t cloudai SOURCE DIR` with the options that it needs and further arguments."""
        return self.run(
            "mount", "-t", "cloudai", "-o", self.options, *arguments, self.source, self.mount_point
        )

    def cloudai(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run(PROGRAM, *arguments)

    @contextmanager
    def automount(self) -> Iterator[None]:
        """Within the context `mount -t cloudai` is called when somebody first looks into the mount point."""
        mount = ["mount", "-t", "cloudai", "-o", self.options, self.source, str(self.mount_point)]
        command = [sys.executable, automounter.__file__, str(self.mount_point), *mount]
        with subprocess.Popen(
            self.namespace.command(*command),
            env=ENVIRONMENT | self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            try:
                yield
            finally:
                self.cloudai("umount", "--now", self.mount_point)
                process.communicate(timeout=WAIT_SECONDS_MAX)

    def find_mounted(self, *columns: str, at: Path | None = None) -> list[str]:
        """What findmnt says of a place, "" of a place where nothing is mounted."""
        found = self.run(
            "findmnt", "--noheadings", "--raw", "--output", ",".join(columns), at or self.mount_point
        )
        return found.stdout.split()

    def log_text(self, state_name: str = "state") -> str:
        path = self.directory / state_name / "daemon.log"
        return path.read_text() if path.exists() else ""

    def _unmount_all(self) -> None:
        mounted = self.run(
            "findmnt", "--list", "--noheadings", "--output", "TARGET", "--types", "fuse.cloudai"
        )
        for place in mounted.stdout.split():
            if Path(place).is_relative_to(self.directory):
                self.cloudai("umount", "--now", place)
                self.run("umount", "--lazy", place)
        # After an umount(8) a daemon goes on uploading for a while.
        registry = Path(self.environment["CLOUDAI_RUNTIME_DIR"])
        wait_until(lambda: not list(registry.glob("*.json")), "the end of the mount daemons")
