"""Repairs: what is staged and published by its record, and is not there any more, is mounted and bound again.

A driver that starts in a new container finds its mounts dead, as they died with the old one. A mount whose daemon was
killed comes back by its supervisor, and what was bound of it by this. Blocks, from any thread. Raises VolumeFailed or
OSError.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from cloudai_daemon.csi.bind_mounts import bind, is_bind_of, is_bound
from cloudai_daemon.csi.errors import refused_at
from cloudai_daemon.csi.staged_records import StagedRecords, StagedVolume
from cloudai_daemon.csi.volume_mounts import VolumeMounts
from cloudai_daemon.csi.volume_turns import VolumeTurns
from cloudai_daemon.exit_codes import CommandFailed
from cloudai_daemon.mount_lookup import list_mounts
from cloudai_daemon.mount_table import FILE_SYSTEM_TYPE, MountedTree, list_mounted

log = logging.getLogger(__name__)


class Repairs:
    """Of all volumes of one driver."""

    def __init__(self, mounts: VolumeMounts, records: StagedRecords, turns: VolumeTurns) -> None:
        self._mounts = mounts
        self._records = records
        self._turns = turns

    def list_broken(self) -> list[str]:
        """The ids of volumes that may need `repair`: a look at all costs what a look at one does."""
        records = [record for record in self._records.list_all() if record.is_of_this_boot]
        if not records:
            return []
        mounted = {tree.mount_point: tree for tree in list_mounted()}
        served = {entry.mount_point for entry in list_mounts()}
        return [record.volume_id for record in records if not _is_whole(record, mounted, served)]

    def repair(self, volume_id: str) -> None:
        """Mounts again what died with its supervisor, and binds to its places what they have lost.

        Nothing is done for a volume that a request has.
        """
        with self._turns.take_if_free(volume_id) as is_ours:
            record = self._records.find(volume_id) if is_ours else None
            if record is None or not record.is_of_this_boot:
                return
            if not self._mounts.is_serving(record):
                if self._mounts.find_supervisor(record) is not None:
                    return  # who mounts it as soon as it can be
                self._mounts.mount(record)
                log.info("%s is mounted again", volume_id)
            for place, is_read_only in record.published.items():
                if place.parent.is_dir() and not is_bound(place, record.staging, is_read_only=is_read_only):
                    _bind_again(record, place, is_read_only=is_read_only)


def _bind_again(record: StagedVolume, place: Path, *, is_read_only: bool) -> None:
    try:
        bind(record.staging, place, is_read_only=is_read_only)
    except (CommandFailed, OSError) as error:
        raise refused_at(place, error) from error
    log.info("%s is at %s again", record.volume_id, place)


def _is_whole(record: StagedVolume, mounted: Mapping[Path, MountedTree], served: Collection[Path]) -> bool:
    staged = mounted.get(record.staging)
    return (
        record.staging in served
        and staged is not None
        and staged.file_system_type == FILE_SYSTEM_TYPE
        and all(
            is_bind_of(mounted.get(place), staged, is_read_only=is_read_only)
            for place, is_read_only in record.published.items()
        )
    )
