"""The mounts of this machine, each with its tree and its daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloudai_daemon.doctor.daemon import look_at_daemon
from cloudai_daemon.doctor.findings import Finding, MountFindings, note
from cloudai_daemon.doctor.tree import check_answer, check_background, check_read_ahead
from cloudai_daemon.mount_lookup import list_mounts
from cloudai_daemon.mount_table import FILE_SYSTEM_TYPE, list_mounted, within_bound
from cloudai_daemon.registry import RegistryEntry
from cloudai_fusefs.kernel_knobs import (
    background_knobs,
    read_ahead_knob,
)


@dataclass(frozen=True, kw_only=True)
class _Mount:
    """A mount as the kernel or the registry knows it."""

    mount_point: Path
    source: str
    device: int | None
    """None: the kernel does not list it."""
    entry: RegistryEntry | None
    """None: no daemon that this user knows of serves it."""


def look_at_mounts(directory: Path | None) -> list[MountFindings]:
    """All mounts of ours that this user can know of, or the one that the directory is in; [] if there is none."""
    found = _list_all()
    if directory is not None:
        found = _containing(found, directory)
    return [
        MountFindings(
            mount_point=mount.mount_point, source=mount.source, findings=list(_look_at_mount(mount))
        )
        for mount in found
    ]


def _list_all() -> list[_Mount]:
    entries = {entry.mount_point: entry for entry in list_mounts()}
    mounted = {tree.mount_point: tree for tree in list_mounted()}
    ours = {place for place, tree in mounted.items() if tree.file_system_type == FILE_SYSTEM_TYPE}
    found = []
    for place in sorted(entries.keys() | ours):
        entry, tree = entries.get(place), mounted.get(place)
        found.append(
            _Mount(
                mount_point=place,
                source=entry.source if entry is not None else tree.source if tree is not None else "",
                device=tree.device if tree is not None else None,
                entry=entry,
            )
        )
    return found


def _containing(mounts: list[_Mount], directory: Path) -> list[_Mount]:
    try:
        path = within_bound(lambda: Path(os.path.realpath(directory)))
    except OSError:
        path = Path(os.path.abspath(directory))  # noqa: PTH100  # as it is written: the tree hangs
    containing = [mount for mount in mounts if path.is_relative_to(mount.mount_point)]
    return sorted(containing, key=lambda mount: len(mount.mount_point.parts))[-1:]


def _look_at_mount(mount: _Mount) -> Iterator[Finding]:
    if mount.device is not None:
        yield check_answer(mount.mount_point)
        yield check_read_ahead(read_ahead_knob(mount.device))
        yield check_background(background_knobs(mount.device)[0])
    else:
        yield note("tree", "is not mounted where this program runs", "look in the daemon's mount namespace")
    if mount.entry is not None:
        yield from look_at_daemon(mount.entry)
    else:
        yield note(
            "daemon",
            "not among those that this user knows of",
            "look as the user who mounted it, with the same $CLOUDAI_RUNTIME_DIR",
        )
