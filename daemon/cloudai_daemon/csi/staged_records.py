"""What is staged on this machine, and where it is published: a JSON file for each volume, in a folder of its own.

A record is written before something is mounted and taken away after it is unmounted, so a driver that was killed finds
all that it may have left. It holds no secret: tokens are files in a runtime directory, gone with a reboot. Beside the
record is the state directory of the volume's mount, which outlives both until all that was staged is at the master.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from cloudai_daemon.csi.volume_ids import task_id_of
from cloudai_daemon.places import make_private_dir
from cloudai_model.boots import current_boot_id

log = logging.getLogger(__name__)

_RECORD_NAME: Final = "volume.json"

_FileState = tuple[int, int, int]
"""Another one, another content: each is a new file, and a person's editor moves the time."""


@dataclass(frozen=True, kw_only=True)
class StagedVolume:
    volume_id: str
    run: str
    """user/task/run"""
    staging: Path
    """The mount point."""
    is_read_only: bool
    flags: tuple[str, ...] = ()
    boot_id: str
    """Of the machine when it was staged: nothing is mounted of an earlier one."""
    published: Mapping[Path, bool] = field(default_factory=dict)
    """Where, and whether read-only there."""

    @property
    def is_of_this_boot(self) -> bool:
        return self.boot_id == current_boot_id()


class StagedRecords:
    """Blocks on the disk. Several volumes may be used at once, one by one caller at a time. Raises OSError."""

    def __init__(self, directory: Path, token_dir: Path) -> None:
        self._directory = directory
        self._token_dir = token_dir
        self._damaged: set[str] = set()
        self._read: dict[str, tuple[_FileState, StagedVolume]] = {}
        make_private_dir(directory)
        make_private_dir(token_dir)

    def mount_state_dir(self, volume_id: str) -> Path:
        return self._directory / volume_id / "mount"

    def token_file(self, volume_id: str) -> Path:
        return self._token_dir / volume_id

    def find(self, volume_id: str) -> StagedVolume | None:
        """One that is damaged is said in the log once, and is as good as none."""
        path = self._directory / volume_id / _RECORD_NAME
        try:
            return self._read_if_changed(volume_id, path)
        except (FileNotFoundError, NotADirectoryError):
            self._read.pop(volume_id, None)
            return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IsADirectoryError):
            if volume_id not in self._damaged:
                self._damaged.add(volume_id)
                log.warning("%s is damaged: what is beside it stays there until it is staged again", path)
            return None

    def _read_if_changed(self, volume_id: str, path: Path) -> StagedVolume:
        # All are looked at every second and for each place: reading a hundred took 4 ms, this takes less than one.
        state = _state_of(path)
        seen = self._read.get(volume_id)
        if seen is not None and seen[0] == state:
            return seen[1]
        record = _from_json(path.read_text())
        self._read[volume_id] = (state, record)
        return record

    def list_ids(self, task_id: str) -> list[str]:
        """Under which a run has something here: a record, or what a mount has left."""
        return [path.name for path in self._directory.iterdir() if task_id_of(path.name) == task_id]

    def list_all(self) -> list[StagedVolume]:
        found = [self.find(path.name) for path in sorted(self._directory.iterdir())]
        return [record for record in found if record is not None]

    def save(self, record: StagedVolume) -> None:
        """Returns when it is on the disk."""
        directory = self._directory / record.volume_id
        make_private_dir(directory)
        path = directory / _RECORD_NAME
        temporary = path.with_suffix(".tmp")
        fields = asdict(record)
        fields["published"] = {str(place): is_read_only for place, is_read_only in record.published.items()}
        with temporary.open("w") as file:
            json.dump(fields, file, default=str, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._drop_what_was_read(record.volume_id)
        _sync_directory(directory)
        _sync_directory(self._directory)

    def save_token(self, volume_id: str, token: str) -> None:
        """0600, replaced in one step: the mount reads it again when the master refuses the one it has."""
        make_private_dir(self._token_dir)
        path = self.token_file(volume_id)
        temporary = self._token_dir / f".{volume_id}.tmp"
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(token)
        temporary.replace(path)

    def find_token(self, volume_id: str) -> str | None:
        with suppress(FileNotFoundError):
            return self.token_file(volume_id).read_text()
        return None

    def forget(self, volume_id: str) -> None:
        """With the state directory: only once nothing is staged in it."""
        self.token_file(volume_id).unlink(missing_ok=True)
        (self._directory / volume_id / _RECORD_NAME).unlink(missing_ok=True)
        shutil.rmtree(self._directory / volume_id, ignore_errors=True)
        self._drop_what_was_read(volume_id)

    def _drop_what_was_read(self, volume_id: str) -> None:
        # Not left to the next `find`: of a volume that is gone there is none.
        self._read.pop(volume_id, None)
        self._damaged.discard(volume_id)


def _state_of(path: Path) -> _FileState:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _from_json(text: str) -> StagedVolume:
    """Raises ValueError, KeyError, TypeError or AttributeError for anything that `save` did not write."""
    fields = json.loads(text)
    published = {Path(place): bool(is_read_only) for place, is_read_only in fields["published"].items()}
    return StagedVolume(
        **{
            # A driver of another version may have written more.
            **{name: fields[name] for name in ("volume_id", "run", "is_read_only", "boot_id")},
            "staging": Path(fields["staging"]),
            "flags": tuple(fields.get("flags", ())),
            "published": published,
        }
    )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
