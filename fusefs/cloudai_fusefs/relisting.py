"""When a run that is followed by a watch is listed all the same: where its news are not enough to know, and where they
do not come. Pure state; times are of trio's clock.
"""

from __future__ import annotations

import math
from typing import Final

from cloudai_fusefs.run_tree import RunTree

UNFOLLOWED_SECONDS_MAX: Final = 10.0
"""A run whose watch breaks each time, while the master answers other calls, is listed as often as that."""

DOUBT_SECONDS_MIN: Final = 1.0
DOUBT_SECONDS_MAX: Final = 30.0
"""Between two listings of a run in which what is pending here stands against what others have done: the pause doubles
from MIN to MAX for as long as it does."""

REST_SECONDS: Final = 5.0
"""Without news and without changes of its own a run in which several have changed names is listed once more."""


class Relisting:
    """Of one run, from its first listing on."""

    def __init__(self, tree: RunTree, now_seconds: float) -> None:
        self._tree = tree
        self._pause_seconds = DOUBT_SECONDS_MIN
        self._not_before_seconds = -math.inf
        self._exact_at_seconds = now_seconds
        self._rested_at_seconds = now_seconds

    def is_due_after_news(self, now_seconds: float, *, is_news: bool, is_last: bool) -> bool:
        """Asked after each message of the watch has been applied. `is_news`: it told of changes; `is_last`: the run
        is sealed, and there will be no further chance.
        """
        tree = self._tree
        self._exact_at_seconds = now_seconds
        if is_last:
            return tree.is_in_doubt or tree.is_disputed
        if tree.is_in_doubt and now_seconds >= self._not_before_seconds:
            return True
        if is_news or not tree.is_at_rest:
            self._rested_at_seconds = now_seconds + REST_SECONDS
            return False
        return tree.is_disputed and now_seconds >= self._rested_at_seconds

    def note_listed(self, now_seconds: float) -> None:
        """The tree is as the listing was."""
        if self._tree.is_in_doubt:
            self._pause_seconds = min(2 * self._pause_seconds, DOUBT_SECONDS_MAX)
        else:
            self._pause_seconds = DOUBT_SECONDS_MIN
        self._not_before_seconds = now_seconds + self._pause_seconds
        self._exact_at_seconds = now_seconds

    def is_due_without_news(self, now_seconds: float) -> bool:
        """Asked when the watch has broken."""
        return now_seconds >= self._exact_at_seconds + UNFOLLOWED_SECONDS_MAX

    def note_away(self, now_seconds: float) -> None:
        """A listing was asked for, and the master is away altogether."""
        self._exact_at_seconds = now_seconds
