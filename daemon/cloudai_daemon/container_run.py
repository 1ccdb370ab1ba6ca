"""`cloudai run --image`: a run whose command is in a container.

What can be refused is refused before there is a run (`plan_container`). The engine's own program is the command that
runs in the foreground: it passes signals on and ends with the container's status. The container has ended, whatever
became of that program, before its uploads are waited for.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudai_daemon.container_engine import Container, ContainerEngine, find_engine
from cloudai_daemon.container_users import ContainerUser, give_to, parse_container_user, require_access
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.foreground_command import CommandNotStarted, run_in_foreground
from cloudai_daemon.output_namespace import OUTPUT_DIR
from cloudai_daemon.run_token import TOKEN_FILE, run_token_file
from cloudai_daemon.task_run import TaskRun

_OWN_OPTIONS: Final = ("--name", "--detach", "-d", "--rm")
"""What a container's exit status is found by."""


@dataclass(frozen=True, kw_only=True)
class ContainerPlan:
    """A container that can be made as soon as there is a run."""

    engine: ContainerEngine
    image: str
    user_words: str
    """As the engine is to be told; "" for the image's own."""
    user: ContainerUser | None
    """Who that is for the mount; None for root."""
    options: Sequence[str]


def plan_container(mount_point: Path, image: str, user: str, options: Sequence[str]) -> ContainerPlan:
    """Finds an engine, brings the image here, and checks that its user can write to a run of the mount.

    Raises CommandFailed (125): there is no run then.
    """
    _check_words(image, options)
    if ":" in str(mount_point):
        raise CommandFailed(ExitCode.NOT_STARTED, f"{mount_point}: no container takes a path with a colon")
    engine = find_engine()
    engine.require_image(image)
    who = user or engine.user_of(image)
    try:
        container_user = parse_container_user(who)
    except ValueError as error:
        why = (
            str(error)
            if user
            else f"the image {image} runs as {who!r}: say with --user which UID[:GID] that is"
        )
        raise CommandFailed(ExitCode.NOT_STARTED, why) from error
    require_access(mount_point, container_user)
    return ContainerPlan(engine=engine, image=image, user_words=user, user=container_user, options=options)


def _check_words(image: str, options: Sequence[str]) -> None:
    if image.startswith("-"):
        raise CommandFailed(ExitCode.NOT_STARTED, f"{image}: not the name of an image")
    for option in options:
        if option.partition("=")[0] in _OWN_OPTIONS:
            raise CommandFailed(
                ExitCode.NOT_STARTED,
                f"--container-option {option}: the container's name and its end are looked after here",
            )


def run_in_container(
    run: TaskRun, plan: ContainerPlan, command: Sequence[str], say: Callable[[str], None]
) -> int:
    """Runs the command with the run's directory as /output; its exit status.

    A container that cannot be made is 125, a command that cannot be executed in it 126 or 127, as the engine says.
    `say` prints a line for a person.
    """
    name = f"cloudai-{run.place.task_id}-{secrets.token_hex(4)}"
    try:
        if not run.is_joined:
            give_to(run.directory, plan.user)
        with run_token_file(run, plan.user, name, say) as token_file:
            container = _describe(run, plan, name, token_file)
            program_status = run_in_foreground(plan.engine.command_line(container, command), os.environ)
            return plan.engine.exit_status_of(name, program_status)
    except CommandNotStarted as error:
        say(str(error))
        return error.exit_status
    except CommandFailed as error:
        say(error.line)
        return error.exit_code
    finally:
        plan.engine.remove(name)


def _describe(run: TaskRun, plan: ContainerPlan, name: str, token_file: Path | None) -> Container:
    variables = run.variables(OUTPUT_DIR)
    files = {}
    if token_file is not None:
        variables |= {"CLOUDAI_SOURCE": run.source, "CLOUDAI_TOKEN_FILE": str(TOKEN_FILE)}
        files[TOKEN_FILE] = token_file
    return Container(
        name=name,
        image=plan.image,
        output=run.directory,
        environment=variables,
        files=files,
        user=plan.user_words,
        options=plan.options,
    )
