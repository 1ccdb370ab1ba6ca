"""Which staged files a loss of power would leave whole: those that are on the disk and have not changed since.

What waits for long is synced, and then its row says so; before it changes again its row takes the word back.
Why, and what becomes of the rest: docs/decisions/0007-after-a-loss-of-power.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import trio

from cloudai_fusefs.journal import Journal
from cloudai_fusefs.journal_rows import DiskState
from cloudai_fusefs.node import Node, Pending
from cloudai_fusefs.staged_file import StagedFile

log = logging.getLogger(__name__)

SYNCED_TOGETHER_MAX: Final = 100
"""Files that are synced before their rows say so."""

SETTLE_SECONDS_MAX: Final = 5.0
"""Of an unmount, for the disk to take what is still staged."""


class Settling:
    """The staged files of one mount, on their way to its disk."""

    def __init__(
        self, journal: Journal, files_directory: Path, put_row: Callable[[Node, Pending, DiskState], None]
    ) -> None:
        """`put_row` writes the node's row with this state. Raises OSError."""
        self._journal = journal
        self._files_directory = files_directory
        self._put_row = put_row
        # Staged and not known to be on the disk, with the number of changes when last seen.
        self._unsettled: dict[Node, int] = {}
        # Whose row took the word back, or went, and not on the disk yet.
        self._leaving: set[Node] = set()

    def forget(self, node: Node, disk_state: DiskState) -> None:
        """The node's row, which said this, has gone: nothing of it is staged any more."""
        self._unsettled.pop(node, None)
        if disk_state == DiskState.ON_DISK:
            self._leaving.add(node)

    def may_change_at_once(self, node: Node) -> bool:
        """Whether `unsettle` has nothing to do."""
        pending = node.pending
        return (pending is None or pending.disk_state != DiskState.ON_DISK) and node not in self._leaving

    async def unsettle(self, node: Node) -> None:
        """The node's content is about to change: a loss of power from now on may leave part of the change.

        To be awaited before the first byte of it; at once where its row says nothing else. Raises OSError, and
        then nothing may be written.
        """
        pending = node.pending
        if pending is not None and pending.disk_state == DiskState.ON_DISK:
            self._put_row(node, pending, DiskState.UNKNOWN)
            pending.disk_state = DiskState.UNKNOWN
            self._leaving.add(node)
            self.note_staged(node)
        if node in self._leaving:
            # The bytes may reach the disk in any order with the row that says so, unless it goes first. Who
            # else writes meanwhile syncs as well, and waits no longer than this one.
            await self._journal.sync()
            self._leaving.discard(node)

    async def settle(self) -> None:
        """Puts on the disk what was finished when this was last called and has not changed since.

        What uploads as it should is gone by then, and costs the disk nothing. Raises OSError.
        """
        if leaving := tuple(self._leaving):
            await self._journal.sync()
            self._leaving.difference_update(leaving)
        ready: list[tuple[Node, Pending, StagedFile | None, int]] = []
        for node, seen_count in list(self._unsettled.items()):
            pending = node.pending
            if pending is None or not pending.content or pending.disk_state != DiskState.UNKNOWN:
                del self._unsettled[node]
            elif node.writer_count or pending.change_count != seen_count:
                self._unsettled[node] = pending.change_count
            else:
                ready.append((node, pending, node.staged, seen_count))
        for start in range(0, len(ready), SYNCED_TOGETHER_MAX):
            await self._sync(ready[start : start + SYNCED_TOGETHER_MAX])

    async def settle_at_end(self) -> None:
        """Of a mount that ends in order: what is left goes to the disk, as much as fits in a few seconds.

        Not cancelled from outside. What did not fit may be lost only if power is lost before the next mount.
        """
        with trio.move_on_after(SETTLE_SECONDS_MAX, shield=True):
            try:
                for _ in range(2):  # the first looks, the second finds nothing changed
                    await self.settle()
                await self._journal.sync()
            except OSError as error:
                log.warning("the state directory cannot be synced: %s", error)

    async def _sync(self, ready: Sequence[tuple[Node, Pending, StagedFile | None, int]]) -> None:
        for _, _, staged, _ in ready:
            if staged is not None:
                await staged.sync()
        directories = {
            self._files_directory / node.tree.task_id for node, _, staged, _ in ready if staged is not None
        }
        for directory in (*directories, self._files_directory):
            await trio.to_thread.run_sync(_sync_directory, directory)
        for node, pending, staged, seen_count in ready:
            is_same = node.pending is pending and node.staged is staged
            if is_same and pending.change_count == seen_count and not node.writer_count:
                self._put_row(node, pending, DiskState.ON_DISK)
                pending.disk_state = DiskState.ON_DISK
                self._unsettled.pop(node, None)

    def note_staged(self, node: Node) -> None:
        """Bytes of the node may be staged that are not on the disk."""
        pending = node.pending
        if pending is not None and pending.content and pending.disk_state == DiskState.UNKNOWN:
            self._unsettled.setdefault(node, -1)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
