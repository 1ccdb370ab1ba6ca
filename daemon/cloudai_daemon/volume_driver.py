"""Volumes that are runs: what docker's and podman's requests do.

A volume is a run of a mount that is there already, so nothing is started for a container: mounting it is telling where
its directory is. Which containers have it is the engine's to know; nothing here is lost when this process is, and every
request may come twice. A read-only one has a bind mount of its own, which is made anew when it is missing or dead.

Blocks, for what it asks of the mount at most STEP_SECONDS_MAX each. Raises VolumeRefused with one sentence.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from cloudai_daemon.container_users import give_to, require_access
from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import RemoteError
from cloudai_daemon.exit_codes import CommandFailed
from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.mount_table import find_mounted, is_dead, unmount, within_bound
from cloudai_daemon.places import make_private_dir
from cloudai_daemon.read_only_stand import make_read_only_stand
from cloudai_daemon.registry import RegistryEntry
from cloudai_daemon.volume_records import (
    SealWhen,
    VolumeOptions,
    VolumeRecord,
    VolumeRecords,
    VolumeRefused,
    check_volume_name,
    parse_volume_options,
)
from cloudai_fusefs.mount_control import RunPlace
from cloudai_model.errors import AlreadyExists, MasterUnavailable, NotFound, RunSealed

STEP_SECONDS_MAX: Final = 4.0


class VolumeDriver:
    """Volumes of one mount. Requests of different volumes may come at once, of one volume one after another."""

    def __init__(self, mount_point: Path, records: VolumeRecords, stand_dir: Path) -> None:
        """Bind mounts of read-only volumes are made in `stand_dir`."""
        self._mount_point = mount_point
        self._records = records
        self._stand_dir = stand_dir

    def create(self, name: str, given: Mapping[str, str]) -> None:
        """A volume with a run of its own, or with the run that `run=` names. Done already, it changes nothing."""
        check_volume_name(name)
        options = parse_volume_options(given)
        record = self._records.find(name)
        if record is not None and record.options != options:
            if record.is_complete:
                raise VolumeRefused(f"there is a volume {name} with other options")
            record = None
        if record is not None and record.is_complete:
            return
        self._complete(
            record
            or VolumeRecord(
                name=name, mount_point=self._mount_point, options=options, task_id=secrets.token_hex(12)
            )
        )

    def remove(self, name: str) -> None:
        """Forgets the volume. With seal=on-remove its run is sealed first, once all of it is durable."""
        record = self._records.find(name)
        if record is None:
            return
        if record.is_complete and record.options.seal is SealWhen.ON_REMOVE:
            _seal(record)
        self._take_stand_away(self._stand_dir / name)
        self._records.remove(name)

    def mount(self, name: str) -> Path:
        """Where its directory is, which answers."""
        record = self._require(name)
        _require_alive(record.mount_point)
        try:
            within_bound(record.run_dir.stat, STEP_SECONDS_MAX)
            if record.options.read_only:
                self._make_stand(record)
        except OSError as error:
            raise VolumeRefused(f"{record.run_dir}: {error.strerror}") from error
        return self.path(name)

    def path(self, name: str) -> Path:
        record = self._require(name)
        return self._stand_dir / name if record.options.read_only else record.run_dir

    def dead_stands(self) -> list[str]:
        """The read-only volumes whose bind mount is of a daemon that is gone.

        The engine asks for a volume once, for its first container: for the next one it has to be there again by itself.
        """
        try:
            stands = list(self._stand_dir.iterdir())
        except FileNotFoundError:
            return []
        return [stand.name for stand in stands if is_dead(stand)]

    def list_all(self) -> list[VolumeRecord]:
        return [record for record in self._records.list_all() if record.is_complete]

    def find(self, name: str) -> VolumeRecord:
        return self._require(name)

    def _require(self, name: str) -> VolumeRecord:
        record = self._records.find(name)
        if record is None or not record.is_complete:
            raise VolumeRefused(f"no volume {name}")
        return record

    def _complete(self, record: VolumeRecord) -> None:
        """Makes or finds the run. Before and after, the record is on the disk: cut off, the next request goes on."""
        entry = _require_alive(record.mount_point)
        options = record.options
        try:
            require_access(record.mount_point, options.user)
            self._records.save(record)
            place = _make_run(entry, options, record.task_id)
            if not options.read_only:
                give_to(record.mount_point / place.path, options.user)
        except CommandFailed as error:
            raise VolumeRefused(error.line) from error
        except (RemoteError, DaemonUnreachable) as error:
            # Refused, there is no run; otherwise there may be one, which the next request finds by its task id.
            if isinstance(error, RemoteError) and not error.is_a(MasterUnavailable):
                self._records.remove(record.name)
            raise VolumeRefused(f"no run of {options.task!r} could be made: {error}") from error
        self._records.save(replace(record, path=place.path, task_id=place.task_id))

    def _make_stand(self, record: VolumeRecord) -> None:
        stand = self._stand_dir / record.name
        run = record.run_dir.stat()
        mounted = find_mounted(stand)
        # A stand that could not be taken away may be of the run of an earlier volume of this name.
        if mounted is not None and mounted.device == run.st_dev and stand.stat().st_ino == run.st_ino:
            return
        self._take_stand_away(stand)
        make_private_dir(stand)
        try:
            make_read_only_stand(record.run_dir, stand, STEP_SECONDS_MAX)
        except OSError:
            # Cut off, it may have left one that can be made writable again.
            self._take_stand_away(stand)
            raise

    def _take_stand_away(self, stand: Path) -> None:
        with suppress(CommandFailed):
            while find_mounted(stand) is not None:
                unmount(stand, lazily=is_dead(stand))
        with suppress(OSError):
            stand.rmdir()


def _require_alive(mount_point: Path) -> RegistryEntry:
    entry = find_at(mount_point)
    if entry is None or find_mounted(mount_point) is None:
        raise VolumeRefused(
            f"nothing is mounted at {mount_point}: `cloudai mount SOURCE {mount_point}` first"
        )
    return entry


def _make_run(entry: RegistryEntry, options: VolumeOptions, task_id: str) -> RunPlace:
    """The run that the options name, or a new one with this task id, which may have been made before.

    Raises RemoteError, DaemonUnreachable.
    """
    wanted = {"task": options.task, "name": options.run, "task_id": task_id}
    with ControlClient(entry) as client:
        try:
            return RunPlace(**client.call("create_run", wanted, STEP_SECONDS_MAX))
        except RemoteError as error:
            if not error.is_a(AlreadyExists):
                raise
        return _find_run(client, options, task_id)


def _find_run(client: ControlClient, options: VolumeOptions, task_id: str) -> RunPlace:
    named = f"{client.status().user}/{options.task}/{options.run}"
    root = client.entry.source.partition("/")[2]
    for run in client.list_runs():
        if run.task_id == task_id or "/".join(part for part in (root, run.path) if part) == named:
            if run.sealed and not options.read_only:
                raise VolumeRefused(f"the run {run.path} is sealed: with -o ro it can be read")
            return RunPlace(path=run.path, task_id=run.task_id)
    raise VolumeRefused(f"no run {options.run!r} of {options.task!r} can be seen here")


def _seal(record: VolumeRecord) -> None:
    entry = _require_alive(record.mount_point)
    # Exit status 0: what becomes of containers is not told to volumes.
    request = {"path": record.path, "exit_status": 0}
    try:
        with ControlClient(entry) as client:
            # A run of the same name that somebody made in its place is not the volume's.
            if any((run.path, run.task_id) == (record.path, record.task_id) for run in client.list_runs()):
                client.call("seal_run", request, STEP_SECONDS_MAX)
    except RemoteError as error:
        if not error.is_a(RunSealed) and not error.is_a(NotFound):
            raise VolumeRefused(f"{record.run_dir} is not sealed: {error}") from error
    except DaemonUnreachable as error:
        raise VolumeRefused(
            f"{record.run_dir} is not sealed yet, as its uploads go on: remove {record.name} again "
            f"once `cloudai wait {record.run_dir}` has ended"
        ) from error
