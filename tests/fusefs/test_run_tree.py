"""News from the master over what is pending here: who wins, and what the kernel is told."""

from __future__ import annotations

import pytest

from cloudai_fusefs.node import DIRECTORY, FILE, Node
from cloudai_fusefs.run_tree import Invalidation, RunTree
from cloudai_model.errors import AlreadyExists, NameTooLong
from cloudai_model.limits import NODE_ID_MIN
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

ROOT_ID = NODE_ID_MIN
FILE_ID = NODE_ID_MIN + 1
OTHER_ID = NODE_ID_MIN + 2
DIRECTORY_ID = NODE_ID_MIN + 3


def make_tree() -> RunTree:
    run = types.Run(user="user-123", task="training", name="2026-11-20_15-04-05", task_id="t")
    run.root_node_id = ROOT_ID
    return RunTree(run, lambda node: None, lambda node: None)


def edge(
    name: bytes,
    node_id: int,
    *,
    parent: int = ROOT_ID,
    kind: types.NodeKind = FILE,
    revision: int = 1,
    size: int = 0,
    generation: int = 1,
) -> types.Edge:
    node = types.Node(
        node_id=node_id,
        kind=kind,
        size_bytes=size,
        generation=generation,
        revision=revision,
        link_count=1,
        attributes=types.Attributes(mode=0o644),
    )
    return types.Edge(parent_node_id=parent, name=name, node=node)


def page(*edges: types.Edge, revision: int = 1) -> names.ListTreeResponse:
    root = types.Node(node_id=ROOT_ID, kind=DIRECTORY, attributes=types.Attributes(mode=0o755), revision=1)
    return names.ListTreeResponse(root=root, edges=edges, revision=revision)


def set_edge(item: types.Edge, revision: int) -> names.WatchResponse:
    return names.WatchResponse(changes=[names.Change(revision=revision, edge_set=item)], revision=revision)


def remove_edge(name: bytes, node_id: int, revision: int, parent: int = ROOT_ID) -> names.WatchResponse:
    removed = names.EdgeRemoved(parent_node_id=parent, name=name, node_id=node_id)
    return names.WatchResponse(
        changes=[names.Change(revision=revision, edge_removed=removed)], revision=revision
    )


def names_in(directory: Node) -> list[bytes]:
    return sorted(directory.children or {})


def make_here(tree: RunTree, name: bytes, node_id: int) -> Node:
    node = Node(tree, node_id, FILE)
    tree.add(tree.root, name, node)
    pending = tree.note_pending(node)
    pending.place = pending.content = True
    return node


def test_listed_tree_is_shown() -> None:
    tree = make_tree()

    tree.apply_tree(
        [page(edge(b"d", DIRECTORY_ID, kind=DIRECTORY), edge(b"f", FILE_ID, parent=DIRECTORY_ID, size=7))]
    )

    assert names_in(tree.root) == [b"d"]
    assert tree.path_of(tree.nodes[FILE_ID]) == b"d/f"
    assert tree.nodes[FILE_ID].size_bytes == 7


def test_name_that_appears_elsewhere_appears_here_and_the_kernel_is_told() -> None:
    tree = make_tree()
    tree.apply_tree([page()])

    told = tree.apply_changes(set_edge(edge(b"new", FILE_ID), 2))

    assert names_in(tree.root) == [b"new"]
    assert Invalidation(ROOT_ID, b"new") in told
    assert tree.revision == 2


def test_change_applied_twice_changes_nothing_more() -> None:
    tree = make_tree()
    tree.apply_tree([page()])
    tree.apply_changes(set_edge(edge(b"new", FILE_ID), 2))

    assert tree.apply_changes(set_edge(edge(b"new", FILE_ID), 2)) == []
    assert names_in(tree.root) == [b"new"]


def test_removal_elsewhere_removes_here() -> None:
    tree = make_tree()
    tree.apply_tree([page(edge(b"f", FILE_ID))])

    told = tree.apply_changes(remove_edge(b"f", FILE_ID, 2))

    assert names_in(tree.root) == []
    assert Invalidation(ROOT_ID, b"f", FILE_ID) in told
    assert FILE_ID not in tree.nodes


