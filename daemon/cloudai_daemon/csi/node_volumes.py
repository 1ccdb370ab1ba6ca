"""Volumes on this machine: what the node service's requests do.

A staged volume is a mount of its run alone, with a daemon and a supervisor of its own and a state directory below the
driver's. A published one is a bind mount of that. Nothing of either is lost when this process is: the records say what
there is, every request may come twice, and `revive` puts back what has died.

Blocks, from any thread. Raises VolumeFailed; a second request for a volume meanwhile is ABORTED.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from google.rpc import code_pb2 as codes

from cloudai_daemon.control_protocol import RemoteError
from cloudai_daemon.csi.bind_mounts import bind, find_bound, is_bind_of, is_bound, release
from cloudai_daemon.csi.errors import VolumeFailed
from cloudai_daemon.csi.requests import Access
from cloudai_daemon.csi.staged_records import StagedRecords, StagedVolume
from cloudai_daemon.csi.volume_runs import VolumeRuns, path_of
from cloudai_daemon.csi.volume_turns import VolumeTurns
from cloudai_daemon.exit_codes import CommandFailed
from cloudai_daemon.mount_helper import FILE_SYSTEM_TYPE
from cloudai_daemon.mount_lookup import find_at, list_mounts
from cloudai_daemon.mount_shield import take_shield_away
from cloudai_daemon.mount_table import MountedTree, find_mounted, list_mounted, within_bound
from cloudai_daemon.mounting import prepare_mount, resolve_config, start_mount
from cloudai_daemon.options import MountOptions
from cloudai_daemon.places import runtime_dirs_to_search
from cloudai_daemon.process_identity import ProcessIdentity, boot_id
from cloudai_daemon.registry import list_live, supervisor_dir
from cloudai_daemon.unmounting import unmount_when_durable
from cloudai_daemon.upload_wait import NotDurable, wait_durable
from cloudai_fusefs.remains import has_remains
from cloudai_model.errors import NoSpace, QuotaExceeded, Unauthenticated

log = logging.getLogger(__name__)

# A supervisor mounts again within half a second, and a slow machine takes some to start Python.
_RETURN_SECONDS_MAX: Final = 10.0
_RETURN_LOOK_SECONDS: Final = 0.1
# What passes without a person at this machine: a token is renewed, room is made.
_PASSING: Final = (NoSpace, QuotaExceeded, Unauthenticated)
# A mount that is told to end gives its uploads twenty seconds.
_END_SECONDS_MAX: Final = 40.0


@dataclass(frozen=True, kw_only=True)
class MountChoices:
    """The same for all volumes of this machine."""

    address: str
    """The master's host:port."""
    options: MountOptions
    drain_seconds: float
    """How long a request waits for uploads before it is to be repeated."""


