"""When changed nodes are committed: one alone soon, many that follow one another together."""

from __future__ import annotations

from cloudai_fusefs.commit_pace import GATHER_SECONDS, QUIET_SECONDS, CommitPace
from cloudai_fusefs.node import FILE, Node
from cloudai_fusefs.run_tree import RunTree
from cloudai_proto.storage.v1 import types_pb2 as types


def nodes(count: int) -> list[Node]:
    tree = RunTree(types.Run(root_node_id=1), lambda _: None, lambda _: None)
    return [Node(tree, 2 + number, FILE) for number in range(count)]


def test_file_alone_is_due_once_it_has_been_quiet() -> None:
    (node,) = nodes(1)
    assert CommitPace().due_seconds(node, 10.0) == 10.0 + QUIET_SECONDS


def test_changes_of_one_file_do_not_make_it_one_of_many() -> None:
    (node,) = nodes(1)
    pace = CommitPace()
    for moment_seconds in (10.0, 10.001, 10.002):
        assert pace.due_seconds(node, moment_seconds) == moment_seconds + QUIET_SECONDS


def test_files_that_follow_one_another_are_due_together() -> None:
    pace = CommitPace()
    due = {pace.due_seconds(node, 10 + 0.001 * number) for number, node in enumerate(nodes(200))}
    assert due == {10 + QUIET_SECONDS, 10.001 + GATHER_SECONDS}


def test_no_file_is_due_before_it_has_been_quiet_or_after_it_was_gathered() -> None:
    pace = CommitPace()
    for number, node in enumerate(nodes(2000)):
        now_seconds = 10 + 0.001 * number
        due_seconds = pace.due_seconds(node, now_seconds)
        assert now_seconds + QUIET_SECONDS <= due_seconds <= now_seconds + GATHER_SECONDS


def test_file_after_a_pause_is_alone_again() -> None:
    first, second, third = nodes(3)
    pace = CommitPace()
    pace.due_seconds(first, 10.0)
    pace.due_seconds(second, 10.001)
    assert pace.due_seconds(third, 20.0) == 20.0 + QUIET_SECONDS
