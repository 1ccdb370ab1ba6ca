"""Publishing: a staged volume appears at the place of a pod, and is taken from there again.

Each request may come twice, and be cut off anywhere: a place is in the record before something is bound there, and as
long as something is. Blocks, from any thread. Raises VolumeFailed; a second request for a volume meanwhile is ABORTED.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from google.rpc import code_pb2 as codes

from cloudai_daemon.csi.bind_mounts import bind, find_bound, release
from cloudai_daemon.csi.call_deadline import CallDeadline
from cloudai_daemon.csi.errors import VolumeFailed, invalid, needs_token, refused_at, without_record
from cloudai_daemon.csi.requests import Access
from cloudai_daemon.csi.staged_records import StagedRecords, StagedVolume
from cloudai_daemon.csi.volume_mounts import VolumeMounts
from cloudai_daemon.csi.volume_turns import VolumeTurns
from cloudai_daemon.exit_codes import CommandFailed
from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.mount_table import find_mounted, within_bound

log = logging.getLogger(__name__)


class VolumePublishing:
    """Of all volumes of one driver."""

    def __init__(self, mounts: VolumeMounts, records: StagedRecords, turns: VolumeTurns) -> None:
        self._mounts = mounts
        self._records = records
        self._turns = turns

    def publish(
        self,
        volume_id: str,
        staging: Path,
        place: Path,
        access: Access,
        deadline: CallDeadline,
        *,
        is_read_only: bool,
    ) -> None:
        """Makes the staged volume appear at the place."""
        with self._turns.take(volume_id, deadline):
            record = self._records.find(volume_id)
            if record is None or record.staging != staging or not record.is_of_this_boot:
                raise VolumeFailed(
                    codes.FAILED_PRECONDITION,
                    f"{volume_id} is not staged at {staging}: NodeStageVolume first",
                )
            self._require_free(volume_id, place)
            self._require_outside(place)
            is_read_only = is_read_only or access.is_read_only
            others = [other for other in record.published if other != place and find_mounted(other)]
            if others and access.has_one_place:
                raise VolumeFailed(
                    codes.FAILED_PRECONDITION,
                    f"{volume_id} is published at {others[0]}, and its access mode lets it be at one place only",
                )
            self._mounts.require_serving(record, deadline)
            was_read_only = record.published.get(place)
            if was_read_only not in (None, is_read_only) and find_mounted(place) is not None:
                raise VolumeFailed(
                    codes.ALREADY_EXISTS,
                    f"{volume_id} is published at {place}, {'read-only' if was_read_only else 'to be written'}",
                )
            self._records.save(replace(record, published={**record.published, place: is_read_only}))
            try:
                bind(record.staging, place, is_read_only=is_read_only)
            except (CommandFailed, OSError) as error:
                self._records.save(record)
                raise refused_at(place, error) from error

    def unpublish(self, volume_id: str, place: Path, deadline: CallDeadline) -> None:
        """Takes it away from the place, with the directory.

        Of the last place, returns when all that was written is at the master: as soon as it has returned, the pod may
        be forgotten, and the run sealed.
        """
        with self._turns.take(volume_id, deadline):
            self._require_free(volume_id, place)
            try:
                release(place)
            except (CommandFailed, OSError) as error:
                # INTERNAL where it is in use: who asked comes again.
                raise refused_at(place, error) from error
            record = self._records.find(volume_id)
            if record is None or not record.is_of_this_boot:
                if self._mounts.has_remains(volume_id):
                    raise without_record(volume_id) if record is None else needs_token(volume_id)
                return
            left = {other: words for other, words in record.published.items() if other != place}
            if left != record.published:
                record = replace(record, published=left)
                self._records.save(record)
            if not left:
                self._wait_durable(record, deadline)

    def _wait_durable(self, record: StagedVolume, deadline: CallDeadline) -> None:
        if not self._mounts.is_serving(record) and not self._mounts.has_remains(record.volume_id):
            return
        self._mounts.require_serving(record, deadline)
        try:
            self._mounts.wait_durable(record, deadline)
        except VolumeFailed as error:
            if error.code != codes.FAILED_PRECONDITION:
                raise
            # It needs a person, whom the pod need not wait for: it is said when the volume is to be unstaged.
            log.warning("%s: %s", record.volume_id, error.sentence)

    def _require_free(self, volume_id: str, place: Path) -> None:
        """Raises VolumeFailed (FAILED_PRECONDITION) for a place that is another volume's, or somebody's own mount."""
        for other in self._records.list_all():
            if (
                other.volume_id != volume_id
                and other.is_of_this_boot
                and place in (other.staging, *other.published)
            ):
                raise VolumeFailed(codes.FAILED_PRECONDITION, f"{place} is {other.volume_id}'s")
        if find_at(place) is not None:
            raise VolumeFailed(codes.FAILED_PRECONDITION, f"{place}: somebody has mounted something there")

    def _require_outside(self, place: Path) -> None:
        """Raises VolumeFailed (INVALID_ARGUMENT) for a place within a volume: its directory would be the run's."""
        for record in self._records.list_all():
            if record.is_of_this_boot and not {record.staging, *record.published}.isdisjoint(place.parents):
                raise invalid(
                    f"target_path: is within {record.volume_id}, which is staged or published there"
                )

    def usage(self, volume_id: str, path: Path) -> os.statvfs_result:
        """What statvfs(2) says of a staged or published volume, within some seconds."""
        record = self._records.find(volume_id)
        if record is None or path not in (record.staging, *record.published):
            raise VolumeFailed(codes.NOT_FOUND, f"{volume_id} is not at {path} on this node")
        try:
            if find_bound(path) is None:
                raise VolumeFailed(codes.NOT_FOUND, f"nothing is mounted at {path}")
            return within_bound(lambda: os.statvfs(path))
        except (CommandFailed, OSError) as error:
            raise refused_at(path, error) from error