class NodeVolumes:
    """All of one driver."""

    def __init__(
        self, choices: MountChoices, records: StagedRecords, runs: VolumeRuns, turns: VolumeTurns
    ) -> None:
        self._choices = choices
        self._records = records
        self._runs = runs
        self._turns = turns
        self._supervisors: set[int] = set()

    def stage(
        self, volume_id: str, staging: Path, access: Access, token: str, context: tuple[str, str, str] | None
    ) -> None:
        """Mounts the run alone at the staging path; returns when its tree answers."""
        with self._turns.take(volume_id):
            known = self._records.find(volume_id)
            if known is not None and self._is_there(known):
                self._stage_again(known, staging, access, token)
                return
            user, task, _ = context or ("", "", "")
            run = path_of(self._runs.find(token, volume_id, user, task))
            if context is not None and run != "/".join(context):
                raise VolumeFailed(codes.NOT_FOUND, f"the run {'/'.join(context)} is not that of {volume_id}")
            record = StagedVolume(
                volume_id=volume_id,
                run=run,
                staging=staging,
                is_read_only=access.is_read_only,
                flags=access.flags,
                boot_id=boot_id(),
                published=known.published if known is not None and known.boot_id == boot_id() else {},
            )
            self._records.save(record)
            self._records.save_token(volume_id, token)
            if find_mounted(staging) is None:  # what is dead there is cleared away with the mount
                staging.mkdir(mode=0o750, parents=True, exist_ok=True)
            try:
                self._mount(record)
            except VolumeFailed:
                self._take_back(record, known)
                raise

    def _stage_again(self, known: StagedVolume, staging: Path, access: Access, token: str) -> None:
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
            self._runs.find(token, known.volume_id, user, task)
            self._records.save_token(known.volume_id, token)
        self._require_serving(known)

    def unstage(self, volume_id: str, staging: Path, seconds_max: float) -> None:
        """Unmounts once all that was written is at the master; until then DEADLINE_EXCEEDED, and all is as before."""
        with self._turns.take(volume_id):
            record = self._records.find(volume_id)
            if record is None and (find_at(staging) is not None or self._has_remains(volume_id)):
                raise _without_record(volume_id)
            if record is None or record.staging != staging:
                return
            for place in record.published:
                if self._is_there(record) and find_mounted(place) is not None:
                    raise VolumeFailed(
                        codes.FAILED_PRECONDITION, f"{volume_id} is published at {place}: unpublish it first"
                    )
            if self._is_held_elsewhere(record):
                self._end_processes(record)
            if self._has_remains(volume_id):
                self._require_serving(record)
            if self._is_there(record):
                self._unmount(record, seconds_max)
            take_shield_away(staging)
            if self._has_remains(volume_id):
                raise VolumeFailed(
                    codes.UNAVAILABLE, f"{volume_id}: its mount daemon died meanwhile: repeat this request"
                )
            self._records.forget(volume_id)

    def _unmount(self, record: StagedVolume, seconds_max: float) -> None:
        try:
            unmount_when_durable(record.staging, timeout_seconds=self._patience(seconds_max))
        except NotDurable as error:
            raise self._not_durable(record, error) from error
        except CommandFailed as error:
            if not self._is_held_elsewhere(record):
                raise VolumeFailed(codes.FAILED_PRECONDITION, error.line) from error
            self._end_processes(record)

    def _is_held_elsewhere(self, record: StagedVolume) -> bool:
        """Whether the daemon runs on although its mount is gone: a mount namespace that was copied from this one has it
        still.
        """
        return find_mounted(record.staging) is None and find_at(record.staging) is not None

    def _end_processes(self, record: StagedVolume) -> None:
        """Ends what serves a mount that is not seen here, in order: what was written is sent, or stays staged."""
        daemon = find_at(record.staging)
        living = [self._find_supervisor(record), daemon.process if daemon is not None else None]
        deadline = time.monotonic() + _END_SECONDS_MAX
        for process in filter(None, living):
            process.send_signal(signal.SIGTERM)
        for process in filter(None, living):
            if not process.wait_gone(max(0.0, deadline - time.monotonic())):
                raise VolumeFailed(
                    codes.UNAVAILABLE,
                    f"{record.volume_id}: its mount daemon (pid {process.pid}) has not ended: repeat this request",
                )

    def publish(
        self, volume_id: str, staging: Path, place: Path, access: Access, *, is_read_only: bool
    ) -> None:
        """Makes the staged volume appear at the place."""
        with self._turns.take(volume_id):
            record = self._records.find(volume_id)
            if record is None or record.staging != staging or record.boot_id != boot_id():
                raise VolumeFailed(
                    codes.FAILED_PRECONDITION,
                    f"{volume_id} is not staged at {staging}: NodeStageVolume first",
                )
            self._require_free(volume_id, place)
            is_read_only = is_read_only or access.is_read_only
            others = [other for other in record.published if other != place and find_mounted(other)]
            if others and access.has_one_place:
                raise VolumeFailed(
                    codes.FAILED_PRECONDITION,
                    f"{volume_id} is published at {others[0]}, and its access mode lets it be at one place only",
                )
            self._require_serving(record)
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
                raise _refused_at(place, error) from error

    def unpublish(self, volume_id: str, place: Path, seconds_max: float) -> None:
        """Takes it away from the place, with the directory.

        Of the last place, returns when all that was written is at the master: as soon as it has returned, the pod may
        be forgotten, and the run sealed.
        """
        with self._turns.take(volume_id):
            self._require_free(volume_id, place)
            try:
                release(place)
            except (CommandFailed, OSError) as error:
                # INTERNAL where it is in use: who asked comes again.
                raise _refused_at(place, error) from error
            record = self._records.find(volume_id)
            if record is None or record.boot_id != boot_id():
                if self._has_remains(volume_id):
                    raise _without_record(volume_id) if record is None else _needs_token(volume_id)
                return
            left = {other: words for other, words in record.published.items() if other != place}
            if left != record.published:
                record = replace(record, published=left)
                self._records.save(record)
            if not left:
                self._settle(record, seconds_max)

    def _settle(self, record: StagedVolume, seconds_max: float) -> None:
        if not self._is_serving(record) and not self._has_remains(record.volume_id):
            return
        self._require_serving(record)
        try:
            wait_durable(record.staging, timeout_seconds=self._patience(seconds_max))
        except NotDurable as error:
            failure = self._not_durable(record, error)
            if failure.code != codes.FAILED_PRECONDITION:
                raise failure from error
            # It needs a person, whom the pod need not wait for: it is said when the volume is to be unstaged.
            log.warning("%s: %s", record.volume_id, failure.sentence)

    def _patience(self, seconds_max: float) -> float:
        return max(1.0, min(self._choices.drain_seconds, seconds_max))

    def _not_durable(self, record: StagedVolume, error: NotDurable) -> VolumeFailed:
        cause = error.__cause__
        needs_person = isinstance(cause, RemoteError) and not any(map(cause.is_a, _PASSING))
        code = codes.FAILED_PRECONDITION if needs_person else codes.DEADLINE_EXCEEDED
        how = f"see `cloudai status {record.staging}` on this node" if needs_person else "repeat this request"
        return VolumeFailed(code, f"{error.line}; nothing is lost: it stays mounted, {how}")

    def is_staged(self, volume_id: str) -> bool:
        """Whether this machine has it, or something of it that is at no master."""
        return self._records.find(volume_id) is not None or self._has_remains(volume_id)

    def _has_remains(self, volume_id: str) -> bool:
        return has_remains(self._records.mount_state_dir(volume_id))

    def _require_free(self, volume_id: str, place: Path) -> None:
        """Raises VolumeFailed (FAILED_PRECONDITION) for a place that is another volume's, or somebody's own mount."""
        for other in self._records.list_all():
            if (
                other.volume_id != volume_id
                and other.boot_id == boot_id()
                and place in (other.staging, *other.published)
            ):
                raise VolumeFailed(codes.FAILED_PRECONDITION, f"{place} is {other.volume_id}'s")
        if find_at(place) is not None:
            raise VolumeFailed(codes.FAILED_PRECONDITION, f"{place}: somebody has mounted something there")

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
            raise _refused_at(path, error) from error

    # What is there, and putting it back.

    def list_unwell(self) -> list[str]:
        """The ids of volumes that may need `revive`: a look at all costs what a look at one does."""
        records = [record for record in self._records.list_all() if record.boot_id == boot_id()]
        if not records:
            return []
        mounted = {tree.mount_point: tree for tree in list_mounted()}
        served = {entry.mount_point for entry in list_mounts()}
        return [record.volume_id for record in records if not _is_well(record, mounted, served)]

    def revive(self, volume_id: str) -> None:
        """Mounts again what died with its supervisor, and binds to its places what they have lost.

        Nothing is done for a volume that a request has.
        """
        with self._turns.take_if_free(volume_id) as is_ours:
            record = self._records.find(volume_id) if is_ours else None
            if record is None or record.boot_id != boot_id():
                return
            if not self._is_serving(record):
                if self._find_supervisor(record) is not None:
                    return  # who mounts it as soon as it can be
                log.info("%s is mounted again", volume_id)
                self._mount(record)
            for place, is_read_only in record.published.items():
                if place.parent.is_dir() and not is_bound(place, record.staging, is_read_only=is_read_only):
                    self._bind_again(record, place, is_read_only=is_read_only)

    def _bind_again(self, record: StagedVolume, place: Path, *, is_read_only: bool) -> None:
        try:
            bind(record.staging, place, is_read_only=is_read_only)
        except (CommandFailed, OSError) as error:
            raise _refused_at(place, error) from error
        log.info("%s is at %s again", record.volume_id, place)

    def gather_children(self) -> None:
        """Supervisors that have ended, of those that this process started."""
        for pid in list(self._supervisors):
            try:
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            except ChildProcessError:
                pass
            self._supervisors.discard(pid)

    def _is_there(self, record: StagedVolume) -> bool:
        """Whether the staging path has a mount, a dead one as well, or somebody who is about to make one."""
        return record.boot_id == boot_id() and (
            find_mounted(record.staging) is not None or self._find_supervisor(record) is not None
        )

    def _is_serving(self, record: StagedVolume) -> bool:
        """Whether it is mounted and its daemon lives. The tree is not asked: it may hang, and a thread with it."""
        return (
            record.boot_id == boot_id()
            and find_mounted(record.staging) is not None
            and find_at(record.staging) is not None
        )

    def _require_serving(self, record: StagedVolume) -> None:
        """Returns when the volume's mount answers, made again if it has to be. Raises VolumeFailed (UNAVAILABLE)."""
        deadline = time.monotonic() + _RETURN_SECONDS_MAX
        while not self._is_serving(record):
            if self._find_supervisor(record) is None:
                if self._records.find_token(record.volume_id) is None:
                    raise _needs_token(record.volume_id)
                self._mount(record)
                return
            if time.monotonic() > deadline:
                raise VolumeFailed(
                    codes.UNAVAILABLE,
                    f"{record.volume_id}: its mount daemon died and cannot be started yet: repeat this request",
                )
            time.sleep(_RETURN_LOOK_SECONDS)

    def _mount(self, record: StagedVolume) -> None:
        given = Access(is_read_only=False, has_one_place=False, flags=record.flags).options()
        # What the driver forbids, the flags of a volume do not allow again.
        words = (*self._choices.options.get("kernel_words", ()), *given.get("kernel_words", ()))
        options: MountOptions = {
            **self._choices.options,
            **given,
            "kernel_words": tuple(dict.fromkeys(words)),
            "read_only": record.is_read_only,
            "token_file": self._records.token_file(record.volume_id),
            "state_dir": self._records.mount_state_dir(record.volume_id),
            "allow_other": True,
            "supervise": True,
        }
        try:
            config = resolve_config(f"{self._choices.address}/{record.run}", record.staging, options)
            prepare_mount(config)
            start_mount(config)
        except CommandFailed as error:
            raise VolumeFailed(codes.UNAVAILABLE, error.line) from error
        supervisor = self._find_supervisor(record)
        if supervisor is not None:
            self._supervisors.add(supervisor.pid)

    def _find_supervisor(self, record: StagedVolume) -> ProcessIdentity | None:
        for entry in list_live([supervisor_dir(directory) for directory in runtime_dirs_to_search()]):
            if entry.mount_point == record.staging:
                return entry.process
        return None

    def _take_back(self, record: StagedVolume, known: StagedVolume | None) -> None:
        """After a mount that failed: what an earlier staging left is kept, and where it is published."""
        take_shield_away(record.staging)
        if known is not None:
            self._records.save(known)
        elif not self._has_remains(record.volume_id):
            self._records.forget(record.volume_id)


def _is_well(record: StagedVolume, mounted: Mapping[Path, MountedTree], served: Collection[Path]) -> bool:
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


def _without_record(volume_id: str) -> VolumeFailed:
    return VolumeFailed(
        codes.FAILED_PRECONDITION,
        f"{volume_id} has no record that can be read, and may have files that are at no master: stage it once more",
    )


def _needs_token(volume_id: str) -> VolumeFailed:
    return VolumeFailed(
        codes.FAILED_PRECONDITION,
        f"{volume_id} has files that are at no master, and no token is here since the machine was started: "
        "stage it on this node once more",
    )


def _refused_at(place: Path, error: CommandFailed | OSError) -> VolumeFailed:
    text = error.line if isinstance(error, CommandFailed) else f"{place}: {error.strerror}"
    return VolumeFailed(codes.INTERNAL, text)
