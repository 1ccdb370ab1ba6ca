"""How much memory a name takes: what `names=` and the README promise is a KiB, with what the kernel was answered."""

from __future__ import annotations

import random
import time

import pytest

from cloudai_fusefs.node import DIRECTORY, FILE, Node
from cloudai_fusefs.run_tree import RunTree
from cloudai_proto.storage.v1 import types_pb2 as types
from support.resident_memory import numbers_printed_by

LIST_A_LARGE_RUN = """
import os, random
from cloudai_fusefs import freed_memory
from cloudai_fusefs.run_tree import RunTree
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.listings import apply_tree
from support.resident_memory import resident_bytes

FILES = 60_000
lot = random.Random(1)
pages = []
for first in range(0, FILES, 5_000):
    page = names.ListTreeResponse(revision=FILES)
    page.root.node_id, page.root.kind = 1, types.NODE_KIND_DIRECTORY
    for number in range(first, first + 5_000):
        edge = page.edges.add(parent_node_id=1, name=b"file-%06d" % number)
        written_ns = 1_764_000_000_000_000_000 + lot.randrange(10**15)
        edge.node.CopyFrom(types.Node(
            node_id=lot.getrandbits(62) + 2,
            kind=types.NODE_KIND_FILE,
            revision=300 + number // 64,
            generation=300 + number // 64,
            size_bytes=lot.randrange(1 << 20),
            digest=lot.randbytes(32),
            attributes=types.Attributes(
                mode=0o644, uid=1000, gid=1000,
                mtime_ns=written_ns, ctime_ns=written_ns, atime_ns=written_ns,
            ),
        ))
    pages.append(page.SerializeToString())

inodes = {}
run = types.Run(task_id="t", name="n", user="u", task="t", root_node_id=1, sealed=True)
tree = RunTree(run, lambda node: inodes.__setitem__(node.ino, node), lambda node: None)
before_bytes = resident_bytes()
apply_tree(tree, [names.ListTreeResponse.FromString(page) for page in pages])
kept_bytes = resident_bytes() - before_bytes
freed_memory.give_back()
print(kept_bytes // FILES, (resident_bytes() - before_bytes) // FILES)
"""


def test_name_takes_less_than_a_kib_and_its_listing_nothing_any_more() -> None:
    kept_bytes, given_back_bytes = numbers_printed_by(LIST_A_LARGE_RUN)

    assert given_back_bytes < 900  # 240 more for what `stat` is answered with are no KiB either, by and large
    assert given_back_bytes < kept_bytes - 150


def make_tree() -> RunTree:
    run = types.Run(task_id="t", name="n", user="u", task="t", root_node_id=1)
    return RunTree(run, lambda node: None, lambda node: None)


def test_names_of_a_node_are_in_the_order_in_which_it_was_given_them() -> None:
    tree = make_tree()
    file = Node(tree, 2, FILE)
    assert (file.edges, file.link_count, file.is_attached) == ((), 0, False)

    for name in (b"a", b"b", b"c"):
        file.add_edge(tree.root, name)
    file.remove_edge(tree.root, b"a")

    assert file.edges == ((tree.root, b"b"), (tree.root, b"c"))
    assert (file.link_count, file.is_attached) == (2, True)


def test_node_without_its_last_name_has_none() -> None:
    tree = make_tree()
    directory = Node(tree, 2, DIRECTORY)
    tree.add(tree.root, b"d", directory)

    directory.remove_edge(tree.root, b"d")

    assert (directory.edges, directory.is_attached) == ((), False)


def test_names_go_in_any_order_and_the_others_keep_theirs() -> None:
    tree = make_tree()
    lot = random.Random(1)
    for _ in range(200):
        file = Node(tree, 2, FILE)
        names = [b"%d" % number for number in range(lot.randrange(1, 6))]
        for name in names:
            file.add_edge(tree.root, name)
        while names:
            name = lot.choice(names)
            names.remove(name)
            file.remove_edge(tree.root, name)
            with pytest.raises(ValueError):
                file.remove_edge(tree.root, name)

            assert file.edges == tuple((tree.root, left) for left in names)
            assert (file.link_count, file.is_attached) == (len(names), bool(names))


def test_name_of_a_file_with_many_goes_without_all_the_others_being_gone_through_for_each() -> None:
    tree = make_tree()
    file = Node(tree, 2, FILE)
    for number in range(30_000):
        file.add_edge(tree.root, b"%d" % number)

    began_seconds = time.process_time()
    for number in range(20):
        file.remove_edge(tree.root, b"%d" % (29_999 - number))

    assert file.link_count == 29_980
    assert time.process_time() - began_seconds < 1  # 0.01 s; it was 2 s for each
