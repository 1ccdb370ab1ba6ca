"""What is asked of a mount of a part of the tree: paths are relative to that part, which is the mount's root.

Wraps the control of the whole, which knows a path by where it is in the master's tree. What an earlier mount of more
left in the same state directory is uploaded too: it is named by its whole path, which then begins with "/".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from cloudai_fusefs.mount_control import (
    CachedIf,
    FileStatus,
    MountControl,
    MountCounters,
    MountInspection,
    MountStatus,
    RunPlace,
    RunStatus,
    UploadCounts,
    WarmupProgress,
    WarmupReport,
)
from cloudai_model.errors import InvalidRequest


class PartControl:
    """The MountControl of a mount whose root is `root_path`: a user, a task or a run. See MountControl.

    `user` is the token's, whose runs `create_run` makes.
    """

    def __init__(self, whole: MountControl, root_path: str, *, user: str) -> None:
        self._whole = whole
        self._root_path = root_path
        self._user = user

    def status(self, path: str = "") -> MountStatus:
        return self._translate(self._whole.status(self._below(path)))

    async def wait_durable(self, path: str = "") -> None:
        await self._whole.wait_durable(self._below(path))

    async def upload_counts(self, path: str = "") -> UploadCounts:
        return await self._whole.upload_counts(self._below(path))

    @property
    def is_ending(self) -> bool:
        return self._whole.is_ending

    async def drain(self, timeout_seconds: float | None = None) -> MountStatus:
        return self._translate(await self._whole.drain(timeout_seconds))

    def resume(self) -> None:
        self._whole.resume()

    async def create_run(self, task: str, *, name: str = "", task_id: str = "") -> RunPlace:
        """Raises InvalidRequest for a run that the mount would not show."""
        place = f"{self._user}/{task}"
        if place != self._root_path and not place.startswith(self._root_path + "/"):
            raise InvalidRequest("the mount shows another part of the tree", part=self._root_path)
        made = await self._whole.create_run(task, name=name, task_id=task_id)
        return replace(made, path=self._shown(made.path))

    async def list_runs(self, path: str = "") -> Sequence[RunStatus]:
        runs = await self._whole.list_runs(self._full(path))
        return [replace(run, path=self._shown(run.path)) for run in runs]

    async def seal_run(self, path: str, exit_status: int) -> None:
        await self._whole.seal_run(self._full(path), exit_status)

    async def create_run_token(self, path: str, valid_seconds: int) -> str:
        return await self._whole.create_run_token(self._full(path), valid_seconds)

    async def counters(self) -> MountCounters:
        return await self._whole.counters()

    async def inspect(self) -> MountInspection:
        return await self._whole.inspect()

    async def warmup(
        self,
        paths: Sequence[str],
        note_progress: Callable[[WarmupProgress], None],
        cached_if: CachedIf = CachedIf.LENGTH_MATCHES,
    ) -> WarmupReport:
        report = await self._whole.warmup([self._full(path) for path in paths], note_progress, cached_if)
        return replace(report, failed=[replace(file, path=self._shown(file.path)) for file in report.failed])

    def _full(self, path: str) -> str:
        """The path in the master's tree."""
        path = path.strip("/")
        return f"{self._root_path}/{path}" if path else self._root_path

    def _below(self, path: str) -> str:
        """The same for what is asked of uploads: all of the mount is whatever it has staged."""
        return self._full(path) if path.strip("/") else ""

    def _shown(self, path: str) -> str:
        """A path in the master's tree as it is from the mount point."""
        if path == self._root_path:
            return ""
        inside = path.removeprefix(self._root_path + "/")
        return inside if inside != path else f"/{path}"

    def _translate(self, status: MountStatus) -> MountStatus:
        file = status.file
        return replace(
            status,
            pending=self._translate_files(status.pending),
            file=replace(file, path=self._shown(file.path)) if file is not None else None,
        )

    def _translate_files(self, files: Iterable[FileStatus]) -> list[FileStatus]:
        return [replace(file, path=self._shown(file.path)) for file in files]
