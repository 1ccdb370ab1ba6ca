"""podman or docker, whichever is there: what `cloudai run --image` asks of it, and the command line that it gets.

Relies on their programs alone, which understand the same words, and on their own configuration for all that is not
said here. Every refusal is a CommandFailed (125) with one line; nothing was started then.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.output_namespace import OUTPUT_DIR

_ENGINES: Final = ("podman", "docker")
_ENGINE_VARIABLE: Final = "CLOUDAI_CONTAINER_ENGINE"
# The words of docker and of podman.
_RUNNING: Final = ("running", "paused", "restarting", "stopping")
_NEVER_RAN: Final = ("", "configured", "created", "initialized")
_ANSWER_SECONDS_MAX: Final = 60.0
# Images of ML tasks have many GiB; who waits for one sees that, and can interrupt it.
_PULL_SECONDS_MAX: Final = 6 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Container:
    """One container around a run, as it is to be made."""

    name: str
    image: str
    output: Path
    """The directory that is /output in it."""
    environment: Mapping[str, str]
    """What is not secret: it can be read in the process list and by `inspect`."""
    files: Mapping[Path, Path] = field(default_factory=dict)
    """Files of this machine by their place in the container, where they are read-only."""
    user: str = ""
    """UID[:GID]; "" for the image's."""
    options: Sequence[str] = ()
    """Words of the engine's own, as they are."""


@dataclass(frozen=True)
class ContainerEngine:
    program: str

    @property
    def name(self) -> str:
        return Path(self.program).name

    def require_image(self, image: str) -> None:
        """Pulls an image that is not here. Raises CommandFailed (125)."""
        if self._ask("image", "inspect", "--format", "{{.Id}}", image).returncode == 0:
            return
        pulled = self._ask("pull", "--quiet", image, seconds_max=_PULL_SECONDS_MAX)
        if pulled.returncode != 0:
            raise CommandFailed(
                ExitCode.NOT_STARTED,
                f"the image {image} is not here, and {self.name} cannot pull it: {_last_line(pulled)}",
            )

    def user_of(self, image: str) -> str:
        """Whom the image's commands run as: a number or a name, with a group behind a colon; "" for root.

        Raises CommandFailed (125).
        """
        asked = self._ask("image", "inspect", "--format", "{{.Config.User}}", image)
        if asked.returncode != 0:
            raise CommandFailed(ExitCode.NOT_STARTED, f"{self.name}: {_last_line(asked)}")
        return asked.stdout.strip()

    def command_line(self, container: Container, command: Sequence[str]) -> list[str]:
        """What runs the command in the container to its end, in the foreground: the terminal, signals and the exit
        status are the command's. The container is there afterwards, until `remove`.
        """
        # Without --rm: docker's program in front of podman's service then ends with 0, whatever the command did.
        words = [self.program, "run", "--interactive", "--name", container.name]
        if sys.stdin.isatty() and sys.stdout.isatty():
            words.append("--tty")
        if container.user:
            words += ["--user", container.user]
        words += ["--volume", f"{container.output}:{OUTPUT_DIR}"]
        for place, file in container.files.items():
            words += ["--volume", f"{file}:{place}:ro"]
        for name, value in container.environment.items():
            words += ["--env", f"{name}={value}"]
        return [*words, *container.options, container.image, *command]

    def exit_status_of(self, name: str, program_status: int) -> int:
        """The exit status of the container's command, whatever became of the program that ran it and its own status.

        A signal that comes while podman starts a container ends podman, with 0, and not the container; so does who
        kills it. The container is then stopped, as politely as the engine does that. One that never ran has the
        program's status, or 125.
        """
        asked = self._ask("container", "inspect", "--format", "{{.State.Status}}", name)
        state = asked.stdout.strip() if asked.returncode == 0 else ""
        if state in _NEVER_RAN:
            return program_status or ExitCode.NOT_STARTED
        if state not in _RUNNING:
            return program_status
        self._ask("stop", name)
        # What inspect says may be from before the engine has read the status.
        said = self._ask("wait", name).stdout.strip()
        return int(said) if said.isdecimal() else program_status or ExitCode.NOT_STARTED

    def remove(self, name: str) -> None:
        """The container is gone, as are its unnamed volumes. One that cannot be removed is left."""
        with suppress(CommandFailed):
            self._ask("rm", "--force", "--volumes", name)

    def _ask(
        self, *arguments: str, seconds_max: float = _ANSWER_SECONDS_MAX
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self.program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds_max,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CommandFailed(ExitCode.NOT_STARTED, f"{self.name}: {error}") from error


def find_engine() -> ContainerEngine:
    """$CLOUDAI_CONTAINER_ENGINE, or the first that is installed. Raises CommandFailed (125)."""
    chosen = os.environ.get(_ENGINE_VARIABLE)
    for name in (chosen,) if chosen else _ENGINES:
        program = shutil.which(name)
        if program is not None:
            return ContainerEngine(program)
    wanted = f"{chosen} (${_ENGINE_VARIABLE})" if chosen else " or ".join(_ENGINES)
    raise CommandFailed(ExitCode.NOT_STARTED, f"--image needs {wanted}, which is not installed")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1].strip() if lines else f"it ended with status {done.returncode}"
