"""A listing of pages between which the run changes, against one at rest."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable

import pytest

from cloudai_fusefs.listing import ARRANGED_IN_A_STEP, Listing
from cloudai_master import changes, listings
from cloudai_model.errors import CloudAIError
from cloudai_model.limits import NODE_ID_MIN
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMasterClient
from support.listings import edges_of
from support.storage_requests import (
    DIRECTORY,
    FILE,
    commit_one,
    directory_commit,
    file_commit,
    link,
    list_pages,
    remove,
    rename,
    seal,
    tree_of,
)

ROOT_ID = NODE_ID_MIN


class Opponent:
    """Changes a run at random."""

    def __init__(self, client: FakeMasterClient, run: types.Run, lot: random.Random) -> None:
        self._client = client
        self._run = run
        self._lot = lot

    async def change(self) -> None:
        """Something, or nothing where the master refuses."""
        client, run, lot = self._client, self._run, self._lot
        tree = await tree_of(client, run)
        ids_by_path = {path: node.node_id for path, node in tree.items()}
        directories = [path for path, node in tree.items() if node.kind == DIRECTORY]
        path = lot.choice(list(tree))
        parent, _, name = path.rpartition(b"/")
        target = lot.choice(directories)
        new_name = b"%d" % lot.randrange(6)
        new_path = target + b"/" + new_name if target else new_name
        new_place = (ids_by_path[target], new_name)
        try:
            match lot.randrange(7):
                case 0:
                    await commit_one(client, run, file_commit(new_path, b"%d" % lot.randrange(1000)))
                case 1:
                    await commit_one(client, run, directory_commit(new_path))
                case 2 | 3 if path:
                    await rename(client, run, ids_by_path[path], (ids_by_path[parent], name), new_place)
                case 4 if path:
                    await remove(client, run, ids_by_path[parent], name, ids_by_path[path])
                case 5 if tree[path].kind == FILE:
                    await link(client, run, ids_by_path[path], *new_place)
                case 6 if tree[path].kind == FILE:
                    again = file_commit(b"", b"%d" % lot.randrange(1000), node=ids_by_path[path], place=False)
                    await commit_one(client, run, again)
                case _:
                    pass
        except CloudAIError:
            pass


async def pages_with_changes_between(
    client: FakeMasterClient, run: types.Run, opponent: Opponent, count: int
) -> AsyncIterator[names.ListTreeResponse]:
    page = await client.list_tree(run.task_id)
    yield page
    while page.next_page_token:
        for _ in range(count):
            await opponent.change()
        page = await client.list_tree(run.task_id, page.next_page_token)
        yield page


@pytest.mark.parametrize("seed", range(25))
async def test_pages_between_which_all_changes_are_the_tree_at_the_end(
    client: FakeMasterClient, run: types.Run, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    lot = random.Random(seed)
    opponent = Opponent(client, run, lot)
    for _ in range(60):
        await opponent.change()
    page_edges = lot.choice([1, 2, 3, 8])
    batch_changes = lot.choice([1, 5, 1000])
    monkeypatch.setattr(listings, "TREE_PAGE_EDGES_MAX", page_edges)
    monkeypatch.setattr(changes, "BATCH_CHANGES_MAX", batch_changes)
    # (Each makes three revisions at most: one that is read alone would never be the last.)
    count = 0 if batch_changes == 1 else lot.choice([0, 1])
    pages = [page async for page in pages_with_changes_between(client, run, opponent, count)]
    listing = Listing(pages)
    monkeypatch.undo()

    (at_rest,) = await list_pages(client, run)

    assert listing.revision == at_rest.revision
    assert listing.root == at_rest.root
    edges = edges_of(listing)
    assert {(edge.parent_node_id, edge.name): edge.node for edge in edges} == {
        (edge.parent_node_id, edge.name): edge.node for edge in at_rest.edges
    }
    assert len(edges) == len(at_rest.edges)
    known = {run.root_node_id}
    for edge in edges:
        assert edge.parent_node_id in known
        known.add(edge.node.node_id)


async def list_with_a_change_after_the_first_page(
    client: FakeMasterClient, run: types.Run, monkeypatch: pytest.MonkeyPatch, change: Awaitable[object]
) -> Listing:
    monkeypatch.setattr(listings, "TREE_PAGE_EDGES_MAX", 1)
    pages = [await client.list_tree(run.task_id)]
    await change
    while pages[-1].next_page_token:
        pages.append(await client.list_tree(run.task_id, pages[-1].next_page_token))
    return Listing(pages)


async def test_file_with_a_further_name_is_as_it_is_now_under_the_one_that_was_listed_before(
    client: FakeMasterClient, run: types.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await commit_one(client, run, file_commit(b"a", b"x"))
    await commit_one(client, run, file_commit(b"z", b"x"))
    change = link(client, run, file.node_id, run.root_node_id, b"b")

    listing = await list_with_a_change_after_the_first_page(client, run, monkeypatch, change)

    counts = {edge.name: edge.node.link_count for edge in edges_of(listing)}
    assert counts == {b"a": 2, b"b": 2, b"z": 1}


async def test_root_that_was_changed_after_the_first_page_is_as_it_is_now(
    client: FakeMasterClient, run: types.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"a", b"b"):
        await commit_one(client, run, file_commit(name, b"x"))
    root = directory_commit(b"", node=run.root_node_id)
    root.place = False
    root.attributes.mode = 0o700

    listing = await list_with_a_change_after_the_first_page(
        client, run, monkeypatch, commit_one(client, run, root)
    )

    assert listing.root.attributes.mode == 0o700


async def test_run_that_is_sealed_between_two_pages_is_another_one(
    client: FakeMasterClient, run: types.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"a", b"b"):
        await commit_one(client, run, file_commit(name, b"x"))
    monkeypatch.setattr(listings, "TREE_PAGE_EDGES_MAX", 1)
    pages = [await client.list_tree(run.task_id)]
    await seal(client, run)
    while pages[-1].next_page_token:
        pages.append(await client.list_tree(run.task_id, pages[-1].next_page_token))

    listing = Listing(pages)
    assert listing.is_outdated
    assert not listing.is_sealed
    again = Listing(await list_pages(client, run))
    assert not again.is_outdated
    assert again.is_sealed


def page_of(*edges: types.Edge) -> names.ListTreeResponse:
    return names.ListTreeResponse(root=types.Node(node_id=ROOT_ID, kind=DIRECTORY), edges=edges)


def directory_edge(parent_id: int, name: bytes, node_id: int) -> types.Edge:
    return types.Edge(parent_node_id=parent_id, name=name, node=types.Node(node_id=node_id, kind=DIRECTORY))


def test_directories_in_a_circle_hang_in_the_air() -> None:
    first, second, third = (NODE_ID_MIN + number for number in (1, 2, 3))
    circle = [directory_edge(first, b"a", second), directory_edge(second, b"b", first)]
    assert edges_of(Listing([page_of(directory_edge(ROOT_ID, b"c", third), *circle)])) == [
        directory_edge(ROOT_ID, b"c", third)
    ]


def test_directory_in_itself_ends() -> None:
    inside = NODE_ID_MIN + 1
    edges = [directory_edge(ROOT_ID, b"a", inside), directory_edge(inside, b"b", inside)]
    assert edges_of(Listing([page_of(*edges)])) == edges


def test_large_run_is_arranged_in_steps() -> None:
    edges = [directory_edge(ROOT_ID, b"%d" % number, ROOT_ID + 1) for number in range(2 * ARRANGED_IN_A_STEP)]
    listing = Listing([page_of(*edges)])
    assert len(list(listing.arrange())) == 2
    assert len(list(listing.edges())) == len(edges)
