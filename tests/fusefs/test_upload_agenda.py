"""When each pending node is to be looked at next."""

from __future__ import annotations

import math

from cloudai_fusefs.node import FILE, Node, Pending
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.upload_agenda import UploadAgenda
from cloudai_proto.storage.v1 import types_pb2 as types


def pending_node(due_seconds: float) -> tuple[Node, Pending]:
    tree = RunTree(types.Run(root_node_id=1), lambda _: None, lambda _: None)
    node = Node(tree, 2, FILE)
    pending = tree.note_pending(node)
    pending.due_seconds = due_seconds
    return node, pending


def test_node_is_due_once_at_its_moment() -> None:
    agenda = UploadAgenda()
    node, pending = pending_node(5.0)
    agenda.put(node, pending)
    agenda.put(node, pending)

    assert agenda.take_due(4.9, 10) == []
    assert agenda.take_due(5.0, 10) == [(node, pending)]
    assert agenda.take_due(5.0, 10) == []


def test_node_that_was_put_off_by_another_hand_can_be_put_at_its_first_moment_again() -> None:
    agenda = UploadAgenda()
    node, pending = pending_node(-math.inf)
    agenda.put(node, pending)
    pending.due_seconds = 10.0
    assert agenda.next_due_seconds == math.inf

    pending.due_seconds = -math.inf
    agenda.put(node, pending)

    assert agenda.take_due(0.0, 10) == [(node, pending)]
