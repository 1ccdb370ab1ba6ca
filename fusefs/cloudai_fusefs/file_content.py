"""What a reader needs to know of a file's content."""

from __future__ import annotations

from dataclasses import dataclass

from cloudai_model.chunks import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class FileContent:
    """One generation of a file: what to read, and by which right to ask for it."""

    task_id: str
    node_id: int
    generation: int
    manifest: Manifest
    label: str
    """The file's path as it stands in logs and errors."""
