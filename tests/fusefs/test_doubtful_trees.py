"""News that cannot be applied, as what is pending here stands against it: the tree is in doubt until its next listing.

Before there were doubts, each of these left a name that only one mount showed, for good.
"""

from __future__ import annotations

from cloudai_fusefs.node import DIRECTORY, FILE, Node
from cloudai_fusefs.run_tree import RunTree
from cloudai_model.limits import NODE_ID_MIN
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.listings import apply_tree
from support.told_trees import ROOT_ID, edge, listing, make_tree

OWN_ID = NODE_ID_MIN + 1
OTHER_ID = NODE_ID_MIN + 2
BELOW_ID = NODE_ID_MIN + 3
ELSEWHERE_ID = NODE_ID_MIN + 4


def tell_set(tree: RunTree, item: types.Edge) -> None:
    change = names.Change(revision=item.node.revision, edge_set=item)
    tree.apply_changes(names.WatchResponse(changes=[change], revision=item.node.revision))


def tell_removed(tree: RunTree, parent_id: int, name: bytes, node_id: int, revision: int) -> None:
    removed = names.EdgeRemoved(parent_node_id=parent_id, name=name, node_id=node_id)
    change = names.Change(revision=revision, edge_removed=removed)
    tree.apply_changes(names.WatchResponse(changes=[change], revision=revision))


def make_here(tree: RunTree, name: bytes, kind: types.NodeKind, *, sent: bool) -> Node:
    """Something new, whose commit is under way or waits."""
    node = Node(tree, OWN_ID, kind)
    tree.add(tree.root, name, node)
    pending = tree.note_pending(node)
    pending.place = True
    pending.content = kind == FILE
    pending.sent = sent
    return node


def test_commit_that_is_yet_to_be_sent_replaces_theirs_without_a_doubt() -> None:
    tree = make_tree()
    make_here(tree, b"file", FILE, sent=False)

    tell_set(tree, edge(ROOT_ID, b"file", OTHER_ID, revision=3))

    assert not tree.is_in_doubt


def test_news_of_the_own_commit_are_no_doubt() -> None:
    tree = make_tree()
    make_here(tree, b"file", FILE, sent=True)

    tell_set(tree, edge(ROOT_ID, b"file", OWN_ID, revision=2))

    assert not tree.is_in_doubt


def test_directory_that_stayed_for_what_was_below_it_goes_with_a_listing() -> None:
    tree = make_tree(edge(ROOT_ID, b"directory", OTHER_ID, DIRECTORY))
    directory = tree.nodes[OTHER_ID]
    file = Node(tree, BELOW_ID, FILE)
    tree.add(directory, b"file", file)
    tree.note_pending(file).place = True
    tell_removed(tree, ROOT_ID, b"directory", OTHER_ID, 2)
    assert tree.is_in_doubt
    tree.detach(directory, b"file")  # removed here before it was committed
    tree.forget_pending(file)

    apply_tree(tree, [listing(2)])

    assert (tree.root.children, tree.is_in_doubt) == ({}, False)


def test_directory_moved_elsewhere_to_where_one_is_made_here_keeps_what_is_in_it() -> None:
    tree = make_tree(edge(ROOT_ID, b"old", OTHER_ID, DIRECTORY), edge(OTHER_ID, b"file", BELOW_ID))
    own = make_here(tree, b"new", DIRECTORY, sent=True)

    tell_set(tree, edge(ROOT_ID, b"new", OTHER_ID, DIRECTORY, revision=3))
    tell_removed(tree, ROOT_ID, b"old", OTHER_ID, 4)

    assert tree.root.children == {b"new": own}
    assert own.node_id == OTHER_ID
    assert list(own.children or {}) == [b"file"]


def test_directory_that_somebody_else_made_as_well_is_known_to_be_at_the_master() -> None:
    tree = make_tree()
    own = make_here(tree, b"directory", DIRECTORY, sent=False)

    tell_set(tree, edge(ROOT_ID, b"directory", OTHER_ID, DIRECTORY, revision=2))

    assert own.ids_at_master == (OTHER_ID,)


