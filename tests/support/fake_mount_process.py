"""A mount process whose filesystem is a tmpfs: the real process, control socket and registry around it.

What the filesystem would be told by a network is told by files in its state directory: while
`hold-uploads` is there nothing becomes durable; `fail-uploads` holds the sentence of a failure.
A source whose host is `127.0.0.9` is a master that is not there.
"""

from __future__ import annotations

import importlib.metadata
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from cloudai_daemon.mount_process import main
from cloudai_daemon.mount_table import find_mounted
from cloudai_fusefs.mount_control import (
    CachedIf,
    FileState,
    FileStatus,
    MountConfig,
    MountControl,
    MountCounters,
    MountInspection,
    MountStatus,
    RunPlace,
    RunStatus,
    UncachedFile,
    UploadCounts,
    WarmupProgress,
    WarmupReport,
)
from cloudai_model.errors import AlreadyExists, CloudAIError, MasterUnavailable, NotFound, RunSealed
from cloudai_model.names import check_run_name

POLL_SECONDS = 0.02
USER = "user-123"
INSPECTED_VERSION = importlib.metadata.version("cloudai-fs")


class TmpfsControl:
    """MountControl over a tmpfs; sealed runs are noted in the state directory."""

    def __init__(self, config: MountConfig) -> None:
        self._config = config
        self.is_ending = False
        self._sealed = config.state_dir / "sealed"

    def status(self, path: str = "") -> MountStatus:
        place = self._config.mount_point / path
        pending: list[FileStatus] = []
        if self._is_held:
            files = sorted(file for file in place.rglob("*") if file.is_file())
            pending = [self._describe(file) for file in files]
        return MountStatus(
            source=self._config.source,
            user=USER,
            connected=not self._is_held,
            staged_bytes=sum(file.size_bytes for file in pending),
            pending=pending,
        )

    async def wait_durable(self, path: str = "") -> None:
        while self._is_held:
            failure = self._config.state_dir / "fail-uploads"
            if failure.exists():
                raise CloudAIError(failure.read_text())
            await trio.sleep(POLL_SECONDS)

    async def upload_counts(self, path: str = "") -> UploadCounts:
        status = self.status(path)
        return UploadCounts(
            connected=status.connected, pending_count=len(status.pending), pending_bytes=status.staged_bytes
        )

    async def drain(self, timeout_seconds: float | None = None) -> MountStatus:
        self.is_ending = True
        (self._config.state_dir / "drain-begun").touch()
        with trio.move_on_after(math.inf if timeout_seconds is None else timeout_seconds):
            with suppress(CloudAIError):
                await self.wait_durable()
        return self.status()

    def resume(self) -> None:
        self.is_ending = False

    async def create_run(self, task: str, *, name: str = "", task_id: str = "") -> RunPlace:
        name = name or "2026-11-20_15-04-05"
        check_run_name(name)
        path = f"{USER}/{task}/{name}"
        place = self._config.mount_point / path
        if place.exists():
            raise AlreadyExists(path=path)
        place.mkdir(parents=True)
        return RunPlace(path=path, task_id=task_id or "id-of-the-run")

    async def list_runs(self, path: str = "") -> Sequence[RunStatus]:
        places = sorted(self._config.mount_point.glob(f"{USER}/*/*"))
        return [self._describe_run(place) for place in places]

    async def seal_run(self, path: str, exit_status: int) -> None:
        if not (self._config.mount_point / path).is_dir():
            raise NotFound(path=path)
        await self.wait_durable(path)
        note = self._sealed / path
        if note.exists():
            raise RunSealed(path=path)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(str(exit_status))

    async def create_run_token(self, path: str, valid_seconds: int) -> str:
        return f"token-of-{path}"

    async def counters(self) -> MountCounters:
        return MountCounters(connected=not self._is_held, memory_hits=7, memory_bytes_max=1024)

    async def inspect(self) -> MountInspection:
        away = self._config.state_dir / "master-away"
        return MountInspection(
            version=INSPECTED_VERSION,
            cache_dir=str(self._config.cache_dir),
            token_file="",
            master_failure=away.read_text() if away.exists() else "",
            master_version=INSPECTED_VERSION,
            round_trip_seconds=0.001,
            token_user=USER,
        )

    async def warmup(
        self,
        paths: Sequence[str],
        note_progress: Callable[[WarmupProgress], None],
        cached_if: CachedIf = CachedIf.LENGTH_MATCHES,
    ) -> WarmupReport:
        """Of files of a byte each; as long as uploads are held it does not come to an end.

        `fail-warmup` holds the sentence of a failure: one file is named, of two.
        """
        files = sum(file.is_file() for path in paths for file in (self._config.mount_point / path).rglob("*"))
        note_progress(WarmupProgress(files=files, size_bytes=files))
        begun, ended = (self._config.state_dir / f"warmup-{word}" for word in ("begun", "ended"))
        begun.touch()
        try:
            while self._is_held:
                await trio.sleep(POLL_SECONDS)
        finally:
            ended.touch()
        failure = self._config.state_dir / "fail-warmup"
        failed = [UncachedFile(path="odd\nname", reason=failure.read_text())] if failure.exists() else []
        return WarmupReport(
            files=files,
            size_bytes=files,
            fetched_bytes=files,
            skipped_files=0,
            failed_files=2 * len(failed),
            failed=failed,
        )

    @property
    def _is_held(self) -> bool:
        return (self._config.state_dir / "hold-uploads").exists()

    def _describe(self, file: Path) -> FileStatus:
        size_bytes = file.stat().st_size
        path = str(file.relative_to(self._config.mount_point))
        return FileStatus(path=path, state=FileState.STAGED, size_bytes=size_bytes, uploaded_bytes=0)

    def _describe_run(self, place: Path) -> RunStatus:
        path = str(place.relative_to(self._config.mount_point))
        note = self._sealed / path
        return RunStatus(
            path=path,
            task_id="id-of-the-run",
            created_at_ns=0,
            sealed=note.exists(),
            exit_status=int(note.read_text()) if note.exists() else None,
        )


async def serve_tmpfs(
    config: MountConfig,
    on_ready: Callable[[MountControl], None],
    on_unmounted: Callable[[], Awaitable[None]],
) -> None:
    """Stands in for cloudai_fusefs.mount.serve_mount."""
    if config.source.startswith("127.0.0.9:"):
        raise MasterUnavailable(source=config.source)
    target = str(config.mount_point)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "fake-cloudai", target], check=True)
    try:
        on_ready(TmpfsControl(config))
        while find_mounted(config.mount_point) is not None:
            await trio.sleep(POLL_SECONDS)
        await on_unmounted()
    finally:
        if find_mounted(config.mount_point) is not None:
            subprocess.run(["umount", "--lazy", target], check=True)


if __name__ == "__main__":
    sys.exit(main(serve_tmpfs))
