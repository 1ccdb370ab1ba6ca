"""A writer's log, outside the mount: an intent before each operation, an acknowledgement after it.

One JSON object per line. What close and fsync acknowledge is written down with path, size and digest.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash.operations import Call, Operation


@dataclass(frozen=True)
class Acknowledgement:
    """What the writer was told. Of close and fsync with the file's state, of others with nothing."""

    mtime_ns: int | None = None
    size_bytes: int | None = None
    digest: str = ""


@dataclass(frozen=True)
class WriterFailure:
    """An operation that was refused."""

    operation: Operation
    errno: int
    moment_seconds: float
    """On the machine's monotonic clock."""


@dataclass
class WriterRecord:
    """A log that was read back."""

    acknowledged: list[tuple[Operation, Acknowledgement]] = field(default_factory=list)
    in_flight: Operation | None = None
    """It was begun, and nobody knows how it ended: it may have been carried out or not."""
    failure: WriterFailure | None = None

    @property
    def synced_count(self) -> int:
        return sum(operation.call is Call.FSYNC for operation, _ in self.acknowledged)

    @property
    def closed_count(self) -> int:
        return sum(operation.call is Call.CLOSE for operation, _ in self.acknowledged)


class WriterLog:
    """Appends to a log; each line is in the page cache before the call returns, and outlives any kill -9."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def note_intent(self, operation: Operation) -> None:
        self._append({"intent": operation.to_json()})

    def note_acknowledged(self, path: str, acknowledgement: Acknowledgement) -> None:
        """`path` is for whoever reads the log."""
        told = {name: value for name, value in vars(acknowledgement).items() if value not in (None, "")}
        self._append({"acknowledged": told, "path": path})

    def note_failed(self, number: int) -> None:
        self._append({"failed": number, "moment_seconds": time.monotonic()})

    def _append(self, line: dict[str, object]) -> None:
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")


def read_log(path: Path) -> WriterRecord:
    """The log of a writer that has ended. A line that was cut short, as of a killed writer, was not said."""
    record = WriterRecord()
    for line in _whole_lines(path):
        if "intent" in line:
            record.in_flight = Operation.from_json(line["intent"])
            continue
        assert record.in_flight is not None, "an answer follows an intent"
        if "acknowledged" in line:
            record.acknowledged.append((record.in_flight, Acknowledgement(**line["acknowledged"])))
            record.in_flight = None
        else:
            record.failure = WriterFailure(record.in_flight, line["failed"], line["moment_seconds"])
    return record


def _whole_lines(path: Path) -> Iterator[Any]:
    text = path.read_text() if path.exists() else ""
    return (json.loads(line) for line in text.split("\n")[:-1])
