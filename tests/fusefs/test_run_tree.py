"""News from the master over what is pending here: who wins, and what the kernel is told."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai_fusefs.kernel_attributes import KernelAttributes
from cloudai_fusefs.kernel_notifier import KernelNotifier
from cloudai_fusefs.listing import ARRANGED_IN_A_STEP, Listing
from cloudai_fusefs.managed_tree import ManagedTree
from cloudai_fusefs.node import DIRECTORY, FILE, SYMLINK, Node
from cloudai_fusefs.run_nodes import Invalidation
from cloudai_fusefs.run_tree import NAMES_IN_A_STEP, RunTree
from cloudai_fusefs.waiting_removals import Removal
from cloudai_model.errors import AlreadyExists, NameTooLong
from cloudai_model.limits import NODE_ID_MIN
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.listings import apply_tree

ROOT_ID = NODE_ID_MIN
FILE_ID = NODE_ID_MIN + 1
OTHER_ID = NODE_ID_MIN + 2
DIRECTORY_ID = NODE_ID_MIN + 3


def make_tree(managed: ManagedTree | None = None) -> RunTree:
    run = types.Run(user="user-123", task="training", name="2026-11-20_15-04-05", task_id="t")
    run.root_node_id = ROOT_ID
    managed = managed or ManagedTree()
    return RunTree(run, managed.register, managed.forget_inode)


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


def change_node(node: types.Node) -> names.WatchResponse:
    return names.WatchResponse(
        changes=[names.Change(revision=node.revision, node_changed=node)], revision=node.revision
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

    apply_tree(
        tree,
        [page(edge(b"d", DIRECTORY_ID, kind=DIRECTORY), edge(b"f", FILE_ID, parent=DIRECTORY_ID, size=7))],
    )

    assert names_in(tree.root) == [b"d"]
    assert tree.path_of(tree.nodes[FILE_ID]) == b"d/f"
    assert tree.nodes[FILE_ID].size_bytes == 7


def test_name_that_appears_elsewhere_appears_here_and_the_kernel_is_told() -> None:
    tree = make_tree()
    apply_tree(tree, [page()])

    told = tree.apply_changes(set_edge(edge(b"new", FILE_ID), 2))

    assert names_in(tree.root) == [b"new"]
    assert Invalidation(ROOT_ID, b"new") in told
    assert tree.revision == 2


def test_change_applied_twice_changes_nothing_more() -> None:
    tree = make_tree()
    apply_tree(tree, [page()])
    tree.apply_changes(set_edge(edge(b"new", FILE_ID), 2))

    assert tree.apply_changes(set_edge(edge(b"new", FILE_ID), 2)) == []
    assert names_in(tree.root) == [b"new"]


def test_removal_elsewhere_removes_here() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])

    told = tree.apply_changes(remove_edge(b"f", FILE_ID, 2))

    assert names_in(tree.root) == []
    assert Invalidation(ROOT_ID, b"f", FILE_ID) in told
    assert FILE_ID not in tree.nodes


def test_removal_of_another_node_of_that_name_is_ignored() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])

    tree.apply_changes(remove_edge(b"f", OTHER_ID, 2))

    assert names_in(tree.root) == [b"f"]


def test_removal_elsewhere_does_not_take_a_file_with_uncommitted_content() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    tree.note_pending(tree.nodes[FILE_ID]).content = True

    tree.apply_changes(remove_edge(b"f", FILE_ID, 2))

    assert names_in(tree.root) == [b"f"]


def test_removal_elsewhere_does_not_take_a_directory_with_something_uncommitted_below() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"d", DIRECTORY_ID, kind=DIRECTORY))])
    node = Node(tree, FILE_ID, FILE)
    tree.add(tree.nodes[DIRECTORY_ID], b"f", node)
    tree.note_pending(node).place = True

    tree.apply_changes(remove_edge(b"d", DIRECTORY_ID, 2))

    assert names_in(tree.root) == [b"d"]


def test_file_made_here_keeps_its_name_against_one_made_elsewhere() -> None:
    tree = make_tree()
    apply_tree(tree, [page()])
    here = make_here(tree, b"f", FILE_ID)

    tree.apply_changes(set_edge(edge(b"f", OTHER_ID), 2))

    assert (tree.root.children or {})[b"f"] is here


def test_directory_made_on_both_sides_takes_the_masters_id_and_keeps_its_inode() -> None:
    tree = make_tree()
    apply_tree(tree, [page()])
    here = Node(tree, DIRECTORY_ID, DIRECTORY)
    tree.add(tree.root, b"d", here)
    tree.note_pending(here).place = True

    tree.apply_changes(set_edge(edge(b"d", OTHER_ID, kind=DIRECTORY), 2))

    assert (here.node_id, here.ino) == (OTHER_ID, DIRECTORY_ID)
    assert tree.nodes[OTHER_ID] is here


def test_directory_that_gave_its_id_to_another_keeps_its_number_from_who_has_the_id_later() -> None:
    managed = ManagedTree()
    tree = make_tree(managed)
    apply_tree(tree, [page(edge(b"given", DIRECTORY_ID, kind=DIRECTORY))])
    given = tree.nodes[DIRECTORY_ID]
    given.lookup_count = 1  # open until the end
    taker = Node(tree, OTHER_ID, DIRECTORY)
    tree.add(tree.root, b"taker", taker)
    tree.note_pending(taker).place = True
    tree.apply_changes(set_edge(edge(b"taker", DIRECTORY_ID, kind=DIRECTORY), 2))  # moved over ours elsewhere
    assert taker.node_id == DIRECTORY_ID
    tree.forget_pending(taker)
    tree.apply_changes(remove_edge(b"taker", DIRECTORY_ID, 3))

    tree.apply_changes(set_edge(edge(b"again", DIRECTORY_ID, kind=DIRECTORY), 4))

    again = tree.nodes[DIRECTORY_ID]
    assert again is not given
    assert managed.inodes[given.ino] is given
    assert managed.inodes[again.ino] is again


def test_directory_whose_own_time_is_to_be_committed_stays_for_what_is_made_in_it() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"d", DIRECTORY_ID, kind=DIRECTORY))])
    directory = tree.nodes[DIRECTORY_ID]
    mine = Node(tree, FILE_ID, FILE)
    tree.add(directory, b"mine", mine)
    tree.note_pending(mine).place = True
    tree.note_pending(directory)  # its new time

    tree.apply_changes(remove_edge(b"d", DIRECTORY_ID, 2))

    assert tree.path_of(mine) == b"d/mine"


def test_file_put_elsewhere_in_the_place_of_a_directory_takes_no_path_from_what_is_staged_in_it() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"d", DIRECTORY_ID, kind=DIRECTORY))])
    mine = Node(tree, FILE_ID, FILE)
    tree.add(tree.nodes[DIRECTORY_ID], b"mine", mine)
    pending = tree.note_pending(mine)
    pending.place = pending.sent = True

    tree.apply_changes(set_edge(edge(b"d", OTHER_ID), 2))

    assert tree.path_of(mine) == b"d/mine"
    assert tree.is_in_doubt  # until it is refused, or the other is gone


def test_directory_that_comes_back_is_another_inode_than_the_one_the_kernel_takes_for_removed() -> None:
    managed = ManagedTree()
    tree = make_tree(managed)
    apply_tree(tree, [page(edge(b"d", DIRECTORY_ID, kind=DIRECTORY))])
    directory = tree.nodes[DIRECTORY_ID]
    number = directory.ino
    directory.lookup_count = 3

    told = tree.apply_changes(remove_edge(b"d", DIRECTORY_ID, 2))

    assert Invalidation(tree.root.ino, b"d", number) in told
    left = managed.inodes[number]
    assert isinstance(left, Node)
    assert (left.lookup_count, left.link_count, left.node_id) == (3, 0, DIRECTORY_ID)

    tree.apply_changes(set_edge(edge(b"d", DIRECTORY_ID, kind=DIRECTORY), 3))

    again = tree.nodes[DIRECTORY_ID]
    assert again.ino != number
    assert managed.inodes[again.ino] is again
    left.lookup_count = 0
    tree.forget_if_unused(left)
    assert number not in managed.inodes
    assert tree.nodes[DIRECTORY_ID] is again


def test_directory_that_is_made_anew_keeps_what_is_to_be_committed_below_it() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"d", DIRECTORY_ID, kind=DIRECTORY))])
    directory = tree.nodes[DIRECTORY_ID]
    mine = Node(tree, FILE_ID, FILE)
    tree.add(directory, b"mine", mine)
    tree.note_pending(mine).place = True

    tree.apply_changes(remove_edge(b"d", DIRECTORY_ID, 2))
    # By a commit of another file in it, which found no directory at the master.
    tree.apply_changes(set_edge(edge(b"d", OTHER_ID, kind=DIRECTORY, revision=3), 3))

    assert tree.path_of(mine) == b"d/mine"
    assert tree.nodes[OTHER_ID] is directory


def test_directory_that_is_replaced_takes_what_was_below_it_along() -> None:
    tree = make_tree()
    apply_tree(
        tree, [page(edge(b"d", DIRECTORY_ID, kind=DIRECTORY), edge(b"f", FILE_ID, parent=DIRECTORY_ID))]
    )
    opened = tree.nodes[FILE_ID]
    opened.open_count = 1

    apply_tree(tree, [page(edge(b"d", OTHER_ID, kind=DIRECTORY, revision=2), revision=2)])

    assert not opened.is_attached
    assert names_in(tree.nodes[OTHER_ID]) == []


def test_directory_moved_over_another_elsewhere_takes_in_what_is_to_be_committed_there() -> None:
    tree = make_tree()
    apply_tree(
        tree,
        [
            page(
                edge(b"d", DIRECTORY_ID, kind=DIRECTORY),
                edge(b"moved", OTHER_ID, kind=DIRECTORY),
                edge(b"theirs", FILE_ID, parent=OTHER_ID),
                edge(b"both", FILE_ID + 10, parent=OTHER_ID),
            )
        ],
    )
    directory = tree.nodes[DIRECTORY_ID]
    mine, both = Node(tree, FILE_ID + 20, FILE), Node(tree, FILE_ID + 21, FILE)
    for name, node in ((b"mine", mine), (b"both", both)):
        tree.add(directory, name, node)
        tree.note_pending(node).place = True

    tree.apply_changes(set_edge(edge(b"d", OTHER_ID, kind=DIRECTORY, revision=2), 2))
    tree.apply_changes(remove_edge(b"moved", OTHER_ID, 2))

    assert names_in(tree.root) == [b"d"]
    assert tree.path_of(mine) == b"d/mine"
    assert tree.path_of(both) == b"d/both"
    assert tree.path_of(tree.nodes[FILE_ID]) == b"d/theirs"


def test_answer_for_a_directory_that_is_gone_by_now_changes_nothing() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"d", DIRECTORY_ID, kind=DIRECTORY))])
    directory = tree.nodes[DIRECTORY_ID]
    tree.apply_changes(remove_edge(b"d", DIRECTORY_ID, 2))

    tree.take_node_id(directory, OTHER_ID)

    assert OTHER_ID not in tree.nodes


def test_late_news_of_a_node_removed_here_does_not_bring_it_back() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    node = tree.detach(tree.root, b"f")
    tree.answered.note_place((ROOT_ID, b"f"), 5)
    tree.forget_if_unused(node)

    tree.apply_changes(set_edge(edge(b"f", FILE_ID, revision=4), 4))

    assert names_in(tree.root) == []


def test_late_news_of_another_file_of_that_name_does_not_outdo_an_answer() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    tree.answered.note_place((ROOT_ID, b"f"), 5)

    tree.apply_changes(set_edge(edge(b"f", OTHER_ID, revision=4), 4))
    assert tree.root.children == {b"f": tree.nodes[FILE_ID]}

    tree.apply_changes(set_edge(edge(b"f", OTHER_ID, revision=6), 6))
    assert tree.root.children == {b"f": tree.nodes[OTHER_ID]}
    assert not tree.answered


def test_late_news_of_a_further_name_is_shown_although_an_answer_has_told_of_the_first() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    tree.answered.note_place((ROOT_ID, b"f"), 5)
    tree.answered.note_touched(FILE_ID, 5)

    tree.apply_changes(set_edge(edge(b"link", FILE_ID, revision=4), 4))

    assert names_in(tree.root) == [b"f", b"link"]


def test_late_news_of_a_node_removed_everywhere_is_history_under_any_name() -> None:
    tree = make_tree()
    apply_tree(tree, [page()])
    tree.answered.note_removed(FILE_ID, 5)

    tree.apply_changes(set_edge(edge(b"f", FILE_ID, revision=4), 4))

    assert names_in(tree.root) == []


NEWS_AFTER_A_COMMIT = {
    "replaced": ([set_edge(edge(b"f", OTHER_ID, revision=6), 6)], {b"f": OTHER_ID}),
    "renamed": (
        [set_edge(edge(b"g", FILE_ID, revision=6), 6), remove_edge(b"f", FILE_ID, 7)],
        {b"g": FILE_ID},
    ),
    "removed": ([remove_edge(b"f", FILE_ID, 6)], {}),
    "replaced, and that removed": (
        [set_edge(edge(b"f", OTHER_ID, revision=6), 6), remove_edge(b"f", OTHER_ID, 7)],
        {},
    ),
    "replaced, and renamed back": (
        [set_edge(edge(b"f", OTHER_ID, revision=6), 6), set_edge(edge(b"f", FILE_ID, revision=7), 7)],
        {b"f": FILE_ID},
    ),
    "replaced before": ([set_edge(edge(b"f", OTHER_ID, revision=4), 4)], {b"f": FILE_ID}),
}


@pytest.mark.parametrize(("news", "shown"), NEWS_AFTER_A_COMMIT.values(), ids=NEWS_AFTER_A_COMMIT.keys())
def test_news_that_come_before_the_answer_to_a_commit_count_if_they_are_newer(
    news: list[names.WatchResponse], shown: dict[bytes, int]
) -> None:
    tree = make_tree()
    apply_tree(tree, [page()])
    node = make_here(tree, b"f", FILE_ID)
    pending = node.pending
    assert pending is not None
    for response in news:
        tree.apply_changes(response)
    assert names_in(tree.root) == [b"f"]

    pending.place = False
    tree.forget_pending(node)
    tree.take_held_news(node, pending, 5)

    assert {name: child.node_id for name, child in (tree.root.children or {}).items()} == shown


def test_attributes_given_elsewhere_after_a_commit_are_shown_once_it_is_answered() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    node = tree.nodes[FILE_ID]
    node.mode = 0o600
    pending = tree.note_pending(node)
    changed = edge(b"f", FILE_ID, revision=6).node
    changed.attributes.mode = 0o640

    tree.apply_changes(change_node(changed))
    assert node.mode == 0o600
    tree.forget_pending(node)
    tree.take_held_news(node, pending, 5)

    assert node.mode == 0o640


def test_news_older_than_what_is_known_does_not_turn_a_file_back() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID, revision=9, generation=3, size=30))])

    tree.apply_changes(set_edge(edge(b"f", FILE_ID, revision=4, generation=2, size=20), 10))

    assert (tree.nodes[FILE_ID].generation, tree.nodes[FILE_ID].size_bytes) == (3, 30)


def test_late_news_of_a_node_renamed_here_does_not_turn_its_change_time_back() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"file", FILE_ID))])
    node = tree.nodes[FILE_ID]
    tree.answered.note_touched(FILE_ID, 7)
    node.note_change(2000)
    changed = types.Node(node_id=FILE_ID, kind=FILE, generation=1, revision=5)
    changed.attributes.CopyFrom(types.Attributes(mode=0o600, ctime_ns=1000))

    tree.apply_changes(
        names.WatchResponse(changes=[names.Change(revision=5, node_changed=changed)], revision=5)
    )

    assert (node.mode, node.ctime_ns) == (0o600, 2000)


def test_late_news_of_a_file_that_is_only_open_does_not_turn_its_times_back() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"file", FILE_ID))])
    node = tree.nodes[FILE_ID]
    node.open_count = 1
    tree.detach(tree.root, b"file")
    node.touch()
    written = node.attributes
    changed = edge(b"file", FILE_ID).node

    tree.apply_changes(
        names.WatchResponse(changes=[names.Change(revision=1, node_changed=changed)], revision=1)
    )

    assert node.attributes == written


def test_file_that_was_only_open_and_gets_a_name_elsewhere_is_shown_as_it_is_there() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"file", FILE_ID))])
    node = tree.nodes[FILE_ID]
    node.open_count = 1
    tree.detach(tree.root, b"file")
    node.mode = 0o600

    tree.apply_changes(set_edge(edge(b"linked", FILE_ID, revision=3), 3))

    assert node.mode == 0o644


def test_size_of_a_file_being_written_here_stays_while_its_generation_follows() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    node = tree.nodes[FILE_ID]
    tree.note_pending(node).content = True
    node.set_size(100)

    tree.apply_changes(set_edge(edge(b"f", FILE_ID, revision=2, generation=2, size=50), 2))

    assert (node.size_bytes, node.generation) == (100, 2)


def test_listing_again_drops_what_is_gone_and_keeps_what_is_pending() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"gone", FILE_ID), edge(b"stays", OTHER_ID))])
    make_here(tree, b"mine", DIRECTORY_ID)

    apply_tree(tree, [page(edge(b"stays", OTHER_ID), revision=7)])

    assert names_in(tree.root) == [b"mine", b"stays"]
    assert tree.revision == 7


def test_listing_that_began_before_an_acknowledgement_does_not_take_the_file_away() -> None:
    tree = make_tree()
    apply_tree(tree, [page()])
    node = make_here(tree, b"mine", FILE_ID)
    tree.forget_pending(node)
    node.take_server_state(edge(b"mine", FILE_ID, revision=9).node)

    apply_tree(tree, [page(revision=8)])

    assert (tree.root.children or {})[b"mine"] is node


def test_listing_that_began_before_a_removal_does_not_bring_the_file_back() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    node = tree.detach(tree.root, b"f")
    tree.answered.note_place((ROOT_ID, b"f"), 9)
    tree.forget_if_unused(node)

    apply_tree(tree, [page(edge(b"f", FILE_ID), revision=8)])

    assert names_in(tree.root) == []


def test_moved_directory_takes_what_is_below_with_it() -> None:
    tree = make_tree()
    apply_tree(
        tree, [page(edge(b"a", DIRECTORY_ID, kind=DIRECTORY), edge(b"f", FILE_ID, parent=DIRECTORY_ID))]
    )

    # The new name comes first, so that the directory is never without one.
    tree.apply_changes(set_edge(edge(b"b", DIRECTORY_ID, kind=DIRECTORY, revision=2), 2))
    tree.apply_changes(remove_edge(b"a", DIRECTORY_ID, 3))

    assert names_in(tree.root) == [b"b"]
    assert tree.path_of(tree.nodes[FILE_ID]) == b"b/f"


def test_link_counts_follow_names_and_subdirectories() -> None:
    tree = make_tree()
    apply_tree(
        tree,
        [
            page(
                edge(b"d", DIRECTORY_ID, kind=DIRECTORY),
                edge(b"f", FILE_ID),
                edge(b"again", FILE_ID),
            )
        ],
    )

    assert tree.root.link_count == 3
    assert tree.nodes[FILE_ID].link_count == 2
    tree.detach(tree.root, b"d")
    assert tree.root.link_count == 2


def test_sealing_is_final_and_told() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    tree.nodes[FILE_ID].lookup_count = 1
    sealed = names.Change(revision=2, run_changed=types.Run(sealed=True, exit_status=3))

    told = tree.apply_changes(names.WatchResponse(changes=[sealed], revision=2))

    assert (tree.is_sealed, tree.exit_status) == (True, 3)
    assert Invalidation(FILE_ID) in told


def test_growth_is_shown_when_the_pages_of_each_are_dropped() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID, size=10))])
    node = tree.nodes[FILE_ID]
    node.lookup_count = 1
    for revision in (2, 3):
        grown = edge(b"f", FILE_ID, size=10 * revision, revision=revision, generation=revision)
        assert tree.apply_changes(set_edge(grown, revision)) == [Invalidation(FILE_ID, grown=node)]
        assert (node.size_bytes, node.kernel_size_bytes) == (10 * revision, 10)
    node.show_growth()
    assert node.kernel_size_bytes == 10
    node.show_growth()
    assert node.kernel_size_bytes == 30


def test_what_the_kernel_does_not_know_or_what_shrank_is_shown_at_once() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID, size=10))])
    node = tree.nodes[FILE_ID]
    tree.apply_changes(set_edge(edge(b"f", FILE_ID, size=20, revision=2, generation=2), 2))
    assert node.kernel_size_bytes == 20
    node.lookup_count = 1
    told = tree.apply_changes(set_edge(edge(b"f", FILE_ID, size=5, revision=3, generation=3), 3))
    assert (told, node.kernel_size_bytes) == ([Invalidation(FILE_ID)], 5)


def test_size_that_is_set_here_is_shown_at_once() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID, size=10))])
    node = tree.nodes[FILE_ID]
    node.hide_growth(5)
    node.set_size(40)
    assert node.kernel_size_bytes == 40


def test_notifier_that_does_not_run_shows_growth_at_once() -> None:
    node = make_tree().root
    node.set_size(10)
    node.hide_growth(5)
    KernelNotifier().tell([Invalidation(node.ino, grown=node)])
    assert node.kernel_size_bytes == 10


def test_growths_that_are_told_at_once_are_shown_at_the_last_of_them() -> None:
    node = make_tree().root
    node.set_size(10)
    node.hide_growth(5)
    node.hide_growth(7)
    KernelNotifier().tell([Invalidation(node.ino, grown=node)] * 2)
    assert node.kernel_size_bytes == 10


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
        tree.check_place(directory, b"f" * 8000)


def test_node_in_use_by_the_kernel_is_kept_until_it_is_forgotten() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    node = tree.nodes[FILE_ID]
    node.lookup_count = 1

    tree.apply_changes(remove_edge(b"f", FILE_ID, 2))
    assert FILE_ID in tree.nodes
    node.lookup_count = 0
    assert tree.forget_if_unused(node)
    assert FILE_ID not in tree.nodes


def test_names_that_appear_in_a_run_that_was_listed_empty_are_told() -> None:
    tree = make_tree()
    apply_tree(tree, [page()])

    told = apply_tree(tree, [page(edge(b"f", FILE_ID), revision=2)])

    assert Invalidation(ROOT_ID, b"f") in told
    assert names_in(tree.root) == [b"f"]


def test_first_listing_keeps_what_was_removed_here_meanwhile_removed() -> None:
    tree = make_tree()
    tree.answered.note_place((ROOT_ID, b"f"), 9)

    apply_tree(tree, [page(edge(b"f", FILE_ID), revision=8)])

    assert names_in(tree.root) == []


def test_first_listing_keeps_what_was_made_here_before_it() -> None:
    tree = make_tree()
    here = make_here(tree, b"f", FILE_ID)

    apply_tree(tree, [page(edge(b"f", OTHER_ID), edge(b"g", DIRECTORY_ID))])

    assert (tree.root.children or {})[b"f"] is here
    assert names_in(tree.root) == [b"f", b"g"]


def test_file_of_two_names_is_listed_as_its_newest() -> None:
    # The pages of a listing are not of one moment.
    tree = make_tree()
    apply_tree(
        tree,
        [
            page(edge(b"a", FILE_ID, revision=3, size=10), revision=4),
            page(edge(b"b", FILE_ID, revision=9, size=20, generation=2), revision=4),
        ],
    )
    node = tree.nodes[FILE_ID]
    assert (node.size_bytes, node.generation, node.revision, node.link_count) == (20, 2, 9, 2)


@st.composite
def listings(draw: st.DrawFn) -> list[names.ListTreeResponse]:
    """Pages of any tree: files of several names whose states differ from page to page, and edges whose parent is
    missing, or no directory, or comes later.
    """
    node_ids = [NODE_ID_MIN + 1 + number for number in range(draw(st.integers(0, 15)))]
    kinds = {node_id: draw(st.sampled_from([DIRECTORY, FILE, FILE, SYMLINK])) for node_id in node_ids}
    directories = [ROOT_ID, *(node_id for node_id in node_ids if kinds[node_id] == DIRECTORY)]
    edges: list[types.Edge] = []
    taken: set[tuple[int, bytes]] = set()

    def add(parent: int, node_id: int) -> None:
        name = draw(st.sampled_from([b"a", b"b", b"c", b"d", b"\xff"]))
        if (parent, name) in taken:
            return
        taken.add((parent, name))
        item = edge(
            name,
            node_id,
            parent=parent,
            kind=kinds[node_id],
            revision=draw(st.integers(1, 5)),
            size=draw(st.integers(0, 9)),
            generation=draw(st.integers(1, 3)),
        )
        item.node.digest = draw(st.sampled_from([b"", bytes(32)]))
        item.node.symlink_target = b"target" if kinds[node_id] == SYMLINK else b""
        item.node.attributes.uid = draw(st.integers(0, 2))
        item.node.attributes.mtime_ns = draw(st.integers(0, 2))
        edges.append(item)

    for number, node_id in enumerate(node_ids):
        # A directory has one name and is below one that was made before it.
        older = [parent for parent in directories if parent < node_id] if number else [ROOT_ID]
        if kinds[node_id] == DIRECTORY:
            add(draw(st.sampled_from(older)), node_id)
        else:
            for _ in range(draw(st.integers(1, 3))):
                # In any directory, one that nobody lists, or what is none.
                add(draw(st.sampled_from([*directories, NODE_ID_MIN + 99, *node_ids])), node_id)
    if draw(st.booleans()):
        edges = draw(st.permutations(edges))
    cut = draw(st.integers(0, len(edges)))
    revision = draw(st.integers(1, 9))
    pages = [page(*edges[:cut], revision=revision), page(*edges[cut:], revision=revision)]
    pages[0].root.attributes.uid = draw(st.integers(0, 2))
    for each in pages:
        each.sealed = draw(st.booleans())
    return pages[: draw(st.integers(1, 2))]


def state_of(tree: RunTree) -> object:
    """All that a tree shows and knows."""

    def node_state(node: Node) -> object:
        return (
            node.kind,
            node.attributes if node is not tree.root or tree.revision else None,
            (node.size_bytes, node.published_size_bytes, node.generation, node.revision),
            (node.digest, node.symlink_target, node.link_count, node.kernel_attributes),
            sorted((parent.node_id, name) for parent, name in node.edges),
            sorted((name, child.node_id) for name, child in (node.children or {}).items()),
        )

    return (
        {node_id: node_state(node) for node_id, node in tree.nodes.items()},
        (tree.revision, tree.is_loaded, tree.is_sealed),
    )


@settings(max_examples=300, deadline=None)
@given(pages=listings())
def test_first_listing_gives_what_any_other_gives(pages: list[names.ListTreeResponse]) -> None:
    registered: list[list[int]] = [[], []]
    run = types.Run(user="user-123", task="training", name="2026-11-20_15-04-05", task_id="t")
    run.root_node_id = ROOT_ID
    run.created_at_ns = 1
    first, other = (
        RunTree(run, lambda node, ids=ids: ids.append(node.node_id), lambda node: None)  # type: ignore[misc]
        for ids in registered
    )
    other.answered.note_removed(NODE_ID_MIN + 1000, 0)  # something is known of it: no first listing

    apply_tree(first, pages)
    apply_tree(other, pages)

    assert state_of(first) == state_of(other)
    assert registered[0] == registered[1]
    for node in first.nodes.values():
        assert node is first.root or first.path_of(node) is not None


# --- removals that wait for the master -------------------------------------------------------------------


class History(NamedTuple):
    """What happened at the master: its news in their order, what it answered to the removal of `f`, and when."""

    news: list[names.WatchResponse]
    revision: int
    kept: types.Node | None
    shown: list[bytes]


KEPT = edge(b"f", FILE_ID, revision=2, generation=2).node
GONE = remove_edge(b"f", FILE_ID, 5)

HISTORIES = {
    "removed": History([GONE], 5, None, []),
    "removed, and back by a later change": History(
        [GONE, set_edge(edge(b"f", FILE_ID, revision=6), 6)], 5, None, [b"f"]
    ),
    "removed, back, and removed again": History(
        [GONE, set_edge(edge(b"f", FILE_ID, revision=6), 6), remove_edge(b"f", FILE_ID, 7)], 5, None, []
    ),
    "removed, and the name taken by another": History(
        [GONE, set_edge(edge(b"f", OTHER_ID, revision=6), 6)], 5, None, [b"f"]
    ),
    "removed, and back under another name": History(
        [GONE, set_edge(edge(b"g", FILE_ID, revision=6), 6)], 5, None, [b"g"]
    ),
    "renamed before": History(
        [set_edge(edge(b"g", FILE_ID, revision=3), 3), remove_edge(b"f", FILE_ID, 4)], 5, None, [b"g"]
    ),
    "linked before": History([set_edge(edge(b"g", FILE_ID, revision=3), 3), GONE], 5, None, [b"g"]),
    "renamed before, and back after": History(
        [
            set_edge(edge(b"g", FILE_ID, revision=3), 3),
            remove_edge(b"f", FILE_ID, 4),
            set_edge(edge(b"f", FILE_ID, revision=6), 6),
            remove_edge(b"g", FILE_ID, 7),
        ],
        5,
        None,
        [b"f"],
    ),
    "replaced before": History([set_edge(edge(b"f", OTHER_ID, revision=3), 3)], 5, None, [b"f"]),
    "changed before": History([change_node(KEPT)], 5, KEPT, [b"f"]),
    "changed before, and removed after": History(
        [change_node(KEPT), remove_edge(b"f", FILE_ID, 6)], 5, KEPT, []
    ),
    "changed before, and replaced after": History(
        [change_node(KEPT), set_edge(edge(b"f", OTHER_ID, revision=6), 6)], 5, KEPT, [b"f"]
    ),
    "changed before, and renamed after": History(
        [
            change_node(KEPT),
            set_edge(edge(b"g", FILE_ID, revision=6, generation=2), 6),
            remove_edge(b"f", FILE_ID, 7),
        ],
        5,
        KEPT,
        [b"g"],
    ),
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
def test_answer_and_news_of_a_removed_name_come_to_the_same_in_any_order(history: History) -> None:
    for position in range(len(history.news) + 1):
        tree = make_tree()
        apply_tree(tree, [page(edge(b"f", FILE_ID))])
        removal = Removal(tree.root, b"f", tree.nodes[FILE_ID], removed_at_ns=77)
        tree.begin_removal(removal)

        for news in history.news[:position]:
            tree.apply_changes(news)
        tree.answer_removal(removal, history.revision, history.kept)
        for news in history.news[position:]:
            tree.apply_changes(news)

        assert names_in(tree.root) == history.shown, f"the answer came after {position} of the news"
        last = [news.changes[0] for news in history.news]
        replaced = any(change.edge_set.node.node_id == OTHER_ID for change in last)
        for node in (tree.root.children or {}).values():
            assert node.node_id == (OTHER_ID if replaced else FILE_ID)
            assert node.generation == (2 if history.kept and not replaced else 1)
        assert not tree.answered or history.news[-1].revision < history.revision
        assert (FILE_ID in tree.nodes) == (bool(history.shown) and not replaced)


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
def test_refused_removal_shows_what_the_news_have_told(history: History) -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    removal = Removal(tree.root, b"f", tree.nodes[FILE_ID], removed_at_ns=77)
    tree.begin_removal(removal)
    for news in history.news:
        tree.apply_changes(news)

    tree.take_back_removal(removal)

    assert names_in(tree.root) == history.shown


def test_listing_outdoes_an_older_answer_and_no_newer_one() -> None:
    for listed_at, shown in ((4, []), (6, [b"f"])):
        tree = make_tree()
        apply_tree(tree, [page(edge(b"f", FILE_ID))])
        removal = Removal(tree.root, b"f", tree.nodes[FILE_ID], removed_at_ns=77)
        tree.begin_removal(removal)
        tree.answer_removal(removal, 5, None)

        apply_tree(tree, [page(edge(b"f", FILE_ID, revision=listed_at), revision=listed_at)])

        assert names_in(tree.root) == shown


def test_name_that_a_listing_lacks_is_not_shown_by_an_older_answer() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    removal = Removal(tree.root, b"f", tree.nodes[FILE_ID], removed_at_ns=77)
    tree.begin_removal(removal)
    apply_tree(tree, [page(revision=6)])

    tree.answer_removal(removal, 5, KEPT)

    assert names_in(tree.root) == []


def test_file_that_comes_back_to_a_name_made_here_is_nothing_that_was_replaced_here() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    removal = Removal(tree.root, b"f", tree.nodes[FILE_ID], removed_at_ns=77)
    tree.begin_removal(removal)
    node = make_here(tree, b"f", OTHER_ID)

    tree.answer_removal(removal, 5, KEPT)

    assert (tree.root.children or {})[b"f"] is node
    assert node.ids_at_master == ()


def test_file_that_comes_back_is_as_it_was() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID, size=7))])
    node = tree.nodes[FILE_ID]
    before = node.attributes
    removal = Removal(tree.root, b"f", node, removed_at_ns=77)
    tree.begin_removal(removal)
    assert node.link_count == 0

    told = tree.take_back_removal(removal)

    assert (tree.root.children or {})[b"f"] is node
    assert (node.attributes, node.size_bytes, node.generation) == (before, 7, 1)
    assert Invalidation(ROOT_ID, b"f") in told


def test_file_that_comes_back_is_as_somebody_has_changed_it_meanwhile() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    node = tree.nodes[FILE_ID]
    removal = Removal(tree.root, b"f", node, removed_at_ns=77)
    tree.begin_removal(removal)
    changed = types.Node(node_id=FILE_ID, kind=FILE, generation=1, revision=5)
    changed.attributes.CopyFrom(types.Attributes(mode=0o600))

    tree.apply_changes(
        names.WatchResponse(changes=[names.Change(revision=5, node_changed=changed)], revision=5)
    )
    tree.take_back_removal(removal)

    assert (tree.root.children or {})[b"f"] is node
    assert node.mode == 0o600


def test_answers_of_another_history_hide_nothing() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    removal = Removal(tree.root, b"f", tree.nodes[FILE_ID], removed_at_ns=77)
    tree.begin_removal(removal)
    tree.answer_removal(removal, 5, None)

    tree.forget_revisions()  # the master was restored from a backup
    apply_tree(tree, [page(edge(b"f", FILE_ID, revision=2), revision=2)])

    assert names_in(tree.root) == [b"f"]


def test_news_of_another_history_that_were_held_back_are_forgotten() -> None:
    tree = make_tree()
    apply_tree(tree, [page()])
    node = make_here(tree, b"f", FILE_ID)
    pending = node.pending
    assert pending is not None
    tree.apply_changes(set_edge(edge(b"f", OTHER_ID, revision=90), 90))

    tree.forget_revisions()
    apply_tree(tree, [page(revision=2)])
    pending.place = False
    tree.forget_pending(node)
    tree.take_held_news(node, pending, 3)

    assert tree.root.children == {b"f": node}


def test_answers_are_remembered_until_a_listing_that_holds_them() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    tree.answered.note_place((ROOT_ID, b"f"), 5)

    apply_tree(tree, [page(edge(b"f", FILE_ID), revision=4)])
    assert tree.answered

    apply_tree(tree, [page(edge(b"f", FILE_ID), revision=5)])
    assert not tree.answered


def test_news_that_one_node_left_the_name_of_a_pending_file_uncover_no_other() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID))])
    tree.forget_if_unused(tree.detach(tree.root, b"f"))
    pending = make_here(tree, b"f", OTHER_ID + 1).pending
    assert pending is not None
    pending.covered_ids = (FILE_ID, OTHER_ID)  # the second's commit is under way

    tree.apply_changes(remove_edge(b"f", FILE_ID, 2))

    assert list(pending.covered_ids) == [OTHER_ID]


def test_unknown_run_is_taken_in_steps() -> None:
    edges = [edge(b"%d" % number, OTHER_ID + 1 + number) for number in range(3 * NAMES_IN_A_STEP)]
    at_once, tree = make_tree(), make_tree()
    told = apply_tree(at_once, [page(*edges)])

    stepped: list[Invalidation] = []
    steps = tree.apply_tree(Listing([page(*edges[:100]), page(*edges[100:])]), stepped)
    for _ in range(3):
        next(steps)
        assert not tree.is_loaded
    assert list(steps) == []

    assert tree.is_loaded
    assert names_in(tree.root) == names_in(at_once.root)
    # Its attributes may have been asked for between two steps.
    assert stepped == told == [Invalidation(tree.root.ino)]


def test_run_that_is_removed_while_it_is_taken_stays_removed() -> None:
    edges = [edge(b"%d" % number, OTHER_ID + 1 + number) for number in range(2 * NAMES_IN_A_STEP)]
    tree = make_tree()
    steps = tree.apply_tree(Listing([page(*edges)]), [])
    next(steps)
    tree.forget()

    assert list(steps) == []
    assert not tree.is_loaded
    assert names_in(tree.root) == []
    assert not tree.nodes


def test_run_that_is_removed_while_its_listing_is_arranged_takes_nothing_of_it() -> None:
    edges = [edge(b"%d" % number, OTHER_ID + 1 + number) for number in range(ARRANGED_IN_A_STEP)]
    tree = make_tree()
    steps = tree.apply_tree(Listing([page(*edges)]), [])
    next(steps)
    tree.forget()

    assert list(steps) == []
    assert not tree.is_loaded
    assert not tree.root.children


def test_run_that_was_let_go_of_is_taken_in_one_step() -> None:
    """What the kernel still has of it must not be shown with some of its subdirectories."""
    edges = [
        edge(b"%d" % number, OTHER_ID + 1 + number, kind=DIRECTORY) for number in range(2 * NAMES_IN_A_STEP)
    ]
    tree = make_tree()
    apply_tree(tree, [page(*edges)])
    tree.is_sealed = tree.is_kept = True
    tree.let_go()

    assert list(tree.apply_tree(Listing([page(*edges)]), [])) == []
    assert tree.root.subdirectory_count == len(edges)


def test_kernels_attributes_are_built_once_for_each_change() -> None:
    """A listing and a stat of each of its names ask for them again and again."""
    tree = make_tree()
    apply_tree(tree, [page(edge(b"f", FILE_ID, size=1))])
    file = tree.nodes[FILE_ID]
    attributes = KernelAttributes(uid=None, gid=None, umask=None)
    first = attributes.of(file)
    assert first.st_size == 1
    assert attributes.of(file) is first

    tree.apply_changes(change_node(edge(b"f", FILE_ID, size=2, generation=2, revision=2).node))

    second = attributes.of(file)
    assert second.st_size == 2
    assert attributes.of(file) is second


def test_kernel_may_remember_that_a_name_is_absent_where_news_of_it_are_told() -> None:
    tree = make_tree()
    assert KernelAttributes.absent(tree.root) is None

    tree.watch_is_healthy = True
    absence = KernelAttributes.absent(tree.root)
    assert absence is not None
    assert (absence.st_ino, absence.entry_timeout) == (0, 0.5)

    tree.is_sealed = True
    absence = KernelAttributes.absent(tree.root)
    assert absence is not None
    assert (absence.st_ino, absence.entry_timeout) == (0, 3600.0)


def test_link_count_of_a_run_that_is_being_taken_is_shown_as_it_was_and_then_as_it_is() -> None:
    edges = [
        edge(b"%d" % number, OTHER_ID + 1 + number, kind=DIRECTORY)
        for number in range(2 * NAMES_IN_A_STEP + 1)
    ]
    tree = make_tree()
    attributes = KernelAttributes(uid=None, gid=None, umask=None)
    for _ in tree.apply_tree(Listing([page(*edges)]), []):
        assert attributes.of(tree.root).st_nlink == 2
    assert attributes.of(tree.root).st_nlink == 2 + len(edges)


def test_link_count_of_a_directory_that_takes_in_another_is_shown_as_it_is() -> None:
    """P3. A directory's link count is 2 and one for each directory in it, at every level of the tree; 0 once it is
    removed.
    """
    tree = make_tree()
    apply_tree(
        tree,
        [
            page(
                edge(b"theirs", DIRECTORY_ID, kind=DIRECTORY),
                edge(b"sub", OTHER_ID, parent=DIRECTORY_ID, kind=DIRECTORY),
            )
        ],
    )
    theirs, results = tree.nodes[DIRECTORY_ID], Node(tree, OTHER_ID + 10, DIRECTORY)
    tree.add(tree.root, b"results", results)
    tree.note_pending(results).place = True
    theirs.lookup_count = 1  # open until the end
    attributes = KernelAttributes(uid=None, gid=None, umask=None)
    assert [attributes.of(node).st_nlink for node in (tree.root, theirs, results)] == [4, 3, 2]

    tree.apply_changes(set_edge(edge(b"results", DIRECTORY_ID, kind=DIRECTORY, revision=2), 2))

    assert tree.path_of(tree.nodes[OTHER_ID]) == b"results/sub"
    assert [attributes.of(node).st_nlink for node in (tree.root, theirs, results)] == [3, 0, 3]


def test_link_count_of_what_is_open_of_a_removed_run_is_zero() -> None:
    """P3. A directory's link count is 2 and one for each directory in it, at every level of the tree; 0 once it is
    removed.
    """
    tree = make_tree()
    apply_tree(tree, [page(edge(b"d", DIRECTORY_ID, kind=DIRECTORY), edge(b"f", FILE_ID))])
    opened = [tree.root, tree.nodes[DIRECTORY_ID], tree.nodes[FILE_ID]]
    for node in opened:
        node.lookup_count = 1
    attributes = KernelAttributes(uid=None, gid=None, umask=None)
    assert [attributes.of(node).st_nlink for node in opened] == [3, 2, 1]

    tree.forget()

    assert [attributes.of(node).st_nlink for node in opened] == [0, 0, 0]


def test_link_count_of_an_empty_run_that_is_removed_is_zero() -> None:
    """P3. A directory's link count is 2 and one for each directory in it, at every level of the tree; 0 once it is
    removed.
    """
    tree = make_tree()
    apply_tree(tree, [page()])
    tree.root.lookup_count = 1
    attributes = KernelAttributes(uid=None, gid=None, umask=None)
    assert attributes.of(tree.root).st_nlink == 2

    tree.forget()

    assert attributes.of(tree.root).st_nlink == 0


def test_listing_outdoes_what_is_known_up_to_its_last_pages_revision() -> None:
    tree = make_tree()
    apply_tree(tree, [page(edge(b"gone", FILE_ID))])
    tree.apply_changes(set_edge(edge(b"gone", FILE_ID, revision=3), 3))
    first, last = page(edge(b"here", OTHER_ID)), page()
    first.revision, last.revision = 2, 5

    apply_tree(tree, [first, last])

    assert list(tree.root.children or ()) == [b"here"]
    assert tree.revision == 5
