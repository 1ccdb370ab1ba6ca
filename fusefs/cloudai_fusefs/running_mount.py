"""Answers what the command line asks of a running mount: status, waiting, runs, warm-up. See mount_control."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import trio

from cloudai_fusefs.clock_difference import find_ahead_seconds
from cloudai_fusefs.managed_changes import ManagedChanges
from cloudai_fusefs.managed_tree import ManagedTree
from cloudai_fusefs.master_client import new_request_id
from cloudai_fusefs.mount_control import (
    UNMOUNT_DRAIN_SECONDS_DEFAULT,
    CachedIf,
    MountConfig,
    MountCounters,
    MountInspection,
    MountStatus,
    RunPlace,
    RunStatus,
    UploadCounts,
    WarmupProgress,
    WarmupReport,
)
from cloudai_fusefs.mount_measures import MountMeasures
from cloudai_fusefs.pending_files import PendingFiles, is_below
from cloudai_fusefs.retrying_master_client import RetryingMasterClient
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.tree_sync import TreeSync
from cloudai_fusefs.uploader import Uploader
from cloudai_fusefs.version import software_version
from cloudai_fusefs.warmup import Warmup
from cloudai_model.errors import CloudAIError, InternalError, MasterUnavailable, NotFound, Unauthenticated
from cloudai_proto.storage.v1 import names_pb2 as names

INSPECTION_SECONDS_MAX: Final = 5.0
"""A master that answers at all does so in milliseconds; a person waits for the outcome."""


class RunningMount:
    """The MountControl of one mount."""

    def __init__(
        self,
        config: MountConfig,
        user: str,
        client: RetryingMasterClient,
        managed: ManagedTree,
        managed_changes: ManagedChanges,
        sync: TreeSync,
        uploader: Uploader,
        warmup: Warmup,
        measures: MountMeasures,
    ) -> None:
        self._config = config
        self._user = user
        self._client = client
        self._managed = managed
        self._managed_changes = managed_changes
        self._sync = sync
        self._uploader = uploader
        self._warmup = warmup
        self._measures = measures
        self._pending_files = PendingFiles(managed, sync, uploader)
        self._is_ending = False

    def status(self, path: str = "") -> MountStatus:
        """See MountControl. Does not wait."""
        path = path.strip("/")
        pending = self._pending_files.statuses(path)
        return MountStatus(
            source=self._config.source,
            user=self._user,
            connected=self._client.is_connected,
            staged_bytes=sum(file.size_bytes - file.uploaded_bytes for file in pending),
            sent_bytes=self._uploader.sent_bytes,
            fetched_bytes=self._measures.fetched_bytes,
            pending=pending,
            set_aside=[str(path) for path in self._uploader.staging.list_set_aside()],
            file=self._pending_files.state_at(path),
            durable_count=self._pending_files.count_durable(path),
        )

    async def wait_durable(self, path: str = "") -> None:
        """See MountControl."""
        path = path.strip("/")
        await self._sync.wait_recovered()
        for label, failure in self._pending_files.unread(path):
            if isinstance(failure, CloudAIError):
                raise failure
            raise InternalError(f"an earlier mount left what cannot be read: {failure}", path=label)
        await self._uploader.make_durable(list(self._pending_files.below(path)))
        await self._uploader.wait_strays_removed()
        await self._uploader.wait_removals(self._pending_files.trees(path))

    async def upload_counts(self, path: str = "") -> UploadCounts:
        """See MountControl."""
        return await self._pending_files.counts(path.strip("/"), is_connected=self._client.is_connected)

    @property
    def is_ending(self) -> bool:
        """See MountControl."""
        return self._is_ending

    async def drain(self, timeout_seconds: float | None = None) -> MountStatus:
        """See MountControl."""
        if timeout_seconds is None:
            timeout_seconds = self._config.drain_seconds
        if timeout_seconds is None:
            timeout_seconds = UNMOUNT_DRAIN_SECONDS_DEFAULT
        self._is_ending = True
        with trio.move_on_after(timeout_seconds):
            await self._sync.wait_recovered()
            await self._uploader.drain()
        return self.status()

    def resume(self) -> None:
        """See MountControl."""
        self._is_ending = False
        self._uploader.end_drain()

    async def create_run(self, task: str, *, name: str = "", task_id: str = "") -> RunPlace:
        """See MountControl."""
        request = names.CreateRunRequest(
            request_id=new_request_id(), user=self._user, task=task, name=name, task_id=task_id
        )
        tree = await self._managed_changes.create_run(self._user, request)
        return RunPlace(path=tree.path, task_id=tree.task_id)

    async def list_runs(self, path: str = "") -> Sequence[RunStatus]:
        """See MountControl."""
        for user in self._managed.root.users.values():
            if is_below(user.name, path) or is_below(path, user.name):
                await self._sync.load_user(user)
        found = [
            RunStatus(
                path=tree.path,
                task_id=tree.task_id,
                created_at_ns=tree.created_at_ns,
                sealed=tree.is_sealed,
                exit_status=tree.exit_status if tree.is_sealed else None,
            )
            for tree in self._managed.runs.values()
            if is_below(tree.path, path)
        ]
        if not found and path.count("/") == 2:
            raise NotFound(path=path)
        return sorted(found, key=lambda run: run.path)

    async def seal_run(self, path: str, exit_status: int) -> None:
        """See MountControl."""
        tree = self._run_at(path)
        # From here on nothing is added: what is written meanwhile gets EROFS, and so the wait ends.
        tree.is_sealing = True
        try:
            await self._seal(tree, exit_status)
        finally:
            tree.is_sealing = False

    async def _seal(self, tree: RunTree, exit_status: int) -> None:
        await self.wait_durable(tree.path)
        request = names.SealRunRequest(
            request_id=new_request_id(), task_id=tree.task_id, exit_status=exit_status
        )
        tree.note_sealed(await self._client.seal_run(request))

    async def create_run_token(self, path: str, valid_seconds: int) -> str:
        """See MountControl."""
        request = names.CreateRunTokenRequest(task_id=self._run_at(path).task_id, valid_seconds=valid_seconds)
        return (await self._client.create_run_token(request)).token

    async def counters(self) -> MountCounters:
        """See MountControl."""
        return await self._measures.take()

    async def inspect(self) -> MountInspection:
        """See MountControl."""
        answer, failure, reason, now_ns = names.GetCapabilitiesResponse(), "", "", 0
        began_seconds, began_at_ns = trio.current_time(), time.time_ns()
        try:
            with trio.fail_after(INSPECTION_SECONDS_MAX):
                answer = await self._client.get_capabilities()
                now_ns = answer.now_ns
        except Unauthenticated as error:
            failure, reason, now_ns = str(error), error.reason, error.now_ns
        except CloudAIError as error:
            failure, reason = str(error), error.reason
        except trio.TooSlowError:
            failure, reason = f"no answer within {INSPECTION_SECONDS_MAX:.0f} s", MasterUnavailable.reason
        round_trip_seconds = trio.current_time() - began_seconds
        return MountInspection(
            version=software_version(),
            cache_dir=str(self._config.cache_dir),
            token_file=str(self._config.token_file or ""),
            master_failure=failure,
            failure_reason=reason,
            master_version=answer.version,
            round_trip_seconds=round_trip_seconds,
            token_user=answer.user,
            token_task_id=answer.task_id,
            token_expires_at_ns=answer.expires_at_ns,
            master_ahead_seconds=(
                find_ahead_seconds(now_ns, began_at_ns, round_trip_seconds) if now_ns else None
            ),
        )

    async def warmup(
        self,
        paths: Sequence[str],
        note_progress: Callable[[WarmupProgress], None],
        cached_if: CachedIf = CachedIf.LENGTH_MATCHES,
    ) -> WarmupReport:
        """See MountControl."""
        return await self._warmup.run(paths, note_progress, cached_if)

    def _run_at(self, path: str) -> RunTree:
        for tree in self._managed.runs.values():
            if tree.path == path.strip("/"):
                return tree
        raise NotFound("not a run", path=path)
