"""What the person who mounts is told where that failed: one line, which says what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloudai_daemon.mount_table import within_bound
from cloudai_daemon.quantities import format_bytes
from cloudai_fusefs.mount_control import CACHE_FREE_BYTES_MIN, MountConfig
from cloudai_model.errors import CloudAIError, MasterUnavailable, Unauthenticated
from cloudai_model.full_disks import is_lack_of_room

# For the kernel's answer to a look at a master: name servers take longest.
_EXPLANATION_SECONDS_MAX: Final = 7.0


def describe_failure(config: MountConfig, error: Exception) -> str:
    """Blocks: a master that did not answer is looked for once more, for some seconds."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, MasterUnavailable):
        why = _explain_silence(config)
        return f"{config.source}: {MasterUnavailable.sentence}: {why}" if why else f"{config.source}: {error}"
    if isinstance(error, Unauthenticated):
        return f"{config.source}: {error}; {advise_new_token(str(config.token_file or ''))}"
    if isinstance(error, CloudAIError):
        return f"{config.source}: {error}"
    if isinstance(error, OSError) and error.strerror:
        place = config.state_dir if is_lack_of_room(error) else config.mount_point
        return describe_os_error(error, place)
    return f"{config.mount_point}: {error}"


def describe_os_error(error: OSError, place: Path) -> str:
    """`place`: what it is about, unless the error says that itself."""
    line = f"{error.filename or place}: {error.strerror}"
    return f"{line}: {advise_room('state_dir')}" if is_lack_of_room(error) else line


def _explain_silence(config: MountConfig) -> str:
    # Imported here: ssl takes 20 ms, and most mounts are made.
    from cloudai_daemon.master_probe import explain_silence

    try:
        return within_bound(
            lambda: explain_silence(config.address, insecure=config.insecure, ca_file=config.ca_file),
            _EXPLANATION_SECONDS_MAX,
        )
    except OSError:
        return ""


def advise_room(option: str) -> str:
    """`option`: which directory is on the disk that is full."""
    return f"make room there, or give another {option}="


def advise_new_token(token_file: str) -> str:
    """`token_file`: "" for a token that was not in one."""
    into = f"write it to {token_file}" if token_file else "mount again with it"
    return f"`cloudai-master token create` makes a new one; {into}"


def warn_of_full_cache(cache_dir: Path, say: Callable[[str], None]) -> None:
    """Of a cache whose disk has no room for it, or does not answer: neither is a reason not to mount."""
    try:
        free_bytes = within_bound(lambda: _measure_room(cache_dir))
    except OSError as error:
        say(f"warning: {cache_dir}: {error.strerror}")
        return
    if free_bytes < CACHE_FREE_BYTES_MIN:
        say(
            f"warning: {cache_dir} has {format_bytes(free_bytes)} free: nothing more is cached until there is "
            f"{format_bytes(CACHE_FREE_BYTES_MIN)}; {advise_room('cache_dir')}"
        )


def _measure_room(directory: Path) -> int:
    """Free bytes where it is, or would be made."""
    place = next((place for place in (directory, *directory.parents) if place.is_dir()), Path("/"))
    disk = os.statvfs(place)
    return disk.f_bavail * disk.f_frsize
