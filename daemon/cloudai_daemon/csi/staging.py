"""Staging: a volume comes to this machine with its mount, and leaves it once nothing of it is here alone.

The record says what is staged: each request may come twice, and be cut off anywhere. Blocks, from any thread. Raises
VolumeFailed; a second request for a volume meanwhile is ABORTED.
"""

from __future__ import annotations

from pathlib import Path

from google.rpc import code_pb2 as codes

from cloudai_daemon.csi.call_deadline import CallDeadline
from cloudai_daemon.csi.errors import VolumeFailed, without_record
from cloudai_daemon.csi.requests import Access
from cloudai_daemon.csi.staged_records import StagedRecords, StagedVolume
from cloudai_daemon.csi.volume_ids import task_id_of
from cloudai_daemon.csi.volume_mounts import VolumeMounts
from cloudai_daemon.csi.volume_runs import VolumeRuns, path_of
from cloudai_daemon.csi.volume_turns import VolumeTurns
from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.mount_shield import take_shield_away
from cloudai_daemon.mount_table import find_mounted
from cloudai_model.boots import current_boot_id


class VolumeStaging:
    """Of all volumes of one driver."""

    def __init__(
        self, mounts: VolumeMounts, records: StagedRecords, runs: VolumeRuns, turns: VolumeTurns
    ) -> None:
        self._mounts = mounts
        self._records = records
        self._runs = runs
        self._turns = turns

    def stage(
        self,
        volume_id: str,
        staging: Path,
        access: Access,
        token: str,
        context: tuple[str, str, str] | None,
        deadline: CallDeadline,
    ) -> None:
        """Mounts the run alone at the staging path; returns when its tree answers. A mount that has begun is not given
        up at the deadline: the same request finds it.
        """
        with self._turns.take(volume_id, deadline):
            known = self._records.find(volume_id)
            if known is not None and self._mounts.is_there(known):
                self._stage_again(known, staging, access, token, deadline)
                return
            user, task, _ = context or ("", "", "")
            run = path_of(self._runs.find(token, volume_id, deadline, user, task))
            if context is not None and run != "/".join(context):
                raise VolumeFailed(codes.NOT_FOUND, f"the run {'/'.join(context)} is not that of {volume_id}")
            record = StagedVolume(
                volume_id=volume_id,
                run=run,
                staging=staging,
                is_read_only=access.is_read_only,
                flags=access.flags,
                boot_id=current_boot_id(),
                published=known.published if known is not None and known.is_of_this_boot else {},
            )
            self._records.save(record)
            try:
                self._records.save_token(volume_id, token)
                if find_mounted(staging) is None:  # what is dead there is cleared away with the mount
                    staging.mkdir(mode=0o750, parents=True, exist_ok=True)
                self._mounts.mount(record)
            except (VolumeFailed, OSError):
                self._undo(record, known)
                raise

    def _stage_again(
        self, known: StagedVolume, staging: Path, access: Access, token: str, deadline: CallDeadline
    ) -> None:
        if known.staging != staging:
            raise VolumeFailed(
                codes.FAILED_PRECONDITION, f"{known.volume_id} is staged at {known.staging}: unstage it there"
            )
        if (known.is_read_only, known.flags) != (access.is_read_only, access.flags):
            raise VolumeFailed(
                codes.ALREADY_EXISTS, f"{known.volume_id} is staged at {staging} with another capability"
            )
        if token != self._records.find_token(known.volume_id):
            # Only one that is good takes the place of one that was.
            user, task, _ = known.run.split("/")
            self._runs.find(token, known.volume_id, deadline, user, task)
            self._records.save_token(known.volume_id, token)
        self._mounts.require_serving(known, deadline)

    def _undo(self, record: StagedVolume, known: StagedVolume | None) -> None:
        """After a staging that failed: what an earlier staging left is kept, and where it is published."""
        take_shield_away(record.staging)
        if known is not None:
            self._records.save(known)
        elif not self._mounts.has_remains(record.volume_id):
            self._records.forget(record.volume_id)

    def unstage(self, volume_id: str, staging: Path, deadline: CallDeadline) -> None:
        """Unmounts once all that was written is at the master; until then DEADLINE_EXCEEDED, and all is as before."""
        with self._turns.take(volume_id, deadline):
            record = self._records.find(volume_id)
            if record is None and (find_at(staging) is not None or self._mounts.has_remains(volume_id)):
                raise without_record(volume_id)
            if record is None or record.staging != staging:
                return
            for place in record.published:
                if self._mounts.is_there(record) and find_mounted(place) is not None:
                    raise VolumeFailed(
                        codes.FAILED_PRECONDITION, f"{volume_id} is published at {place}: unpublish it first"
                    )
            if self._mounts.is_held_elsewhere(record):
                self._mounts.end_processes(record)
            if self._mounts.has_remains(volume_id):
                self._mounts.require_serving(record, deadline)
            if self._mounts.is_there(record):
                self._mounts.unmount(record, deadline)
            take_shield_away(staging)
            if self._mounts.has_remains(volume_id):
                raise VolumeFailed(
                    codes.UNAVAILABLE, f"{volume_id}: its mount daemon died meanwhile: repeat this request"
                )
            self._records.forget(volume_id)

    def is_staged(self, volume_id: str) -> bool:
        """Whether this machine has its run, by whatever id, or something of it that is at no master."""
        return any(
            self._records.find(found) is not None or self._mounts.has_remains(found)
            for found in self._records.list_ids(task_id_of(volume_id))
        )
