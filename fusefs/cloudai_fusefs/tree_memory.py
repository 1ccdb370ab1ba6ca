"""Keeps the names of sealed runs in memory within a limit: those that were looked into longest ago are let go of.

A name costs about a KiB, and a mount that lives for months sees many: `find`, `du` and backups walk through all runs.
What is let go of comes back with the next look: a sealed run's tree is on disk by then (`SealedCache`), and never
changes. What is in use of it (open files, working directories, and the directories above) stays, with its inode number.

Not within the limit are open runs, which the master tells the news of; what is in use; and the run that was looked
into last, however large, as who walks through it would list it again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import trio

from cloudai_fusefs.managed_tree import ManagedTree
from cloudai_fusefs.node import Node
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.tree_sync import TreeSync
from cloudai_model.errors import CloudAIError

ROUND_SECONDS: Final = 1.0
"""Between two looks at the limit: 30,000 names are listed meanwhile where a program does nothing else."""

REST_SECONDS: Final = 2.0
"""Without a look, until a run is let go of: of two that are walked through at once neither is."""

ASK_AGAIN_SECONDS: Final = 60.0
"""What was in use may not be any more, and the kernel keeps it."""

AskBack = Callable[[Iterable[Node]], None]
"""Of KernelReferences: those to nodes that nobody uses."""


class TreeMemory:
    """The names of one mount."""

    def __init__(
        self,
        managed: ManagedTree,
        sync: TreeSync,
        ask_back: AskBack,
        note_let_go: Callable[[RunTree], None],
        *,
        names_max: int,
    ) -> None:
        """`note_let_go` is told of each run, by whose nodes nothing may be kept."""
        self._managed = managed
        self._sync = sync
        self._ask_back = ask_back
        self._note_let_go = note_let_go
        self.names_max = names_max
        self.let_go_count = 0
        self._asked_at_seconds: dict[RunTree, float] = {}  # of those that were let go of and are not gone

    async def run(self) -> None:
        """Never returns."""
        while True:
            await trio.sleep(ROUND_SECONDS)
            await self.shrink()

    async def shrink(self) -> None:
        """Lets go of as many runs as the limit wants. What the kernel has of them goes soon afterwards.

        A run whose tree is not on disk is listed for that; it stays while the master is away.
        """
        if len(self._managed.inodes) <= self.names_max:
            return
        self._ask_again()
        excess_count = self._count_names() - self.names_max
        for tree in self._rested() if excess_count > 0 else ():
            if excess_count <= 0:
                return
            try:
                await self._sync.keep_sealed(tree)
            except CloudAIError:
                continue
            going_count = _count_below_root(tree)
            if self._sync.let_go(tree):
                self.let_go_count += 1
                self._note_let_go(tree)
                self._ask(tree)
                excess_count -= going_count
            await trio.lowlevel.checkpoint()

    def _rested(self) -> list[RunTree]:
        """The runs that may be let go of, those first that were looked into longest ago."""
        loaded = [tree for tree in self._managed.runs.values() if tree.is_loaded]
        loaded.sort(key=lambda tree: tree.looked_at_seconds)
        latest_seconds = trio.current_time() - REST_SECONDS
        return [
            tree
            for tree in loaded[:-1]
            if _count_below_root(tree) and tree.looked_at_seconds <= latest_seconds and tree.may_be_let_go
        ]

    def _count_names(self) -> int:
        trees = self._managed.runs.values()
        return sum(_count_below_root(tree) for tree in trees if tree.is_sealed and tree.is_loaded)

    def _ask_again(self) -> None:
        """For what is left of runs that were let go of."""
        self._asked_at_seconds = {
            tree: seconds
            for tree, seconds in self._asked_at_seconds.items()
            if tree.is_let_go and _count_below_root(tree)
        }
        latest_seconds = trio.current_time() - ASK_AGAIN_SECONDS
        for tree, seconds in list(self._asked_at_seconds.items()):
            if seconds <= latest_seconds:
                self._ask(tree)

    def _ask(self, tree: RunTree) -> None:
        self._asked_at_seconds[tree] = trio.current_time()
        below = list(tree.walk(tree.root))[1:]
        self._ask_back(reversed(below))


def _count_below_root(tree: RunTree) -> int:
    """The root stays, as long as the run's directory has a name."""
    return len(tree.nodes) - 1
