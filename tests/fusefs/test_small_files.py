"""Which small files are asked for ahead of a reader, for directories written out by hand and for any."""

from __future__ import annotations

from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai_fusefs import small_files
from cloudai_fusefs.node import DIRECTORY, FILE, SYMLINK, Node
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.small_files import (
    DIRECTORIES_MIN,
    FILE_BYTES_MAX,
    FIRST_CALL_FILES,
    STEP_FILES_MAX,
    WINDOW_FILES_MAX,
    SmallFileReadAhead,
    is_small_file,
)
from cloudai_fusefs.staged_file import StagedFile
from cloudai_model.limits import KIB, NODE_ID_MIN, READ_FILES_BYTES_MAX, READ_FILES_MAX
from cloudai_proto.storage.v1 import types_pb2 as types

DIGEST = bytes(32)


class SmallTree:
    """A run as it is listed, made name by name."""

    def __init__(self) -> None:
        run = types.Run(user="user-123", task="training", name="2026-11-20_15-04-05", task_id="t")
        run.root_node_id = NODE_ID_MIN
        self.tree = RunTree(run, lambda node: None, lambda node: None)
        self._next_id = NODE_ID_MIN + 1

    @property
    def root(self) -> Node:
        return self.tree.root

    def add(
        self,
        parent: Node,
        name: bytes,
        *,
        kind: types.NodeKind = FILE,
        size_bytes: int = KIB,
        chunks: int = 1,
    ) -> Node:
        node = Node(self.tree, self._next_id, kind)
        self._next_id += 1
        if kind == FILE:
            node.size_bytes = size_bytes
            node.digest = DIGEST if chunks == 1 else b""
        self.tree.add(parent, name, node)
        return node

    def add_directory(self, parent: Node, name: bytes, count: int = 0, *, size_bytes: int = KIB) -> Node:
        directory = self.add(parent, name, kind=DIRECTORY)
        for number in range(count):
            self.add(directory, b"%05d" % number, size_bytes=size_bytes)
        return directory


def files_in(directory: Node) -> list[Node]:
    """Each once, whatever names it has there."""
    return list(dict.fromkeys((directory.children or {}).values()))


def names_of(groups: list[list[Node]]) -> list[list[int]]:
    return [[int(node.edges[0][1]) for node in group] for group in groups]


def read_in_order(ahead: SmallFileReadAhead, nodes: list[Node]) -> list[list[Node]]:
    """All groups asked for, in order."""
    return [group for node in nodes for group in ahead.note_read(node)]


def test_names_of_large_directories_are_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_files, "NAMES_MAX", 1000)
    tree = SmallTree()
    directories = [tree.add_directory(tree.root, b"%d" % number, 100) for number in range(20)]
    ahead = SmallFileReadAhead()
    for directory in directories:
        ahead.note_read(files_in(directory)[0])
        assert ahead.name_count <= 1000


def test_directories_read_last_are_kept_whatever_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_files, "NAMES_MAX", 10)
    tree = SmallTree()
    directories = [
        tree.add_directory(tree.root, b"%d" % number, 400) for number in range(DIRECTORIES_MIN + 1)
    ]
    ahead = SmallFileReadAhead()
    for directory in directories:
        ahead.note_read(files_in(directory)[0])
    assert ahead.name_count == DIRECTORIES_MIN * 400

    # Those that are read in turns, here from the second file on, are each read in order.
    in_turns = [ahead.note_read(files_in(directory)[1]) for directory in directories[1:]]

    assert [len(groups) > 0 for groups in in_turns] == [True] * DIRECTORIES_MIN


def test_directory_that_grows_counts_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_files, "NAMES_MAX", 300)
    tree = SmallTree()
    growing = tree.add_directory(tree.root, b"growing", 10)
    ahead = SmallFileReadAhead()
    ahead.note_read(files_in(growing)[0])
    for number in range(10, 200):
        ahead.note_read(tree.add(growing, b"%05d" % number))
    for number in range(DIRECTORIES_MIN):
        ahead.note_read(files_in(tree.add_directory(tree.root, b"%d" % number, 50))[0])
    assert DIRECTORIES_MIN * 50 <= ahead.name_count <= 300


def test_one_file_is_read_alone() -> None:
    tree = SmallTree()
    directory = tree.add_directory(tree.root, b"d", 10)
    assert SmallFileReadAhead().note_read(files_in(directory)[3]) == []


def test_second_in_a_row_brings_the_next_and_the_window_grows_fourfold() -> None:
    tree = SmallTree()
    files = files_in(tree.add_directory(tree.root, b"d", 400))
    ahead = SmallFileReadAhead()
    assert ahead.note_read(files[0]) == []
    assert names_of(ahead.note_read(files[1])) == [[1, 2, 3, 4, 5]]
    assert [names_of(ahead.note_read(files[place])) for place in range(2, 4)] == [[], []]
    assert names_of(ahead.note_read(files[4])) == [[*range(6, 14)], [*range(14, 21)]]


