"""The bars that a person sees while bytes move.

Relies on rich, which takes 50 ms to import: imported where there is a terminal only.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from cloudai_daemon.quantities import count_files, format_bytes
from cloudai_fusefs.mount_control import UploadCounts, WarmupProgress


class UploadProgress:
    """How far a backlog is, told from what is left of it."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self.done_bytes = 0

    def update(self, left_bytes: int) -> None:
        """More may be written meanwhile: then the total grows and what is done stays."""
        self.total_bytes = max(self.total_bytes, self.done_bytes + left_bytes)
        self.done_bytes = self.total_bytes - left_bytes


class TransferBar:
    """One line on standard error: what is being done, a bar, how much of it is done, how fast.

    A context. Nothing is left of the line at the end.
    """

    def __init__(self, *, description: str, visible: bool) -> None:
        sizes = TextColumn("{task.fields[sizes]}")
        self._display = Progress(
            *(TextColumn("{task.description}"), BarColumn(), sizes, _SpeedColumn()),
            console=Console(stderr=True),
            transient=True,
        )
        self._line = self._display.add_task(description, total=None, visible=visible, sizes="")

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()


class UploadBar(TransferBar):
    """What is left to be sent. Nothing is drawn before it is known."""

    is_shown = True

    def __init__(self) -> None:
        super().__init__(description="", visible=False)
        self._progress = UploadProgress()

    def show(self, counts: UploadCounts) -> None:
        progress = self._progress
        progress.update(counts.pending_bytes - counts.uploaded_bytes)
        state = "uploading" if counts.connected else "waiting for the master"
        self._display.update(
            self._line,
            description=f"{state}, {count_files(counts.pending_count)}",
            completed=progress.done_bytes,
            total=progress.total_bytes,
            sizes=f"{format_bytes(progress.done_bytes)} of {format_bytes(progress.total_bytes)}",
            # What a wait may end with is the master's word on directories and names.
            visible=counts.pending_count > 0,
        )


class WarmupBar(TransferBar):
    """What is in the cache. What was there before is no speed."""

    def __init__(self) -> None:
        super().__init__(description="looking", visible=True)
        self._has_begun = False

    def show(self, progress: WarmupProgress) -> None:
        if not self._has_begun:
            # The clock of the speed begins here, at what was there before.
            self._display.reset(self._line, completed=progress.done_bytes, total=progress.size_bytes)
            self._has_begun = True
        self._display.update(
            self._line,
            description=f"warming up, {progress.done_files} of {progress.files} files",
            completed=progress.done_bytes,
            sizes=f"{format_bytes(progress.done_bytes)} of {format_bytes(progress.size_bytes)}",
        )


class _SpeedColumn(ProgressColumn):
    """Of the last half minute; nothing until something has been sent. rich's own counts in powers of 1000."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{format_bytes(int(speed))}/s" if speed else "")
