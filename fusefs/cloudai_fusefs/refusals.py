"""What follows a refusal among the uploads of one run: who is told of it, and when the master is asked again.

What only waits for the master is told to nobody, and so is for a while what others have overtaken: a listing tells.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from cloudai_fusefs.journal_rows import DiskState
from cloudai_fusefs.node import Node, Pending
from cloudai_fusefs.removal_sender import RemovalSender
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.staging import Staging
from cloudai_model.errors import (
    AlreadyExists,
    CloudAIError,
    InvalidRequest,
    IsADirectory,
    MasterUnavailable,
    NoSpace,
    NotADirectory,
    NotFound,
    QuotaExceeded,
    Unauthenticated,
)

log = logging.getLogger(__name__)

RETRY_SECONDS_MIN: Final = 0.2
RETRY_SECONDS_MAX: Final = 5.0
"""Pauses while the master is away: full jitter below a bound that doubles from MIN to MAX."""

REFUSED_RETRY_SECONDS: Final = 60.0
"""Until something is tried again that the master refused and that only a person can mend."""

OVERTAKEN_RETRY_SECONDS: Final = 1.0
OVERTAKEN_SECONDS_MAX: Final = 60.0
"""How long a change that others have overtaken may wait for a listing to tell what the master has by now."""

_MENDABLE: Final = (AlreadyExists, IsADirectory, NoSpace, NotADirectory, QuotaExceeded, Unauthenticated)
"""Refusals that pass without a change of the data, by others among them who move what is in its way: tried again every
RETRY_SECONDS_MAX.
"""


class Refusals:
    """The refusals of one run. Synchronous."""

    def __init__(
        self,
        tree: RunTree,
        staging: Staging,
        removals: RemovalSender,
        arm: Callable[[Node, Pending], None],
        note_progress: Callable[[], None],
    ) -> None:
        """`arm` is called with each node that has another due time, `note_progress` when those who wait are to look."""
        self._tree = tree
        self._staging = staging
        self._removals = removals
        self._arm = arm
        self._note_progress = note_progress
        self._retry_bound_seconds = RETRY_SECONDS_MIN
        self._last: CloudAIError | None = None  # of a whole call, which the log has

    def note_accepted(self) -> None:
        """The master takes commits again."""
        self._retry_bound_seconds = RETRY_SECONDS_MIN
        self._last = None

    def take_pause_seconds(self) -> float:
        """Until the master is asked again that is away; the next one may be longer."""
        bound_seconds = self._retry_bound_seconds
        self._retry_bound_seconds = min(bound_seconds * 2, RETRY_SECONDS_MAX)
        return random.uniform(0, bound_seconds)  # noqa: S311 - noise of a jitter, not of a secret

    def note_call(self, error: CloudAIError) -> None:
        """The master takes nothing of this run: it is sealed or removed, or its disk is full."""
        if str(self._last) != str(error):
            log.warning("%s: uploads are refused: %s", self._tree.path, error)
            self._last = error
        self._removals.put_off(RETRY_SECONDS_MAX, error)
        for node, pending in self._tree.pending.items():
            if pending.disk_state != DiskState.MAYBE_LOST:
                self._refuse(node, pending, error)
        self._note_progress()

    def note_node(self, node: Node, pending: Pending, error: CloudAIError) -> None:
        """Says when to try again and, where patience alone will not do, tells those who wait and the log."""
        if isinstance(error, MasterUnavailable):
            pending.due_seconds = trio.current_time() + self.take_pause_seconds()
            self._arm(node, pending)
            return
        if _is_overtaken(node, pending, error):
            if isinstance(error, InvalidRequest):
                self._tree.give_up_place(node, pending)
                with suppress(OSError):  # a full disk: the next mount is refused as this one was
                    self._staging.record(node)
            self._tree.is_in_doubt = True
            pending.due_seconds = trio.current_time() + OVERTAKEN_RETRY_SECONDS
            self._arm(node, pending)
            return
        self._note_refusal(node, pending, error)

    def waits_for_path(self, node: Node, pending: Pending) -> bool:
        """True: it has no path, which a listing may give it, and is put off until there is one, for a while."""
        waits = self._tree.is_in_doubt and not self._tree.has_path(node) and note_overtaken(pending)
        if waits:
            pending.due_seconds = trio.current_time() + OVERTAKEN_RETRY_SECONDS
            self._arm(node, pending)  # what came along with others is put on the agenda by nobody else
        return waits

    def note_behind(self, node: Node, before: Node, *, is_moving: bool) -> None:
        """The node waits for another, which has left its name here and may still have it at the master. `is_moving`: in
        the end for bytes on their way, which may take hours.
        """
        pending, pending_before = node.pending, before.pending
        if pending is None or pending_before is None:
            return
        if is_moving:
            pending.overtaken_since_seconds = math.nan
        if pending_before.failure is not None:
            self._note_refusal(node, pending, pending_before.failure)
        elif is_moving or note_overtaken(pending):
            if not pending_before.is_urgent:
                # A file that is open for writing may have hours in its own time.
                pending_before.want_now()
                self._arm(before, pending_before)
            pending.due_seconds = trio.current_time() + OVERTAKEN_RETRY_SECONDS
            self._arm(node, pending)
        else:
            # Each may wait for the other, where news of others have changed names.
            self._note_refusal(node, pending, AlreadyExists(path=self._tree.path_of(node)[:80]))

    def _note_refusal(self, node: Node, pending: Pending, error: Exception) -> None:
        if pending.told_failure != str(error):
            pending.told_failure = str(error)
            log.warning("%s: not uploaded yet: %s", self._tree.label_of(node), error)
        self._refuse(node, pending, error)

    def _refuse(self, node: Node, pending: Pending, error: Exception) -> None:
        pending.failure = error
        pending.wanted_count = 0
        is_mendable = isinstance(error, _MENDABLE)
        pause_seconds = RETRY_SECONDS_MAX if is_mendable else REFUSED_RETRY_SECONDS
        pending.due_seconds = trio.current_time() + pause_seconds
        self._arm(node, pending)
        self._note_progress()


def _is_overtaken(node: Node, pending: Pending, error: CloudAIError) -> bool:
    """Whether the refusal comes of what others have done with names meanwhile: a directory that was made here where
    another was moved to elsewhere is that one at the master, which does not know ours; one that was moved here may be
    above its new place there; and what has a directory's name there may be about to go.
    """
    is_unknown = isinstance(error, NotFound) and not pending.place
    is_circle = isinstance(error, InvalidRequest) and pending.place and node.is_directory
    is_taken = isinstance(error, AlreadyExists) and node.is_directory
    if not (is_unknown or is_circle or is_taken):
        return False
    return note_overtaken(pending)


def note_overtaken(pending: Pending) -> bool:
    """Starts its patience; False: that is over, and no listing has cleared up what others have done."""
    now_seconds = trio.current_time()
    if math.isnan(pending.overtaken_since_seconds):
        pending.overtaken_since_seconds = now_seconds
    return now_seconds < pending.overtaken_since_seconds + OVERTAKEN_SECONDS_MAX
