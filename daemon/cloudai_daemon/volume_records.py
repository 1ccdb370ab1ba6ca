"""The volumes of this machine: what was asked of each, and which run it became. A JSON file for each.

A record is written before the run is asked for, with the task id that it is to have, so that a creation which was cut
off anywhere is completed by the next one of the same name. Files are replaced in one step and synced.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from cloudai_daemon.container_users import ContainerUser, parse_container_user
from cloudai_daemon.places import make_private_dir

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", re.ASCII)


class VolumeRefused(Exception):
    """A request that cannot be carried out, in one sentence for whoever typed it."""


class SealWhen(StrEnum):
    NEVER = "never"
    ON_REMOVE = "on-remove"


@dataclass(frozen=True, kw_only=True)
class VolumeOptions:
    """The words behind `-o`."""

    task: str
    run: str = ""
    """Its name; "" for a new one."""
    seal: SealWhen = SealWhen.NEVER
    uid: str = ""
    """UID[:GID] that the run is given to."""
    read_only: bool = False

    @property
    def user(self) -> ContainerUser | None:
        return parse_container_user(self.uid)


@dataclass(frozen=True, kw_only=True)
class VolumeRecord:
    name: str
    mount_point: Path
    options: VolumeOptions
    task_id: str
    path: str = ""
    """Of the run, relative to the mount point; "" until there is one."""

    @property
    def run_dir(self) -> Path:
        return self.mount_point / self.path

    @property
    def is_complete(self) -> bool:
        return self.path != ""


def check_volume_name(name: str) -> None:
    """Accept what docker and podman accept. Raises VolumeRefused."""
    if not _NAME.fullmatch(name):
        raise VolumeRefused(
            f"{name[:80]!r} is no name of a volume: letters, digits, and _ . - behind the first"
        )


def parse_volume_options(given: Mapping[str, str]) -> VolumeOptions:
    """Raises VolumeRefused for a word that is unknown, missing or not valid."""
    unknown = sorted(given.keys() - {"task", "run", "seal", "uid", "ro"})
    if unknown:
        raise VolumeRefused(f"unknown option {unknown[0]!r}: there are task=, run=, seal=, uid= and ro")
    if not given.get("task"):
        raise VolumeRefused("the option task= is missing")
    try:
        seal = SealWhen(given.get("seal", SealWhen.NEVER))
    except ValueError as error:
        raise VolumeRefused("seal= is on-remove or never") from error
    if given.get("ro", "") not in ("", "true"):
        raise VolumeRefused("ro takes no value")
    if "ro" in given and seal is SealWhen.ON_REMOVE:
        raise VolumeRefused("ro and seal=on-remove exclude each other: who may only read ends no run")
    try:
        parse_container_user(given.get("uid", ""))
    except ValueError as error:
        raise VolumeRefused(f"uid=: {error}") from error
    return VolumeOptions(
        task=given["task"],
        run=given.get("run", ""),
        seal=seal,
        uid=given.get("uid", ""),
        read_only="ro" in given,
    )


class VolumeRecords:
    """Blocks on the disk; raises VolumeRefused for a file that is damaged. Several names may be used at once, one
    name by one caller at a time.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        make_private_dir(directory)

    def find(self, name: str) -> VolumeRecord | None:
        try:
            return _from_json(self._path(name).read_text())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VolumeRefused(
                f"{self._path(name)} is damaged: remove it, the run stays where it is"
            ) from error

    def list_all(self) -> list[VolumeRecord]:
        """By name. One that cannot be read hides none of the others."""
        found = []
        for name in sorted(path.stem for path in self._directory.glob("*.json")):
            try:
                record = self.find(name)
            except VolumeRefused as error:
                log.warning("%s", error)
                continue
            if record is not None:
                found.append(record)
        return found

    def save(self, record: VolumeRecord) -> None:
        """Returns when it is on the disk."""
        path = self._path(record.name)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump(asdict(record), file, default=str, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._sync_directory()

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)
        self._sync_directory()

    def _path(self, name: str) -> Path:
        check_volume_name(name)
        return self._directory / f"{name}.json"

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _from_json(text: str) -> VolumeRecord:
    """Raises ValueError, KeyError, TypeError or AttributeError for anything that `save` did not write."""
    fields = json.loads(text)
    options = fields.pop("options")
    return VolumeRecord(
        **{**fields, "mount_point": Path(fields["mount_point"])},
        options=VolumeOptions(**{**options, "seal": SealWhen(options["seal"])}),
    )
