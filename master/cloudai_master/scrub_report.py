"""The scrub as an operator asks for it: one pass with a progress bar, and a report of what it found."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from cloudai_master.chunk_store import ChunkStore
from cloudai_master.damage import DamagedChunk
from cloudai_master.database import Database
from cloudai_master.scrub import Pace, Position, find_forgotten, scrub, stored_amount
from cloudai_model.limits import MIB


@dataclass(kw_only=True)
class ScrubReport:
    """What one pass found."""

    chunk_count: int = 0
    size_bytes: int = 0
    damaged: list[DamagedChunk] = field(default_factory=list)
    """Also what was set aside earlier and is needed by files."""
    is_complete: bool = False
    """False: it was interrupted."""

    def as_json(self) -> dict[str, object]:
        return {
            "complete": self.is_complete,
            "chunks": self.chunk_count,
            "bytes": self.size_bytes,
            "damaged": [asdict(chunk) | {"digest": chunk.digest.hex()} for chunk in self.damaged],
        }

    def as_text(self) -> str:
        """A line for each damaged chunk, and a last one that sums up."""
        summary = f"{self.chunk_count} chunks, {self.size_bytes / MIB:.1f} MiB: {len(self.damaged)} damaged or missing"
        if not self.is_complete:
            summary = f"interrupted after {summary}"
        return "\n".join([*map(str, self.damaged), summary])


class Interrupts:
    """Ctrl-C, which ends a pass while it sleeps or between two chunks: in the middle of the database's library it would
    leave a trace on the terminal. Who presses it twice means at once.
    """

    def __init__(self) -> None:
        self._is_pending = False
        self._is_asleep = False

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """In the main thread."""
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def check(self) -> None:
        """Raises KeyboardInterrupt where it was pressed."""
        if self._is_pending:
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Raises KeyboardInterrupt, also when it is pressed meanwhile."""
        self._is_asleep = True
        try:
            self.check()
            time.sleep(seconds)
        finally:
            self._is_asleep = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._is_pending or self._is_asleep:
            raise KeyboardInterrupt
        self._is_pending = True


def scrub_once(database: Database, store: ChunkStore, bytes_per_second: float) -> ScrubReport:
    """One pass over everything, at that rate (0: no bound); ends early, and says so in the report, on Ctrl-C.

    Called in the main thread.
    """
    report = ScrubReport()
    interrupts = Interrupts()
    pace = Pace(bytes_per_second, interrupts.sleep)
    try:
        with interrupts.held_back(), _progress_bar(stored_amount(database).size_bytes) as progress:
            for looked in scrub(database, store, pace, Position()):
                report.chunk_count += 1
                report.size_bytes += looked.length_bytes
                if looked.damaged is not None:
                    report.damaged.append(looked.damaged)
                progress.update(looked.length_bytes)
                interrupts.check()
        found = {(chunk.user, chunk.digest) for chunk in report.damaged}
        report.damaged += [
            chunk for chunk in find_forgotten(database) if (chunk.user, chunk.digest) not in found
        ]
        report.is_complete = True
    except KeyboardInterrupt:
        # What was set aside until now is news all the same.
        pass
    return report


class _Bar:
    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task("scrub", total=total_bytes)

    def update(self, size_bytes: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, size_bytes)


@contextmanager
def _progress_bar(total_bytes: int) -> Iterator[_Bar]:
    """On a terminal alone."""
    if not sys.stderr.isatty():
        yield _Bar(None, total_bytes)
        return
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress, total_bytes)