def test_file_that_was_committed_where_its_directory_had_been_is_a_doubt() -> None:
    tree = make_tree(edge(ROOT_ID, b"directory", OTHER_ID, DIRECTORY), edge(OTHER_ID, b"file", BELOW_ID))
    tell_set(tree, edge(ROOT_ID, b"moved", OTHER_ID, DIRECTORY, revision=2))
    tell_removed(tree, ROOT_ID, b"directory", OTHER_ID, 3)
    tell_set(tree, edge(ROOT_ID, b"directory", ELSEWHERE_ID, DIRECTORY, revision=4))

    tell_set(tree, edge(ELSEWHERE_ID, b"file", BELOW_ID, revision=5))

    assert tree.is_in_doubt


def test_news_from_a_directory_that_is_not_known_here_are_a_doubt() -> None:
    tree = make_tree()

    tell_set(tree, edge(ELSEWHERE_ID, b"file", BELOW_ID, revision=2))

    assert tree.is_in_doubt


def test_late_news_from_a_directory_that_was_removed_here_are_no_doubt() -> None:
    tree = make_tree(edge(ROOT_ID, b"directory", OTHER_ID, DIRECTORY))
    tree.detach(tree.root, b"directory")
    tree.forget_if_unused(tree.nodes[OTHER_ID])
    tree.answered.note_touched(OTHER_ID, 5)

    tell_set(tree, edge(OTHER_ID, b"file", BELOW_ID, revision=4))

    assert not tree.is_in_doubt


def test_file_that_was_moved_away_before_a_rename_here_over_it_is_shown_where_it_went() -> None:
    tree = make_tree(edge(ROOT_ID, b"file", OTHER_ID))
    replaced = tree.detach(tree.root, b"file")
    tree.forget_if_unused(replaced)
    tree.answered.note_place((ROOT_ID, b"file"), 5)
    tree.answered.note_touched(OTHER_ID, 5)

    tell_set(tree, edge(ROOT_ID, b"moved", OTHER_ID, revision=3))

    assert (list(tree.root.children or {}), tree.is_in_doubt) == ([b"moved"], False)


def test_directory_that_took_the_id_of_another_shares_its_number_with_none() -> None:
    tree = make_tree()
    own = make_here(tree, b"old", DIRECTORY, sent=True)
    tell_set(tree, edge(ROOT_ID, b"old", OWN_ID, DIRECTORY, revision=2))
    tree.move(tree.root, b"old", tree.root, b"new")
    tell_set(tree, edge(ROOT_ID, b"new", OTHER_ID, DIRECTORY, revision=3))
    assert tree.is_in_doubt

    apply_tree(
        tree,
        [
            listing(
                3,
                edge(ROOT_ID, b"old", OWN_ID, DIRECTORY, revision=2),
                edge(ROOT_ID, b"new", OTHER_ID, DIRECTORY, revision=3),
            )
        ],
    )

    old = (tree.root.children or {})[b"old"]
    assert (tree.root.children or {})[b"new"] is own
    assert own.node_id == OTHER_ID
    assert old.node_id == OWN_ID
    assert old.ino != own.ino == OWN_ID


def test_directory_moved_elsewhere_into_one_that_was_renamed_into_it_here_makes_no_circle() -> None:
    tree = make_tree(edge(ROOT_ID, b"theirs", OTHER_ID, DIRECTORY))
    theirs = tree.nodes[OTHER_ID]
    own = make_here(tree, b"own", DIRECTORY, sent=True)
    tree.move(tree.root, b"own", theirs, b"own")  # before its commit is answered

    tell_set(tree, edge(OWN_ID, b"theirs", OTHER_ID, DIRECTORY, revision=3))

    assert tree.is_in_doubt
    assert (tree.root.children, theirs.edges) == ({b"theirs": theirs}, ((tree.root, b"theirs"),))
    assert tree.path_of(own) == b"theirs/own"