def test_removal_of_another_node_of_that_name_is_ignored() -> None:
    tree = make_tree()
    tree.apply_tree([page(edge(b"f", FILE_ID))])

    tree.apply_changes(remove_edge(b"f", OTHER_ID, 2))

    assert names_in(tree.root) == [b"f"]


def test_removal_elsewhere_does_not_take_a_file_with_uncommitted_content() -> None:
    tree = make_tree()
    tree.apply_tree([page(edge(b"f", FILE_ID))])
    tree.note_pending(tree.nodes[FILE_ID]).content = True

    tree.apply_changes(remove_edge(b"f", FILE_ID, 2))

    assert names_in(tree.root) == [b"f"]


def test_removal_elsewhere_does_not_take_a_directory_with_something_uncommitted_below() -> None:
    tree = make_tree()
    tree.apply_tree([page(edge(b"d", DIRECTORY_ID, kind=DIRECTORY))])
    node = Node(tree, FILE_ID, FILE)
    tree.add(tree.nodes[DIRECTORY_ID], b"f", node)
    tree.note_pending(node).place = True

    tree.apply_changes(remove_edge(b"d", DIRECTORY_ID, 2))

    assert names_in(tree.root) == [b"d"]


def test_file_made_here_keeps_its_name_against_one_made_elsewhere() -> None:
    tree = make_tree()
    tree.apply_tree([page()])
    here = make_here(tree, b"f", FILE_ID)

    tree.apply_changes(set_edge(edge(b"f", OTHER_ID), 2))

    assert (tree.root.children or {})[b"f"] is here


def test_directory_made_on_both_sides_takes_the_masters_id_and_keeps_its_inode() -> None:
    tree = make_tree()
    tree.apply_tree([page()])
    here = Node(tree, DIRECTORY_ID, DIRECTORY)
    tree.add(tree.root, b"d", here)
    tree.note_pending(here).place = True

    tree.apply_changes(set_edge(edge(b"d", OTHER_ID, kind=DIRECTORY), 2))

    assert (here.node_id, here.ino) == (OTHER_ID, DIRECTORY_ID)
    assert tree.nodes[OTHER_ID] is here


def test_late_news_of_a_node_removed_here_does_not_bring_it_back() -> None:
    tree = make_tree()
    tree.apply_tree([page(edge(b"f", FILE_ID))])
    node = tree.detach(tree.root, b"f")
    tree.note_answered(node.node_id, 5)
    tree.forget_if_unused(node)

    tree.apply_changes(set_edge(edge(b"f", FILE_ID, revision=4), 4))

    assert names_in(tree.root) == []


def test_news_older_than_what_is_known_does_not_turn_a_file_back() -> None:
    tree = make_tree()
    tree.apply_tree([page(edge(b"f", FILE_ID, revision=9, generation=3, size=30))])

    tree.apply_changes(set_edge(edge(b"f", FILE_ID, revision=4, generation=2, size=20), 10))

    assert (tree.nodes[FILE_ID].generation, tree.nodes[FILE_ID].size_bytes) == (3, 30)


def test_size_of_a_file_being_written_here_stays_while_its_generation_follows() -> None:
    tree = make_tree()
    tree.apply_tree([page(edge(b"f", FILE_ID))])
    node = tree.nodes[FILE_ID]
    tree.note_pending(node).content = True
    node.set_size(100)

    tree.apply_changes(set_edge(edge(b"f", FILE_ID, revision=2, generation=2, size=50), 2))

    assert (node.size_bytes, node.generation) == (100, 2)


def test_listing_again_drops_what_is_gone_and_keeps_what_is_pending() -> None:
    tree = make_tree()
    tree.apply_tree([page(edge(b"gone", FILE_ID), edge(b"stays", OTHER_ID))])
    make_here(tree, b"mine", DIRECTORY_ID)

    tree.apply_tree([page(edge(b"stays", OTHER_ID), revision=7)])

    assert names_in(tree.root) == [b"mine", b"stays"]
    assert tree.revision == 7


