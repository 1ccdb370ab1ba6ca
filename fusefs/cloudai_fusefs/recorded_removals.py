"""Removals of files that are in the journal and not yet at the master: of a whole mount, as rows.

The row comes first: a removal that was acknowledged survives the death of the daemon, and for one that cannot be
written down the master is asked first. The row goes with the master's answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from cloudai_fusefs.journal import Journal
from cloudai_fusefs.journal_rows import RemovalRecord
from cloudai_fusefs.node import Node
from cloudai_fusefs.waiting_removals import Removal

REMOVALS_WAITING_MAX: Final = 10_000
"""Of a mount: at about 1.5 KiB each, and ten calls to the master. Beyond it each removal asks the master first."""


class RecordedRemovals:
    """Rows and trees, kept in step. Synchronous."""

    def __init__(self, journal: Journal, on_change: Callable[[Node], None]) -> None:
        """`on_change` is called with the directory of each removal that has begun to wait."""
        self._journal = journal
        self._on_change = on_change
        self._count = 0
        self._is_offered = True
        self._stale_rows: set[int] = set()

    def may_be_recorded(self, directory: Node, name: bytes, node: Node) -> bool:
        """Whether the master need not be asked first.

        Of a file that it has under this name alone, and nothing of which is changing here. The watch must be healthy:
        what others do, a sealing among it, is known within moments then, and so is that the master is gone.
        """
        tree = directory.tree
        is_at_rest = node.pending is None and node.staged is None and not node.writer_count
        has_place = directory.pending is None or not directory.pending.place
        waits_already = node.removal is not None or tree.removals.at(directory.node_id, name) is not None
        return (
            is_at_rest
            and has_place
            and not waits_already
            and node.edge_count == 1
            and not node.is_directory
            and tree.watch_is_healthy
            and tree.removals.failure is None
            and self._count < REMOVALS_WAITING_MAX
            and self._is_offered
        )

    def record(self, directory: Node, name: bytes, node: Node) -> None:
        """Removes the name here, and soon at the master. Raises OSError when it cannot be written down: nothing
        changed.
        """
        removal = Removal(directory, name, node, time.time_ns())
        self._journal.put_removal(
            RemovalRecord(
                node_id=node.node_id,
                user=directory.tree.user,
                task_id=directory.tree.task_id,
                parent_node_id=directory.node_id,
                name=name,
                generation=node.generation,
                removed_at_ns=removal.removed_at_ns,
            )
        )
        self._stale_rows.discard(node.node_id)
        self._begin(removal)
        directory.tree.note_pending(directory)  # its times: as Staging.note_times
        self._on_change(directory)

    def record_again(self, record: RemovalRecord, directory: Node, node: Node) -> None:
        """A row of an earlier mount, laid over the tree."""
        attributes = directory.attributes
        self._begin(Removal(directory, record.name, node, record.removed_at_ns))
        directory.attributes = attributes  # the name went before the death, not now
        self._on_change(directory)

    def forget(self, removals: Sequence[Removal]) -> None:
        """They do not wait any more: their rows go, or as soon as the disk has room again."""
        self._count -= len(removals)
        self.forget_rows([removal.node.node_id for removal in removals])

    def forget_rows(self, node_ids: Sequence[int]) -> None:
        """The same of rows of an earlier mount that were not laid over a tree."""
        try:
            self._journal.remove_removals(node_ids)
        except OSError:
            self._stale_rows.update(node_ids)

    def note_not_offered(self) -> None:
        """The master is of a version that takes no batches of removals: each asks it first from now on."""
        self._is_offered = False

    def tidy(self) -> None:
        """Removes the rows that a full disk kept. Raises OSError."""
        if self._stale_rows:
            self._journal.remove_removals(self._stale_rows)
            self._stale_rows.clear()

    def _begin(self, removal: Removal) -> None:
        removal.node.tree.begin_removal(removal)
        self._count += 1
