"""The live mounts of this machine: one small JSON file each in the runtime directory.

A mount process writes its entry once its tree answers and removes it when it ends. Who reads believes an
entry only while its process is alive, and removes the others, so kill -9 leaves nothing behind for long.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cloudai_daemon.places import escape_path
from cloudai_daemon.process_identity import ProcessIdentity


@dataclass(frozen=True, kw_only=True)
class RegistryEntry:
    mount_point: Path
    source: str
    """The master's host:port, and what of its tree is mounted."""
    control_socket: Path
    state_dir: Path
    process: ProcessIdentity
    read_only: bool = False
    """Whether the daemon itself refuses every change."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str, indent=2)

    @classmethod
    def from_json(cls, text: str) -> RegistryEntry:
        """Raises ValueError for anything but what to_json makes."""
        try:
            fields = json.loads(text)
            process = fields["process"]
            return cls(
                mount_point=Path(fields["mount_point"]),
                source=str(fields["source"]),
                control_socket=Path(fields["control_socket"]),
                state_dir=Path(fields["state_dir"]),
                process=ProcessIdentity(
                    pid=int(process["pid"]),
                    start_ticks=int(process["start_ticks"]),
                    boot_id=str(process["boot_id"]),
                ),
                read_only=bool(fields.get("read_only", False)),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a registry entry: {error}") from error


def supervisor_dir(directory: Path) -> Path:
    """Where the supervisors of mounts are registered, which live while no daemon does."""
    return directory / "supervisors"


def register(entry: RegistryEntry, directory: Path) -> Path:
    """Writes the entry in one step; the file's path. 0644 in a 0755 directory as root: it holds no secret."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = directory / f"{escape_path(entry.mount_point)}.json"
    temporary = path.with_suffix(f".{entry.process.pid}.tmp")
    temporary.write_text(entry.to_json())
    temporary.replace(path)
    return path


def unregister(entry: RegistryEntry, directory: Path) -> None:
    """Removes the entry unless another process has taken the place."""
    path = directory / f"{escape_path(entry.mount_point)}.json"
    with contextlib.suppress(FileNotFoundError, ValueError):
        if RegistryEntry.from_json(path.read_text()).process == entry.process:
            path.unlink()


def find_process(directory: Path, mount_point: Path) -> ProcessIdentity | None:
    """Who is registered for the mount point, dead or alive."""
    entry = _read(directory / f"{escape_path(mount_point)}.json")
    return entry.process if entry is not None else None


def list_live(directories: Sequence[Path]) -> list[RegistryEntry]:
    """The entries whose process is alive, by mount point; stale and damaged ones are removed if we may."""
    found: dict[Path, RegistryEntry] = {}
    for directory in directories:
        try:
            paths = sorted(directory.glob("*.json"))
        except PermissionError:
            continue  # root's, who keeps them to himself
        for path in paths:
            entry = _read(path)
            if entry is not None and entry.process.is_alive:
                found.setdefault(entry.mount_point, entry)
            elif entry is None or not entry.process.is_stuck:
                _remove(path, entry)
    return sorted(found.values(), key=lambda entry: entry.mount_point)


def find_by_path(entries: Sequence[RegistryEntry], path: Path) -> RegistryEntry | None:
    """The entry whose mount point is the longest prefix of an absolute path."""
    containing = [entry for entry in entries if path.is_relative_to(entry.mount_point)]
    return max(containing, key=lambda entry: len(entry.mount_point.parts), default=None)


def _read(path: Path) -> RegistryEntry | None:
    try:
        return RegistryEntry.from_json(path.read_text())
    except (OSError, ValueError):
        return None


def _remove(path: Path, seen: RegistryEntry | None) -> None:
    # Read again: a new daemon may have replaced the stale entry since it was read.
    if _read(path) != seen or not os.access(path.parent, os.W_OK):
        return
    with contextlib.suppress(OSError):
        path.unlink()
