"""Which mount a command means, and where in it a path is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cloudai_daemon.control_client import DaemonUnreachable
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_table import find_mounted, within_bound
from cloudai_daemon.mounting import resolve_mount_point
from cloudai_daemon.places import runtime_dirs_to_search
from cloudai_daemon.registry import RegistryEntry, find_by_path, list_live

_PATH_SECONDS_MAX: Final = 15.0
"""A name that has to be asked for comes by then, if the master answers; a daemon that was stopped does not."""


@dataclass(frozen=True, kw_only=True)
class MountedPath:
    """A place in a mount that is alive."""

    entry: RegistryEntry
    path: str
    """Relative to the mount point, "" for the mount point itself; as MountControl takes it."""


def list_mounts() -> list[RegistryEntry]:
    """The live mounts that this user can know of, by mount point."""
    return list_live(runtime_dirs_to_search())


def find_at(mount_point: Path) -> RegistryEntry | None:
    """The live mount at exactly this place."""
    return next((entry for entry in list_mounts() if entry.mount_point == mount_point), None)


def require_alive(mount_point: Path) -> RegistryEntry:
    """The live mount at exactly this place. Raises DaemonUnreachable."""
    entry = find_at(mount_point)
    if entry is None:
        raise DaemonUnreachable(mount_point, "it is not running")
    return entry


def require_at(directory: Path) -> RegistryEntry:
    """The live mount whose mount point this is. Raises CommandFailed."""
    entry = find_at(resolve_mount_point(directory))
    if entry is None:
        raise CommandFailed(ExitCode.FAILED, f"{directory}: no CloudAI mount here")
    return entry


def locate(path: Path) -> MountedPath:
    """The mount that an existing path is in. Raises CommandFailed for a path that is in none."""
    mounts = list_mounts()
    try:
        resolved, is_there = within_bound(partial(_resolve, path), _PATH_SECONDS_MAX)
    except TimeoutError as error:
        raise CommandFailed(ExitCode.FAILED, f"{path}: what is mounted there does not answer") from error
    entry = find_by_path(mounts, resolved)
    if entry is None:
        raise CommandFailed(ExitCode.FAILED, f"{path}: not in a CloudAI mount")
    if not is_there:
        raise CommandFailed(ExitCode.FAILED, f"{path}: no such file or directory")
    relative = resolved.relative_to(entry.mount_point)
    return MountedPath(entry=entry, path="" if relative == Path() else str(relative))


def _resolve(path: Path) -> tuple[Path, bool]:
    resolved = Path(os.path.realpath(path))
    return resolved, os.path.lexists(resolved)


def choose_mount(given: Path | None) -> RegistryEntry:
    """The mount to work in: the one given, $CLOUDAI_MOUNT's, the working directory's, or the only one.

    Raises CommandFailed when that is none or not clear.
    """
    if given is not None:
        return require_at(given)
    if from_environment := os.environ.get("CLOUDAI_MOUNT"):
        return require_at(Path(from_environment))
    mounts = [entry for entry in list_mounts() if find_mounted(entry.mount_point) is not None]
    here = find_by_path(mounts, Path.cwd())
    if here is not None:
        return here
    if not mounts:
        raise CommandFailed(ExitCode.FAILED, "nothing is mounted: `cloudai mount` or `cloudai up` first")
    if len(mounts) > 1:
        places = ", ".join(str(entry.mount_point) for entry in mounts)
        raise CommandFailed(ExitCode.FAILED, f"several mounts, say which with --mount: {places}")
    return mounts[0]
