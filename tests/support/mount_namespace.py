"""A mount namespace of a test's own: what is mounted or installed there is nowhere else, and goes with it."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from support.mount_process import COMMAND_SECONDS_MAX, WAIT_SECONDS_MAX

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


# What was mounted when the namespace was made is mounted there until it ends, whoever unmounts it outside: the
# daemons of tests that run beside this one would wait for it in vain.
_LEAVE_TO_OTHERS = """
findmnt --list --noheadings --output TARGET --types fuse.cloudai |
    while IFS= read -r place; do umount --lazy "$place"; done
"""


class MountNamespace:
    """A context: the namespace lives as long as a process in it does. Mounts of before are not in it."""

    def __enter__(self) -> MountNamespace:
        with ExitStack() as made:
            keeper = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", "echo made; exec cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            made.callback(keeper.communicate, timeout=WAIT_SECONDS_MAX)
            assert keeper.stdout is not None
            assert keeper.stdout.readline() == "made\n"
            self._pid = keeper.pid
            self.run("sh", "-c", _LEAVE_TO_OTHERS)
            self._made = made.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._made.close()

    def run(
        self, *command: str | Path, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What root gets in the namespace; the status is not checked."""
        return subprocess.run(
            self.command(*command),
            env=ENVIRONMENT | (environment or {}),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )

    def command(self, *command: str | Path) -> list[str | Path]:
        """What runs the command in the namespace."""
        return ["nsenter", f"--mount=/proc/{self._pid}/ns/mnt", "--", *command]

    def must(self, *command: str | Path) -> str:
        """The same, with the status checked; the output."""
        done = self.run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def mount(self, *arguments: str | Path) -> None:
        self.must("mount", *arguments)

    def keep_to_itself(self, directory: Path, scratch: Path) -> None:
        """What is written below the directory from here on is in the namespace alone; `scratch` is one to use."""
        self.mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", scratch)
        upper, work, directory = scratch / "upper", scratch / "work", directory.resolve()
        self.must("mkdir", upper, work)
        layers = f"lowerdir={directory},upperdir={upper},workdir={work}"
        self.mount("-t", "overlay", "-o", layers, "overlay", directory)

    def seen(self, path: Path) -> Path:
        """Where a path of the namespace is for the test."""
        return Path(f"/proc/{self._pid}/root") / path.relative_to("/")