def test_listing_that_began_before_an_acknowledgement_does_not_take_the_file_away() -> None:
    tree = make_tree()
    tree.apply_tree([page()])
    node = make_here(tree, b"mine", FILE_ID)
    tree.forget_pending(node)
    node.take_server_state(edge(b"mine", FILE_ID, revision=9).node)

    tree.apply_tree([page(revision=8)])

    assert (tree.root.children or {})[b"mine"] is node


def test_listing_that_began_before_a_removal_does_not_bring_the_file_back() -> None:
    tree = make_tree()
    tree.apply_tree([page(edge(b"f", FILE_ID))])
    node = tree.detach(tree.root, b"f")
    tree.note_answered(FILE_ID, 9)
    tree.forget_if_unused(node)

    tree.apply_tree([page(edge(b"f", FILE_ID), revision=8)])

    assert names_in(tree.root) == []


def test_moved_directory_takes_what_is_below_with_it() -> None:
    tree = make_tree()
    tree.apply_tree(
        [page(edge(b"a", DIRECTORY_ID, kind=DIRECTORY), edge(b"f", FILE_ID, parent=DIRECTORY_ID))]
    )

    # The new name comes first, so that the directory is never without one.
    tree.apply_changes(set_edge(edge(b"b", DIRECTORY_ID, kind=DIRECTORY, revision=2), 2))
    tree.apply_changes(remove_edge(b"a", DIRECTORY_ID, 3))

    assert names_in(tree.root) == [b"b"]
    assert tree.path_of(tree.nodes[FILE_ID]) == b"b/f"


def test_link_counts_follow_names_and_subdirectories() -> None:
    tree = make_tree()
    tree.apply_tree(
        [
            page(
                edge(b"d", DIRECTORY_ID, kind=DIRECTORY),
                edge(b"f", FILE_ID),
                edge(b"again", FILE_ID),
            )
        ]
    )

    assert tree.root.link_count == 3
    assert tree.nodes[FILE_ID].link_count == 2
    tree.detach(tree.root, b"d")
    assert tree.root.link_count == 2


def test_sealing_is_final_and_told() -> None:
    tree = make_tree()
    tree.apply_tree([page(edge(b"f", FILE_ID))])
    tree.nodes[FILE_ID].lookup_count = 1
    sealed = names.Change(revision=2, run_changed=types.Run(sealed=True, exit_status=3))

    told = tree.apply_changes(names.WatchResponse(changes=[sealed], revision=2))

    assert (tree.is_sealed, tree.exit_status) == (True, 3)
    assert Invalidation(FILE_ID) in told


def test_taken_name_is_refused() -> None:
    tree = make_tree()
    make_here(tree, b"f", FILE_ID)

    with pytest.raises(AlreadyExists):
        tree.add(tree.root, b"f", Node(tree, OTHER_ID, FILE))


def test_path_past_the_limit_is_refused_before_it_is_made() -> None:
    tree = make_tree()
    directory = tree.root
    for level in range(255):
        child = Node(tree, NODE_ID_MIN + 10 + level, DIRECTORY)
        tree.add(directory, b"d", child)
        directory = child

    tree.check_place(directory, b"f")
    with pytest.raises(NameTooLong):
        tree.check_place(directory, b"f" * 4000)


def test_node_in_use_by_the_kernel_is_kept_until_it_is_forgotten() -> None:
    tree = make_tree()
    tree.apply_tree([page(edge(b"f", FILE_ID))])
    node = tree.nodes[FILE_ID]
    node.lookup_count = 1

    tree.apply_changes(remove_edge(b"f", FILE_ID, 2))
    assert FILE_ID in tree.nodes
    node.lookup_count = 0
    assert tree.forget_if_unused(node)
    assert FILE_ID not in tree.nodes
