"""What the master's answers have said of one run's names, ahead of the news. Pure state.

Answers and news come on ways of their own. Each says at which revision it holds, so news up to the revision of an
answer are history where that answer has spoken, and only there: what it left open, others may have changed before it.
"""

from __future__ import annotations

from typing import NamedTuple

from cloudai_proto.storage.v1 import types_pb2 as types

Place = tuple[int, bytes]
"""A directory's id and a name in it."""


class NewsOfName(NamedTuple):
    """What the master had under the name at a revision: this edge, or not this node."""

    revision: int
    edge: types.Edge | None


class AnsweredNames:
    """Of each, the revision of the last answer, as long as older news may come."""

    def __init__(self) -> None:
        self._places: dict[Place, int] = {}
        self._absences: dict[tuple[Place, int], int] = {}
        self._removed: dict[int, int] = {}
        self._touched: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._places or self._absences or self._removed or self._touched)

    def note_place(self, place: Place, revision: int) -> None:
        """What the name stands for, if anything, is known at this revision."""
        self._places[place] = revision

    def note_absence(self, place: Place, node_id: int, revision: int) -> None:
        """At this revision the name does not stand for the node; for which other, or for none, was not said."""
        self._absences[place, node_id] = revision

    def note_removed(self, node_id: int, revision: int) -> None:
        """The node has no name at all at this revision, and its id is not given again."""
        self._removed[node_id] = revision

    def note_touched(self, node_id: int, revision: int) -> None:
        """The node gained or lost a name at this revision, which moved its change time."""
        self._touched[node_id] = revision

    def revision_of(self, place: Place, node_id: int) -> int:
        """Up to here it is known whether the name stands for the node; 0: no answer has told."""
        return max(
            self._places.get(place, 0),
            self._absences.get((place, node_id), 0),
            self._removed.get(node_id, 0),
        )

    def touched_revision_of(self, node_id: int) -> int:
        """0: no answer has told of a change of its names."""
        return self._touched.get(node_id, 0)

    def forget_until(self, revision: int) -> None:
        """News up to this revision have all come."""
        if self:
            self._places = {key: at for key, at in self._places.items() if at > revision}
            self._absences = {key: at for key, at in self._absences.items() if at > revision}
            self._removed = {key: at for key, at in self._removed.items() if at > revision}
            self._touched = {key: at for key, at in self._touched.items() if at > revision}

    def clear(self) -> None:
        """What was known is of another history."""
        for known in (self._places, self._absences, self._removed, self._touched):
            known.clear()