def test_first_group_is_small_so_that_the_reader_goes_on() -> None:
    tree = SmallTree()
    files = files_in(tree.add_directory(tree.root, b"d", 2000))
    groups = read_in_order(SmallFileReadAhead(), files)
    assert max(map(len, groups)) <= WINDOW_FILES_MAX
    assert sum(map(len, groups)) == 2000 - 1
    assert len(groups[1]) == FIRST_CALL_FILES


def test_two_hundred_files_take_few_calls() -> None:
    tree = SmallTree()
    files = files_in(tree.add_directory(tree.root, b"d", 200))
    assert len(read_in_order(SmallFileReadAhead(), files)) <= 10


def test_reader_of_a_directory_that_grows_does_not_look_through_it_each_time() -> None:
    tree = SmallTree()
    directory = tree.add_directory(tree.root, b"d", 1000)
    ahead = SmallFileReadAhead()
    read_in_order(ahead, files_in(directory)[:2])

    class LookedThrough(dict[bytes, Node]):
        def values(self) -> NoReturn:
            raise AssertionError("from its beginning")

    directory.children = LookedThrough(directory.children or {})
    for number in range(1000, 1010):
        newer = tree.add(directory, b"%05d" % number)
        ahead.note_read(newer)


def test_files_that_came_after_the_list_are_asked_for() -> None:
    tree = SmallTree()
    directory = tree.add_directory(tree.root, b"d", 3)
    ahead = SmallFileReadAhead()
    read_in_order(ahead, files_in(directory))
    newer = [tree.add(directory, b"%05d" % number) for number in range(3, 9)]
    assert names_of(read_in_order(ahead, newer)) == [[3, 4, 5, 6, 7, 8]]


def test_newer_file_before_one_that_was_renamed_is_found() -> None:
    tree = SmallTree()
    directory = tree.add_directory(tree.root, b"d", 5)
    ahead = SmallFileReadAhead()
    read_in_order(ahead, files_in(directory)[:1])
    newer = [tree.add(directory, b"%05d" % number) for number in range(5, 9)]
    tree.tree.move(directory, b"00000", directory, b"00009")
    assert names_of(read_in_order(ahead, newer[:2])) == [[6, 7, 8, 9]]


def test_file_read_again_asks_for_nothing() -> None:
    tree = SmallTree()
    files = files_in(tree.add_directory(tree.root, b"d", 100))
    ahead = SmallFileReadAhead()
    read_in_order(ahead, files[:2])
    assert ahead.note_read(files[1]) == []


def test_reader_that_skips_a_few_names_goes_on() -> None:
    tree = SmallTree()
    files = files_in(tree.add_directory(tree.root, b"d", 100))
    ahead = SmallFileReadAhead()
    ahead.note_read(files[0])
    assert names_of(ahead.note_read(files[STEP_FILES_MAX])) == [[8, 9, 10, 11, 12]]


def test_reader_that_jumps_or_goes_back_is_read_alone() -> None:
    tree = SmallTree()
    files = files_in(tree.add_directory(tree.root, b"d", 100))
    for start, jump in ((0, STEP_FILES_MAX + 1), (50, 49), (50, 3), (0, 99)):
        ahead = SmallFileReadAhead()
        ahead.note_read(files[start])
        assert ahead.note_read(files[jump]) == []


def test_window_is_small_again_after_a_jump() -> None:
    tree = SmallTree()
    files = files_in(tree.add_directory(tree.root, b"d", 1000))
    ahead = SmallFileReadAhead()
    read_in_order(ahead, files[:300])
    assert ahead.note_read(files[700]) == []
    assert names_of(ahead.note_read(files[701])) == [[701, 702, 703, 704, 705]]


def test_reader_of_a_whole_tree_finds_the_next_directory_asked_for() -> None:
    tree = SmallTree()
    directories = [tree.add_directory(tree.root, b"d%d" % number, 20) for number in range(3)]
    ahead = SmallFileReadAhead()
    asked = read_in_order(ahead, files_in(directories[0]))
    assert asked[-1] == files_in(directories[1])[:16]
    later = read_in_order(ahead, files_in(directories[1]))
    assert later == [files_in(directories[1])[16:], files_in(directories[2])]
    assert read_in_order(ahead, files_in(directories[2])) == []


def test_what_is_no_small_file_is_not_asked_for() -> None:
    tree = SmallTree()
    directory = tree.add_directory(tree.root, b"d", 2)
    tree.add(directory, b"large", size_bytes=FILE_BYTES_MAX + 1)
    tree.add(directory, b"chunks", size_bytes=FILE_BYTES_MAX, chunks=2)
    tree.add(directory, b"empty", size_bytes=0, chunks=0)
    tree.add(directory, b"link", kind=SYMLINK)
    tree.add(directory, b"below", kind=DIRECTORY)
    written = tree.add(directory, b"written")
    written.staged = object.__new__(StagedFile)
    last = tree.add(directory, b"last", size_bytes=FILE_BYTES_MAX)
    files = files_in(directory)
    ahead = SmallFileReadAhead()
    assert read_in_order(ahead, files[:2]) == [[files[1]]]
    asked = read_in_order(ahead, files[2:-1])
    assert asked == []
    assert read_in_order(ahead, [last]) == [[last]]


