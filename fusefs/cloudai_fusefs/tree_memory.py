"""Keeps the names of sealed runs in memory within a limit: those that were looked into longest ago are let go of.

A name costs about a KiB, and a mount that lives for months sees many: `find`, `du` and backups walk through all runs.
What is let go of comes back with the next look: a sealed run's tree is on disk by then (`SealedCache`), and never
changes. What is in use of it (open files, working directories, and the directories above) stays, with its inode number.

Not within the limit are open runs, which the master tells the news of; what is in use; and the run that was looked
into last, however large, as who walks through it would list it again and again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import trio

from cloudai_fusefs.managed_tree import ManagedTree
from cloudai_fusefs.node import Node
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.tree_sync import TreeSync
from cloudai_model.errors import CloudAIError

ROUND_SECONDS: Final = 1.0
"""Between two looks at the limit: 30,000 names are listed meanwhile where a program does nothing else."""

QUIET_ROUND_SECONDS: Final = 60.0
"""The same where no run is listed and nothing is to go: a look that wakes the daemon costs it 2 ms, once a second."""

REST_SECONDS: Final = 2.0
"""Without a look, until a run is let go of: of two that are walked through at once neither is."""

ASK_AGAIN_SECONDS: Final = 60.0
"""What was in use may not be any more, and the kernel keeps it."""

COMES_BACK_SECONDS: Final = 60.0
"""One that is looked into again as soon as this after it was let go of rests for twice as long next time."""

AskBack = Callable[[Iterable[Node]], None]
"""Of KernelReferences: those to nodes that nobody uses."""


@dataclass
class _Rest:
    """Of one run."""

    seconds: float = field(default_factory=lambda: REST_SECONDS)
    let_go_at_seconds: float = -math.inf
    not_before_seconds: float = -math.inf


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
        self._rests: dict[RunTree, _Rest] = {}
        self._asked_at_seconds: dict[RunTree, float] = {}  # of those that were let go of and are not gone

    async def run(self) -> None:
        """Never returns."""
        while True:
            await trio.sleep(ROUND_SECONDS)
            run_was_listed = self._sync.run_was_listed
            await self.shrink()
            if len(self._managed.inodes) <= self.names_max and not self._asked_at_seconds:
                with trio.move_on_after(QUIET_ROUND_SECONDS):
                    await run_was_listed.wait()

    async def shrink(self) -> None:
        """Lets go of as many runs as the limit wants. What the kernel has of them goes soon afterwards.

        A run whose tree is not on disk is listed for that; it stays while the master is away, or the disk takes none.
        """
        self._ask_again()
        if len(self._managed.inodes) <= self.names_max:
            return
        candidates = self._candidates()
        excess_count = sum(map(_count_below_root, candidates)) - self.names_max
        for tree in candidates[:-1]:
            if excess_count <= 0:
                return
            if not _count_below_root(tree) or not self._has_rested(tree):
                continue
            if not await self._can_come_back(tree):
                self._put_off(tree, ASK_AGAIN_SECONDS)
                continue
            going_count = _count_below_root(tree)
            if self._sync.let_go(tree):
                self.let_go_count += 1
                self._note_let_go(tree)
                self._lengthen_rest(tree)
                self._ask(tree)
                excess_count -= going_count
            await trio.lowlevel.checkpoint()

    def _candidates(self) -> list[RunTree]:
        """The runs of which nothing speaks against it but time, those first that were looked into longest ago: what
        has to stay is not counted, or a mount with much of that would let go of every other run for nothing.
        """
        trees = self._managed.runs.values()
        found = [tree for tree in trees if tree.is_loaded and tree.is_same_when_listed]
        return sorted(found, key=lambda tree: tree.looked_at_seconds)

    def _has_rested(self, tree: RunTree) -> bool:
        rest = self._rests.get(tree, _Rest())
        now_seconds = trio.current_time()
        return now_seconds >= max(tree.looked_at_seconds + rest.seconds, rest.not_before_seconds)

    def _put_off(self, tree: RunTree, seconds: float) -> None:
        rest = self._rests.setdefault(tree, _Rest())
        rest.not_before_seconds = trio.current_time() + seconds

    def _lengthen_rest(self, tree: RunTree) -> None:
        """A job that opens a file every few seconds would have its run listed for each."""
        now_seconds = trio.current_time()
        rest = self._rests.setdefault(tree, _Rest())
        if now_seconds < rest.let_go_at_seconds + COMES_BACK_SECONDS:
            rest.seconds = min(2 * rest.seconds, COMES_BACK_SECONDS)
        else:
            rest.seconds = REST_SECONDS
        rest.let_go_at_seconds = now_seconds

    async def _can_come_back(self, tree: RunTree) -> bool:
        """Whether the tree is exact, and on disk: it is listed for that if need be."""
        try:
            await self._sync.load_run(tree)  # one that was sealed while nobody followed it may be of before
            return await self._sync.keep_sealed(tree)
        except CloudAIError:
            return False

    def _ask_again(self) -> None:
        """For what is left of runs that were let go of. What is known of runs that are gone goes."""
        self._rests = {tree: rest for tree, rest in self._rests.items() if not tree.is_removed}
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
