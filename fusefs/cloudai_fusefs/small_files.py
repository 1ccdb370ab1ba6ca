"""Which small files are read next: the ones after this one in its directory, many in one call.

A program that reads a directory's files one after another (a data loader, `cp -r`, `grep -r`) pays a round
trip for each, which is more than their bytes cost. Pure state, no I/O and no clock; what it says is a hint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cloudai_fusefs.node import Node
from cloudai_fusefs.run_tree import RunTree
from cloudai_model.limits import KIB, READ_FILES_BYTES_MAX, READ_FILES_MAX

FILE_BYTES_MAX: Final = 256 * KIB
"""Of a larger file the bytes cost more than the round trip."""

FIRST_CALL_FILES: Final = 8
"""Of a larger window these come first, so that the reader goes on while the others are on their way."""

WINDOW_FILES_MAX: Final = READ_FILES_MAX // 2

STEP_FILES_MAX: Final = 8
"""A reader that skips up to so many names goes on: it may want one suffix, or one shard in four."""

DIRECTORIES_MAX: Final = 64

NAMES_MAX: Final = 128 * 1024
"""Of all directories that are kept together, but for the DIRECTORIES_MIN read last: one of any size is read ahead of,
and two that are read in turns, as pictures and their labels are, are not gone through again and again. A name costs
90 bytes here, 600 and more in its tree."""

DIRECTORIES_MIN: Final = 4


@dataclass(slots=True, eq=False)
class _Reading:
    """One directory as it was when its first file was read, and what has been added to it since."""

    nodes: list[Node]
    places: dict[Node, int] = field(init=False)
    last_place: int | None = None
    window_files: int = 0
    asked_place: int = 0  # all below have been asked for, or passed

    def __post_init__(self) -> None:
        self.places = {node: place for place, node in enumerate(self.nodes)}

    def add_newer(self, directory: Node) -> None:
        """Takes in what has come at the directory's end; the cost is that of what has come."""
        children = directory.children or {}
        newer: list[Node] = []
        for name in reversed(children):
            if children[name] in self.places:
                break
            newer.append(children[name])
        for node in dict.fromkeys(reversed(newer)):
            self.places[node] = len(self.nodes)
            self.nodes.append(node)


class SmallFileReadAhead:
    """The reading of small files in one mount."""

    def __init__(self) -> None:
        self._readings: dict[Node, _Reading] = {}  # by directory, the one read longest ago first
        self._streak_files = 0

    @property
    def name_count(self) -> int:
        """How many names are kept."""
        return sum(len(reading.nodes) for reading in self._readings.values())

    def forget_run(self, tree: RunTree) -> None:
        """Its nodes are let go of: whoever reads on in it begins anew."""
        for directory in [directory for directory in self._readings if directory.tree is tree]:
            del self._readings[directory]

    def note_read(self, node: Node) -> list[list[Node]]:
        """The files to ask for now, those of a list together; this one is the first unless it was asked for before.

        Empty when it is better read alone. Each file is named once in a sequence.
        """
        edge = node.first_edge
        if edge is None or not is_small_file(node) or node.tree.is_let_go:
            return []
        directory, _ = edge
        reading = self._reading_of(directory)
        if node not in reading.places:
            reading.add_newer(directory)
        if node not in reading.places:  # and older than one that was renamed since
            del self._readings[directory]
            reading = self._reading_of(directory)
        place = reading.places[node]
        last_place, reading.last_place = reading.last_place, place
        if last_place is None:
            if not reading.window_files:
                reading.asked_place = place + 1
                return []
        elif place == last_place:
            return []
        elif not 0 < place - last_place <= STEP_FILES_MAX:
            reading.window_files = self._streak_files = 0
            reading.asked_place = place + 1
            return []
        else:
            reading.window_files = max(reading.window_files, 1)
        first = max(place, reading.asked_place)
        if first > place + reading.window_files // 2:
            return []  # there is enough ahead
        reading.window_files = self._streak_files = min(reading.window_files * 4, WINDOW_FILES_MAX)
        wanted = self._take(reading, first, place + 1 + reading.window_files)
        groups = [wanted[:FIRST_CALL_FILES], wanted[FIRST_CALL_FILES:]]
        if reading.asked_place == len(reading.nodes):
            # The reader of a whole tree goes on with the next directory.
            groups.append(self._begin_next(directory))
        return [group for group in groups if group]

    def _begin_next(self, directory: Node) -> list[Node]:
        """The first files of the directory after this one, if that has not been looked into."""
        edge = directory.first_edge
        if edge is None:
            return []
        siblings = self._reading_of(edge[0])
        for sibling in siblings.nodes[siblings.places.get(directory, len(siblings.nodes)) + 1 :]:
            if sibling.is_directory and sibling.is_attached:
                if sibling in self._readings:
                    break
                return self._take(self._reading_of(sibling), 0, self._streak_files)
        return []

    def _reading_of(self, directory: Node) -> _Reading:
        reading = self._readings.pop(directory, None)
        if reading is not None:
            self._readings[directory] = reading
        else:
            # A file of two names in it is one file, at the place of the first.
            nodes = list(dict.fromkeys((directory.children or {}).values()))
            reading = self._readings[directory] = _Reading(nodes)
            # Who read the last directory in order is likely to read this one so.
            reading.window_files = self._streak_files
            self._forget_oldest()
        return reading

    def _forget_oldest(self) -> None:
        name_count = self.name_count
        while len(self._readings) > DIRECTORIES_MAX or (
            name_count > NAMES_MAX and len(self._readings) > DIRECTORIES_MIN
        ):
            oldest = next(iter(self._readings))
            name_count -= len(self._readings.pop(oldest).nodes)

    @staticmethod
    def _take(reading: _Reading, first: int, after: int) -> list[Node]:
        """The small files of these places, as many as one answer can hold; they count as asked for."""
        wanted: list[Node] = []
        wanted_bytes = 0
        reading.asked_place = first
        for candidate in reading.nodes[first:after]:
            if is_small_file(candidate) and candidate.is_attached:
                wanted_bytes += candidate.size_bytes
                if wanted_bytes > READ_FILES_BYTES_MAX:
                    break
                wanted.append(candidate)
            reading.asked_place += 1
        return wanted


def is_small_file(node: Node) -> bool:
    """Whether its content is one short chunk at the master, with nothing staged over it."""
    return bool(node.digest) and node.size_bytes <= FILE_BYTES_MAX and node.staged is None and node.is_file