def test_removed_and_moved_files_are_not_missed() -> None:
    tree = SmallTree()
    directory = tree.add_directory(tree.root, b"d", 20)
    files = files_in(directory)
    ahead = SmallFileReadAhead()
    ahead.note_read(files[0])
    removed = tree.tree.detach(directory, b"00003")
    asked = read_in_order(ahead, files[1:3])
    assert removed not in asked[0]
    assert ahead.note_read(removed) == []


def test_file_that_came_later_is_one_of_its_directory() -> None:
    tree = SmallTree()
    directory = tree.add_directory(tree.root, b"d", 3)
    ahead = SmallFileReadAhead()
    read_in_order(ahead, files_in(directory))
    late = tree.add(directory, b"99999")
    assert late in [node for group in ahead.note_read(late) for node in group]


def test_name_of_the_same_file_in_the_same_directory_is_not_asked_for_twice() -> None:
    tree = SmallTree()
    directory = tree.add_directory(tree.root, b"d", 4)
    files = files_in(directory)
    tree.tree._attach(directory, b"again", files[3])
    assert read_in_order(SmallFileReadAhead(), files) == [files[1:]]


def test_answer_holds_what_a_group_asks_for() -> None:
    tree = SmallTree()
    files = files_in(tree.add_directory(tree.root, b"d", 300, size_bytes=FILE_BYTES_MAX))
    for group in read_in_order(SmallFileReadAhead(), files):
        assert sum(node.size_bytes for node in group) <= READ_FILES_BYTES_MAX


@st.composite
def directories(draw: st.DrawFn) -> SmallTree:
    """A few directories, below each other too, with files of all kinds and names of the same file."""
    tree = SmallTree()
    made = [tree.root]
    for number in range(draw(st.integers(1, 4))):
        parent = draw(st.sampled_from(made))
        directory = tree.add_directory(parent, b"d%d" % number)
        made.append(directory)
        of_directory: list[Node] = []
        for place in range(draw(st.integers(0, 60))):
            what = draw(st.integers(0, 19))
            name = b"f%03d" % place
            if what == 0:
                tree.add(directory, name, size_bytes=FILE_BYTES_MAX + 1)
            elif what == 1:
                tree.add(directory, name, kind=SYMLINK)
            elif what == 2:
                tree.add(directory, name, chunks=2, size_bytes=9)
            elif what == 3 and of_directory:
                tree.tree._attach(directory, name, draw(st.sampled_from(of_directory)))
            else:
                of_directory.append(
                    tree.add(directory, name, size_bytes=draw(st.integers(1, FILE_BYTES_MAX)))
                )
    return tree


@settings(max_examples=80, deadline=None)
@given(tree=directories(), data=st.data())
def test_no_file_is_named_twice_in_a_sequence_nor_one_that_is_not_small(
    tree: SmallTree, data: st.DataObject
) -> None:
    ahead = SmallFileReadAhead()
    by_directory = {
        directory: files_in(directory)
        for directory in tree.tree.nodes.values()
        if any(map(is_small_file, files_in(directory)))
    }
    named: dict[Node, set[Node]] = {directory: set() for directory in by_directory}
    last_place: dict[Node, int] = {}
    for _ in range(data.draw(st.integers(1, 30)) if by_directory else 0):
        directory = data.draw(st.sampled_from(list(by_directory)))
        nodes = by_directory[directory]
        place = data.draw(st.integers(0, len(nodes) - 1))
        if directory in last_place and data.draw(st.booleans()):
            place = last_place[directory] + 1
        for at in range(place, min(place + data.draw(st.integers(1, 20)), len(nodes))):
            if is_small_file(nodes[at]):
                if directory in last_place and not 0 <= at - last_place[directory] <= STEP_FILES_MAX:
                    named[directory].clear()  # a jump: another sequence
                last_place[directory] = at
            _check_groups(ahead.note_read(nodes[at]), named)


def _check_groups(groups: list[list[Node]], named: dict[Node, set[Node]]) -> None:
    assert len(groups) <= 3
    for group in groups:
        assert 0 < len(group) <= WINDOW_FILES_MAX + 1 <= READ_FILES_MAX
        assert sum(node.size_bytes for node in group) <= READ_FILES_BYTES_MAX
        for node in group:
            assert is_small_file(node)
            directory = node.edges[0][0]
            assert node not in named[directory]
            named[directory].add(node)
