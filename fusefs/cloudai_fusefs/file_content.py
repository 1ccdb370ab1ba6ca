"""What a reader needs to know of a file's content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloudai_fusefs.node import Node
from cloudai_model.chunks import Manifest

CLOSED_CHUNKS_MAX: Final = 16_384
"""64 GiB. The manifest of a larger file goes from memory when it is closed, unless a listing or a warm-up holds the
names of its run: for each 1 TiB it takes 4 MiB where the file is sparse, and up to 50."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileContent:
    """One generation of a file: what to read, and by which right to ask for it."""

    task_id: str
    node_id: int
    generation: int
    manifest: Manifest
    label: str
    """The file's path as it stands in logs and errors."""


def content_of(node: Node, manifest: Manifest) -> FileContent:
    """The content of the node's generation as the master has it, by its manifest."""
    return FileContent(
        task_id=node.tree.task_id,
        node_id=node.node_id,
        generation=node.generation,
        manifest=manifest,
        label=node.tree.label_of(node),
    )


def is_large(manifest: Manifest) -> bool:
    """Whether it is asked for again rather than kept."""
    return len(manifest.chunks) > CLOSED_CHUNKS_MAX
